//! `vnic verdict`: the judgement on any VM that can be looked into, without an agent in it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vnic_experiment::watched;

use super::ControlArgs;
use super::top::seconds;
use crate::control::Since;
use crate::{Finding, views};

/// Between two looks at how far it is.
const EVERY: Duration = Duration::from_millis(500);

/// Options of `vnic verdict`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// Watch for so many seconds
    #[arg(long = "for", value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    time: Duration,
    /// Leave the record, which `vnic report` shows
    #[arg(long, value_name = "RUN.json", visible_alias = "record")]
    output: Option<PathBuf>,
    /// The record as one JSON document
    #[arg(long)]
    json: bool,
}

/// Watches, judges, and shows.
pub(super) fn run(args: &Args) -> Result<Finding> {
    let mut top = args.control.open()?.top(EVERY.min(args.time), Since::Now)?;
    let mut progress = views::verdict::Progress::new(args.time);
    let report = loop {
        let Some(report) = top.next()? else { bail!("the device ended before the time was over") };
        if report.seconds >= args.time.as_secs_f64() {
            break report;
        }
        progress.tick(&report);
    };
    drop(progress);
    if let (None, Some(why)) = (&report.kernel, &report.why) {
        bail!("there is no verdict without a look into the guest: {why}");
    }
    let run = watched::run(&report);
    if let Some(path) = &args.output {
        let text = serde_json::to_string_pretty(&run)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write the record {}", path.display()))?;
    }
    if args.json {
        views::json(&run)?;
    } else {
        views::verdict::show(&run)?;
    }
    Ok(Finding::Fine)
}
