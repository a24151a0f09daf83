//! FUSE: a folder of the disk, shown again by a program of ours (`bin/passthrough.rs`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{is_mounted, load};
use crate::waiting::until;

/// Where the folder is seen through it.
const MOUNTED_AT: &str = "/fuse";
/// For the program to mount it.
const DEADLINE: Duration = Duration::from_secs(30);

/// The folder where files of `below` are seen through FUSE; the program that shows them runs until the guest ends.
pub(super) fn over(below: &Path) -> Result<PathBuf> {
    load("fuse", "fuse")?;
    let at = PathBuf::from(MOUNTED_AT);
    if is_mounted(MOUNTED_AT)? {
        return Ok(at);
    }
    std::fs::create_dir_all(&at).with_context(|| format!("make {MOUNTED_AT}"))?;
    let mut program = Command::new("/bin/passthrough").arg(below).arg(&at).spawn().context("start /bin/passthrough")?;
    let mounted = until(DEADLINE, || {
        if is_mounted(MOUNTED_AT)? {
            return Ok(Some(at.clone()));
        }
        match program.try_wait().context("wait for /bin/passthrough")? {
            Some(status) => bail!("/bin/passthrough ended with {status}"),
            None => Ok(None),
        }
    })?;
    mounted.with_context(|| format!("/bin/passthrough has mounted nothing within {} s", DEADLINE.as_secs()))
}
