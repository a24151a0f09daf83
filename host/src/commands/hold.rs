//! `vnic hold`: stop taking and returning buffers of a queue.

use anyhow::Result;
use vnic::observe::protocol::Request;

use super::ControlArgs;
use crate::{Finding, views};

/// Options of `vnic hold`.
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
    args.control.open()?.order(&Request::Hold { queue: args.queue.clone() })?;
    views::sentence(&format!(
        "{0}: held; its buffers stay with the device until `vnic release --queue {0}`",
        args.queue
    ))?;
    Ok(Finding::Fine)
}
