//! `vnic scan`: instances in the guest's memory.

use std::fmt::Write;

use anyhow::Result;
use vnic_experiment::scan::ScanReport;

use super::figures;
use super::style::{ADDRESS, HEAD};

/// The count, how it spreads, and where the first stamp stands.
pub(crate) fn show(queue: &str, report: &ScanReport) -> Result<()> {
    let mut text = String::new();
    let out = &mut text;
    let (held, read) = (report.held_stamps, figures::bytes(report.scanned_bytes));
    writeln!(out, "{queue}: {read} of guest memory read in {:.2} s", report.seconds)?;
    if held == 0 {
        writeln!(out, "no stamp of a test file stands in the frames that are held")?;
        return super::put(text);
    }
    match report.agreed() {
        Some(1) => writeln!(out, "{HEAD}what is held stands once in memory{HEAD:#}: nobody copied it")?,
        Some(count) => {
            writeln!(
                out,
                "{HEAD}what is held stands {count} times in memory{HEAD:#}: {} copies of it exist",
                count - 1
            )?;
        }
        None => writeln!(out, "{HEAD}what is held does not stand equally often in memory{HEAD:#}")?,
    }
    for (count, stamps) in &report.instances {
        writeln!(out, "  {} of {} stamps stand {count} times", figures::count(*stamps), figures::count(held))?;
    }
    if report.sent_again > 0 {
        writeln!(out, "  {} more were sent again by TCP and are left out", figures::count(report.sent_again))?;
    }
    let places: Vec<String> = report.places.iter().map(|place| format!("{ADDRESS}{place:#x}{ADDRESS:#}")).collect();
    writeln!(out, "  the first of them: {}", places.join(" "))?;
    super::put(text)
}
