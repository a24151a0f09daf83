//! `vnic scan`: how often what a held queue was given stands in the guest's memory.

use anyhow::{Result, bail};

use super::ControlArgs;
use crate::{Finding, views};

/// Options of `vnic scan`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// The queue, held with `vnic hold`: transmitq0, …
    #[arg(long, value_name = "NAME")]
    queue: String,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// Scans. Reads guest memory only, but what is not held would be gone before it is found.
pub(super) fn run(args: Args) -> Result<Finding> {
    let mut client = args.control.open()?;
    let name = &args.queue;
    let status = client.status()?;
    match status.queues.iter().find(|queue| queue.queue == *name) {
        Some(queue) if queue.state == "held" => {}
        Some(queue) => bail!(
            "{name} is {}, not held: what it was given would be gone before it is found; run `vnic hold --queue {name}` first",
            queue.state
        ),
        None => {
            let names: Vec<&str> = status.queues.iter().map(|queue| queue.queue.as_str()).collect();
            bail!("there is no queue `{name}`; this device has {}", names.join(", "))
        }
    }
    let report = client.scan(name)?;
    if args.json {
        views::json(&report)?;
    } else {
        views::scan::show(name, &report)?;
    }
    Ok(Finding::Fine)
}
