//! `vnic life`: what has happened to a page of the guest.

use anyhow::Result;
use vnic::observe::protocol::LifeOf;

use super::{ControlArgs, page};
use crate::{Finding, views};

/// Options of `vnic life`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// A file's path, as `vnic top` shows it, or a guest-physical address: 0x2ee1000
    #[arg(value_name = "FILE-OR-GPA", value_parser = of)]
    of: LifeOf,
    /// Every step, and not the last ones only
    #[arg(long)]
    all: bool,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

fn of(text: &str) -> Result<LifeOf, String> {
    if text.starts_with('/') {
        return Ok(LifeOf::File { path: text.to_owned() });
    }
    let gpa = page::address(text);
    gpa.map(|gpa| LifeOf::Page { gpa })
        .map_err(|_| format!("`{text}` is no path and no address: write /srv/file or 0x2ee1000"))
}

/// Shows the steps.
pub(super) fn run(args: Args) -> Result<Finding> {
    let life = args.control.open()?.life(args.of.clone())?;
    if args.json {
        views::json(&life)?;
    } else {
        views::life::show(&args.of, &life, args.all)?;
    }
    Ok(Finding::Fine)
}
