//! `vnic trace`: every chain as it passes.

use anyhow::Result;

use super::ControlArgs;
use crate::{Finding, views};

/// Options of `vnic trace`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
}

/// Prints events until the device ends or nobody reads any more.
pub(super) fn run(args: &Args) -> Result<Finding> {
    let mut trace = args.control.open()?.trace()?;
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
