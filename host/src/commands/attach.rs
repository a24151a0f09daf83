//! `vnic attach`: looks into a VM that runs already.

use std::env;
use std::path::PathBuf;

use anyhow::{Result, bail};
use vnic::attach::{self, AttachError, Options};

use super::serve::{Sandbox, folder_exists};
use crate::Finding;

/// Options of `vnic attach`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The VMM's process: $(pidof qemu-system-x86_64)
    #[arg(long, value_name = "PID", value_parser = pid)]
    pid: u32,
    /// The control socket to open [default: vnic-attach-PID.control in $XDG_RUNTIME_DIR or /tmp]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    #[command(flatten)]
    sandbox: Sandbox,
}

fn pid(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "that is no process's number; `pgrep -a qemu` shows those of VMs".to_owned())
}

/// Looks until a signal, or until the VM ends.
pub(super) fn run(args: Args) -> Result<Finding> {
    let pid = args.pid;
    let control = args.control.unwrap_or_else(|| {
        let folder = env::var_os("XDG_RUNTIME_DIR").map_or_else(env::temp_dir, PathBuf::from);
        folder.join(format!("vnic-attach-{pid}.control"))
    });
    folder_exists("--control", &control)?;
    let path = control.display().to_string();
    let ready = |release: &str| tracing::info!(process = pid, kernel = release, control = path, "looks into the VM");
    match attach::serve(&Options { pid, control, sandbox: args.sandbox.mode }, ready) {
        Ok(()) => Ok(Finding::Fine),
        Err(error @ AttachError::Process(_)) => bail!("--pid: {error}"),
        Err(error) => bail!("{error}"),
    }
}
