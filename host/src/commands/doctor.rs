//! `vnic doctor`: what this machine can do, and how to fix what it can't.

use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;

use crate::doctor::{self, Check, State};
use crate::{Finding, views};

/// Options of `vnic doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// The document of `--json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Document<'a> {
    demo_can_run: bool,
    checks: &'a [Check],
}

/// Looks at everything; broken if the demo cannot run.
pub(super) fn run(args: &Args) -> Result<Finding> {
    let checks = doctor::examine();
    let can_run = checks.iter().all(|check| check.state != State::Missing);
    if args.json {
        views::json(&Document { demo_can_run: can_run, checks: &checks })?;
    } else {
        views::doctor::show(&checks, can_run)?;
    }
    Ok(Finding::fine_if(can_run))
}
