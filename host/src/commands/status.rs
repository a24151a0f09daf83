//! `vnic status`: session, features, memory regions, queues, counters.

use anyhow::Result;

use super::ControlArgs;
use crate::{Finding, views};

/// Options of `vnic status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// Shows the state; broken if a queue has stopped.
pub(super) fn run(args: &Args) -> Result<Finding> {
    let mut client = args.control.open()?;
    let status = client.status()?;
    if args.json {
        views::json(&status)?;
    } else {
        views::status::show(&status, client.path())?;
    }
    Ok(Finding::fine_if(status.queues.iter().all(|queue| queue.error.is_none())))
}
