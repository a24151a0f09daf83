//! What happened to the pages of the file, for the record: asked of a device that records it.

use std::collections::HashMap;

use vnic::observe::protocol::{LifeOf, Use};
use vnic_experiment::run::{Had, PageDot, PageLife, PageStep};
use vnic_experiment::wire::PageRun;

use crate::control::Client;

/// Steps that the record has room for.
const LAST: usize = 24;

/// Pages all over the file that are asked about.
const PAGES: u64 = 512;

/// The life of the file's first page, and those of others all over it. `None`: the device does not record any, or saw none of it.
pub(super) fn of_file(control: &mut Client, runs: &[PageRun]) -> Option<PageLife> {
    let first = runs.first()?;
    let (page, gpa) = (first.page, first.gpa);
    let life = control.life(LifeOf::Page { gpa }).ok().filter(|life| !life.steps.is_empty())?;
    let steps = life.steps.get(life.steps.len().saturating_sub(LAST)..).unwrap_or_default();
    let steps = steps.iter().map(|step| PageStep {
        seconds: step.at_ns as f64 / 1e9,
        what: step.to_string(),
        bytes: step.bytes,
    });
    let others = others(control, runs);
    Some(PageLife { page, gpa, steps: steps.collect(), missed_chains: life.missed_chains, others })
}

/// What happened to so many pages at the same distance from each other.
fn others(control: &mut Client, runs: &[PageRun]) -> Vec<PageDot> {
    let count: u64 = runs.iter().map(|run| run.count).sum();
    let every = count.div_ceil(PAGES).max(1);
    let pages = runs.iter().flat_map(|run| (0..run.count).map(|at| (run.gpa + (at << 12), run.page + at)));
    let asked: HashMap<u64, u64> = pages.filter(|(_, page)| page.is_multiple_of(every)).collect();
    let mut addresses: Vec<u64> = asked.keys().copied().collect();
    addresses.sort_unstable();
    let life = control.life(LifeOf::Pages { addresses }).unwrap_or_default();
    let dots = life.steps.iter().filter_map(|step| {
        let page = *asked.get(&(step.gpa & !0xfff))?;
        let what = match step.what {
            Use::ReadFrom { .. } => Had::Filled,
            Use::Sent { .. } => Had::Sent,
            Use::Received { .. } | Use::Written => Had::Overwritten,
            Use::WrittenTo { .. } | Use::Read => Had::Read,
            Use::Held { .. } | Use::Completed => return None,
        };
        Some(PageDot { page, seconds: step.at_ns as f64 / 1e9, what })
    });
    dots.collect()
}
