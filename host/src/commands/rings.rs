//! `vnic rings`: one snapshot of the rings, chains followed.

use anyhow::Result;
use serde::Serialize;
use vnic::observe::protocol::RingSnapshot;

use super::ControlArgs;
use crate::{Finding, labels, views};

/// Options of `vnic rings`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// Only this queue: receiveq0, transmitq0, …
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Buffers that wait to be written to one by one, and not in one line
    #[arg(long)]
    all: bool,
    /// Whose memory each buffer is that the device is to read: a file's page, a program's, a socket's buffers
    #[arg(long)]
    labels: bool,
    /// One JSON document, of all buffers
    #[arg(long)]
    json: bool,
}

/// The document of `--json`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    rings: &'a [RingSnapshot],
}

/// Shows the rings; broken if one breaks a rule.
pub(super) fn run(args: Args) -> Result<Finding> {
    let mut client = args.control.open()?;
    let rings =
        if args.labels { labels::rings(&mut client, args.queue.as_ref())? } else { client.rings(args.queue)? };
    if args.json {
        views::json(&Document { rings: &rings })?;
    } else {
        views::rings::show(&rings, args.all)?;
    }
    let sound = |ring: &RingSnapshot| ring.faults.is_empty() && ring.chains.iter().all(|chain| chain.fault.is_none());
    Ok(Finding::fine_if(rings.iter().all(sound)))
}
