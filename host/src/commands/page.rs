//! `vnic page`: whose memory a page of the guest is.

use anyhow::Result;
use serde::Serialize;
use vnic::observe::protocol::{Label, Step};

use super::ControlArgs;
use crate::{Finding, views};

/// Options of `vnic page`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    control: ControlArgs,
    /// Guest-physical addresses, as `vnic rings` and `vnic trace` show them: 0x2ee1000
    #[arg(value_name = "GPA", required = true, value_parser = address)]
    addresses: Vec<u64>,
    /// One JSON object per address
    #[arg(long)]
    json: bool,
}

pub(super) fn address(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("`{text}` is no address: write 0x2ee1000"))
}

/// What is known of a page.
#[derive(Debug, Serialize)]
pub(crate) struct Page {
    #[serde(flatten)]
    pub(crate) label: Label,
    /// When a device last had it, and what for; `null` where that is not recorded, or none had.
    pub(crate) last_use: Option<Step>,
}

/// Looks the pages up.
pub(super) fn run(args: Args) -> Result<Finding> {
    let (labels, mut last_uses) = args.control.open()?.page(args.addresses)?;
    last_uses.resize(labels.len(), None);
    let pages: Vec<Page> =
        labels.into_iter().zip(last_uses).map(|(label, last_use)| Page { label, last_use }).collect();
    if args.json {
        pages.iter().try_for_each(views::json_line)?;
    } else {
        views::page::show(&pages)?;
    }
    Ok(Finding::Fine)
}
