//! `vnic page`: whose memory a page of the guest is.

use anyhow::Result;

use super::ControlArgs;
use crate::{Finding, address, views};

/// Options of `vnic page`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// Guest-physical addresses, as `vnic rings` and `vnic trace` show them: 0x2ee1000
    #[arg(value_name = "GPA", required = true, value_parser = address::parse)]
    addresses: Vec<u64>,
    /// One JSON object per address
    #[arg(long)]
    json: bool,
}

/// Looks the pages up.
pub(super) fn run(args: Args) -> Result<Finding> {
    let pages = args.control.open()?.page(args.addresses)?;
    if args.json {
        pages.iter().try_for_each(views::json_line)?;
    } else {
        views::page::show(&pages)?;
    }
    Ok(Finding::Fine)
}
