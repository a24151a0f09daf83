//! `vnic rings`: one snapshot of the rings, chains followed; or one again and again, and what has changed.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use vnic::observe::protocol::RingSnapshot;

use super::ControlArgs;
use crate::control::Client;
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
    /// Look again so often, and say what has changed: 1s, 250ms
    #[arg(long, value_name = "TIME", value_parser = every)]
    every: Option<Duration>,
    /// End after so many looks
    #[arg(long, value_name = "N", requires = "every", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// One JSON document, of all buffers; with --every one object per line
    #[arg(long)]
    json: bool,
}

/// The document of `--json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Document<'a> {
    rings: &'a [RingSnapshot],
}

/// A time as people write it: seconds, or with a unit.
fn every(text: &str) -> Result<Duration, String> {
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 0.001),
        (None, Some(number)) => (number, 1.0),
        (None, None) => (text, 1.0),
    };
    let seconds = number.trim().parse::<f64>().ok().map(|number| number * unit);
    let fits = |seconds: &f64| (0.01..=86_400.0).contains(seconds);
    let seconds = seconds.filter(fits).map(Duration::from_secs_f64);
    seconds.ok_or_else(|| format!("`{text}` is no time: write 1s or 250ms, from 10ms to a day"))
}

/// Shows the rings; broken if one breaks a rule.
pub(super) fn run(args: &Args) -> Result<Finding> {
    let mut client = args.control.open()?;
    let mut before = args.look(&mut client)?;
    let Some(every) = args.every else {
        if args.json {
            views::json(&Document { rings: &before })?;
        } else {
            views::rings::show(&before, args.all)?;
        }
        return Ok(Finding::fine_if(before.iter().all(sound)));
    };
    let begun = Instant::now();
    let mut fine = before.iter().all(sound);
    if args.json {
        views::json_line(&Document { rings: &before })?;
    } else {
        views::rings::show(&before, args.all)?;
    }
    for look in 1..args.count.unwrap_or(u64::MAX) {
        let next = every.checked_mul(u32::try_from(look).unwrap_or(u32::MAX)).unwrap_or(Duration::MAX);
        thread::sleep(next.saturating_sub(begun.elapsed()));
        let rings = args.look(&mut client)?;
        fine &= rings.iter().all(sound);
        if args.json {
            views::json_line(&Document { rings: &rings })?;
        } else {
            views::rings::show_changes(begun.elapsed(), &before, &rings, args.all)?;
        }
        before = rings;
    }
    Ok(Finding::fine_if(fine))
}

fn sound(ring: &RingSnapshot) -> bool {
    ring.faults.is_empty() && ring.chains.iter().all(|chain| chain.fault.is_none())
}

impl Args {
    fn look(&self, client: &mut Client) -> Result<Vec<RingSnapshot>> {
        if self.labels { labels::rings(client, self.queue.as_ref()) } else { client.rings(self.queue.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_or_is_seconds() {
        for (text, time) in [("1s", 1000), ("250ms", 250), ("2", 2000), ("0.5", 500)] {
            assert_eq!(every(text), Ok(Duration::from_millis(time)), "{text}");
        }
        for text in ["", "s", "1m", "0", "-1s", "nan", "1e99"] {
            assert!(every(text).is_err(), "{text}");
        }
    }
}
