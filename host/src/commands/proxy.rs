//! `vnic proxy`: between any front-end and any back-end.

use std::path::PathBuf;

use anyhow::{Result, bail};
use vnic::proxy::{self, DeviceKind, Options};
use vnic::serve::options::control_beside;

use super::serve::{Sandbox, folder_exists};
use crate::Finding;

/// Options of `vnic proxy`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Listen for front-ends on this path
    #[arg(long, value_name = "PATH")]
    socket_path: PathBuf,
    /// Where the back-end listens; it may come later
    #[arg(long, value_name = "PATH")]
    back_end: PathBuf,
    /// The control socket [default: SOCKET-PATH.control]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// What kind of device it is, for the names of its queues: net, blk, fs, … [default: a network card or a disk are told by
    /// their features]
    #[arg(long, value_name = "KIND")]
    device: Option<DeviceKind>,
    #[command(flatten)]
    sandbox: Sandbox,
}

/// Passes on until a signal.
pub(super) fn run(args: Args) -> Result<Finding> {
    let Args { socket_path: socket, back_end, control, device, sandbox } = args;
    if socket == back_end {
        bail!("--back-end: that is --socket-path; the front-end and the back-end each need a socket of their own");
    }
    let control = control.unwrap_or_else(|| control_beside(&socket));
    folder_exists("--socket-path", &socket)?;
    folder_exists("--back-end", &back_end)?;
    folder_exists("--control", &control)?;
    let paths = [&socket, &back_end, &control].map(|path| path.display().to_string());
    let ready = || {
        let [socket, back_end, control] = &paths;
        tracing::info!(socket, back_end, control, "waiting for a front-end");
    };
    proxy::serve(&Options { socket, back_end, control, device, sandbox: sandbox.mode }, ready)?;
    Ok(Finding::Fine)
}
