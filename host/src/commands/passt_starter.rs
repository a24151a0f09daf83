//! `vnic passt-starter`: starts passt for a `vnic serve` that is locked in.

use anyhow::{Context as _, Result};
use vnic::link::stream::passt::Publish;
use vnic::link::stream::starter;

use crate::Finding;

/// Options of `vnic passt-starter`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ports that lead into the guest
    #[arg(value_name = "HOST:GUEST")]
    publish: Vec<Publish>,
}

/// Until the standard input, a socket, is closed.
pub(super) fn run(args: &Args) -> Result<Finding> {
    starter::serve(&args.publish).context("this is for `vnic serve --link passt`, over a socket")?;
    Ok(Finding::Fine)
}
