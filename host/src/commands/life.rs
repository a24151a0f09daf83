//! `vnic life`: what has happened to a page of the guest.

use anyhow::Result;

use super::ControlArgs;
use crate::address::Of;
use crate::{Finding, views};

/// Options of `vnic life`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// A file's path, as `vnic top` shows it, or a guest-physical address: 0x2ee1000
    #[arg(value_name = "FILE-OR-GPA")]
    of: Of,
    /// Every step, and not the last ones only
    #[arg(long)]
    all: bool,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// Shows the steps.
pub(super) fn run(args: Args) -> Result<Finding> {
    let life = args.control.open()?.life(args.of.0.clone())?;
    if args.json {
        views::json(&life)?;
    } else {
        views::life::show(&args.of.0, &life, args.all)?;
    }
    Ok(Finding::Fine)
}
