//! `vnic trace`: every chain as it passes.

use anyhow::Result;

use super::ControlArgs;
use crate::{Finding, views};

/// Options of `vnic trace`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// Whose memory each buffer is that the device has read: a file's page, a program's, a socket's buffers
    #[arg(long)]
    labels: bool,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
}

/// Prints events until the device ends or nobody reads any more.
pub(super) fn run(args: &Args) -> Result<Finding> {
    let mut trace = args.control.open()?.trace(args.labels)?;
    let mut view = views::trace::Trace::new(args.json);
    while let Some(event) = trace.next()? {
        view.event(&event)?;
        if !trace.has_more() {
            view.flush()?;
        }
    }
    view.flush()?;
    Ok(Finding::Fine)
}
