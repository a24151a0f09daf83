//! `vnic top`: from what the guest's frames come, by flow and by file.

use std::time::Duration;

use anyhow::{Result, bail};

use super::ControlArgs;
use crate::views::top::By;
use crate::{Finding, views};

/// Between two reports.
const EVERY: Duration = Duration::from_secs(1);

/// Options of `vnic top`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// Look for a while (--for, or one second), print what was seen, and end
    #[arg(long)]
    once: bool,
    /// End after so many seconds
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    time: Option<Duration>,
    /// What comes first: flow or file
    #[arg(long, value_name = "WHAT", default_value = "flow")]
    by: By,
    /// With --once one JSON document; else one JSON object per line, each second
    #[arg(long)]
    json: bool,
}

/// A time as people write it: more than nothing, and no more than a day.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let fits = |seconds: &f64| *seconds >= 0.1 && *seconds <= 86_400.0;
    let seconds = text.parse().ok().filter(fits).map(Duration::from_secs_f64);
    seconds.ok_or_else(|| format!("{text} is no number of seconds; write one from 0.1 to 86400, such as 10"))
}

/// Shows what was seen until the time is over.
pub(super) fn run(args: &Args) -> Result<Finding> {
    if args.json && !args.once {
        let mut top = args.control.open()?.top(EVERY)?;
        while let Some(report) = top.next()? {
            views::json_line(&report)?;
            if args.time.is_some_and(|time| report.seconds >= time.as_secs_f64()) {
                break;
            }
        }
    } else if args.once || args.time.is_some() {
        let report = args.control.open()?.watched(args.time.unwrap_or(EVERY))?;
        if args.json { views::json(&report)? } else { views::top::show(&report, args.by)? }
    } else {
        bail!("say for how long: `vnic top --for 10`, or `vnic top --json` for a report each second");
    }
    Ok(Finding::Fine)
}
