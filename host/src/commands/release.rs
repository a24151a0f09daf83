//! `vnic release`: let the buffers of a held queue go.

use anyhow::Result;
use vnic::observe::protocol::Request;

use super::ControlArgs;
use crate::{Finding, views};

/// Options of `vnic release`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// The queue: receiveq0, transmitq0, …
    #[arg(long, value_name = "NAME")]
    queue: String,
}

/// Tells the device, and says what follows.
pub(super) fn run(args: Args) -> Result<Finding> {
    args.control.open()?.order(&Request::Release { queue: args.queue.clone() })?;
    views::sentence(&format!("{}: released", args.queue))?;
    Ok(Finding::Fine)
}
