//! `vnic watch`: status and rings, live, full-screen.

use std::io::{self, IsTerminal};

use anyhow::{Result, bail};

use super::ControlArgs;
use crate::{Finding, views};

/// Options of `vnic watch`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// Whose memory each buffer is that the device is to read; the key l switches
    #[arg(long)]
    labels: bool,
}

/// Shows the rings until `q` or a signal.
pub(super) fn run(args: &Args) -> Result<Finding> {
    if !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
        bail!("`vnic watch` needs a terminal; `vnic rings` and `vnic status` print to anything");
    }
    let client = args.control.open()?;
    views::watch::run(client, args.labels)?;
    Ok(Finding::Fine)
}
