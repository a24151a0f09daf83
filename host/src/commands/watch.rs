//! `vnic watch`: a device live, full-screen.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::Finding;
use crate::control::Client;
use crate::watch::{self, Tab};

/// Options of `vnic watch`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A device's control socket; again for another beside it [default: $VNIC_CONTROL, or those of all that run]
    #[arg(long, value_name = "PATH")]
    control: Vec<PathBuf>,
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
    let clients = Client::open_all(&args.control)?;
    watch::run(clients, args.view, args.labels || !args.no_labels)?;
    Ok(Finding::Fine)
}
