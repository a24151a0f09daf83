//! The guest's disk: an ext4 file system on a virtio-blk device, mounted when a transfer asks for it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::modules::load_group;

pub(crate) const DEVICE: &str = "/dev/vda";
pub(crate) const MOUNTED_AT: &str = "/mnt";

/// Mounts the disk, unless that is done; returns where.
///
/// # Errors
/// There is no disk, or no ext4 on it.
pub fn mounted() -> Result<&'static Path> {
    let at = Path::new(MOUNTED_AT);
    let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(MOUNTED_AT)) {
        return Ok(at);
    }
    load_group("disk")?;
    fs::create_dir_all(at).with_context(|| format!("make {MOUNTED_AT}"))?;
    match mount(Some(DEVICE), at, Some("ext4"), MsFlags::MS_NOATIME, None::<&str>) {
        Ok(()) => Ok(at),
        Err(Errno::ENOENT | Errno::ENXIO) => Err(Errno::ENODEV).context("this guest has no disk"),
        Err(error) => Err(error).with_context(|| format!("mount {DEVICE} as ext4")),
    }
}
