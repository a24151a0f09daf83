//! `vnic watch`: a device live, full-screen.

use std::io::{self, IsTerminal};

use anyhow::{Result, bail};

use super::ControlArgs;
use crate::Finding;
use crate::watch::{self, Tab};

/// Options of `vnic watch`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// The view to begin with
    #[arg(long, value_name = "VIEW", default_value = "rings")]
    view: Tab,
    /// Without asking whose memory the buffers are; the key L switches
    #[arg(long)]
    no_labels: bool,
    /// With it, which is how it begins anyway
    #[arg(long, hide = true, conflicts_with = "no_labels")]
    labels: bool,
}

/// Shows the device until `q` or a signal.
pub(super) fn run(args: &Args) -> Result<Finding> {
    if !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
        bail!("`vnic watch` needs a terminal; `vnic rings` and `vnic status` print to anything");
    }
    let client = args.control.open()?;
    watch::run(client, args.view, args.labels || !args.no_labels)?;
    Ok(Finding::Fine)
}
