//! `vnic top`: from what the guest's frames come, by flow and by file.

use std::io::{self, IsTerminal};
use std::time::Duration;

use anyhow::{Result, bail};

use super::ControlArgs;
use crate::control::Since;
use crate::views::top::By;
use crate::{Finding, views};

/// Between two reports, which is also how long is looked where the device has kept nothing so far.
const EVERY: Duration = Duration::from_secs(1);

/// Options of `vnic top`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// Print what was sent so far, or in the time of --for, and end
    #[arg(long)]
    once: bool,
    /// What is sent in so many seconds from now on
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    time: Option<Duration>,
    /// What comes first: flow or file; the key f switches
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

/// Shows what is seen, live until somebody or the time ends it.
pub(super) fn run(args: &Args) -> Result<Finding> {
    let since = if args.time.is_some() { Since::Now } else { Since::Start };
    let screen = io::stdout().is_terminal() && io::stdin().is_terminal();
    if args.json && !args.once {
        let mut top = args.control.open()?.top(EVERY, since)?;
        while let Some(report) = top.next()? {
            views::json_line(&report)?;
            if args.time.is_some_and(|time| report.seconds >= time.as_secs_f64()) {
                break;
            }
        }
    } else if args.once || (args.time.is_some() && !screen) {
        let report = args.control.open()?.report(args.time.unwrap_or(EVERY), since)?;
        if args.json { views::json(&report)? } else { views::top::show(&report, args.by, args.control.open()?)? }
    } else if screen {
        views::top::run(args.control.open()?.top(EVERY, since)?, args.by, args.time, args.control.open()?)?;
    } else {
        bail!("`vnic top` needs a terminal; `vnic top --for 10` and `vnic top --json` print to anything");
    }
    Ok(Finding::Fine)
}
