//! What happened to the page of a file that was sent last: it stands under what `vnic top` shows, where lives are recorded.

use comfy_table::Cell;
use vnic::observe::protocol::{Life, Report, Step, Use};

use super::figures;
use super::style::{GOOD, PLAIN};
use super::table::{Align, paragraph_within, styled, table_within};

/// Steps that are shown: the last ones.
const STEPS: usize = 9;

/// The page's life, which is never empty.
#[derive(Debug, Clone)]
pub(crate) struct LastPage(Vec<Step>);

/// The file of which most was sent.
pub(crate) fn file(report: &Report) -> Option<&str> {
    report.files.iter().find_map(|source| source.source.path.as_deref())
}

impl LastPage {
    /// Of this file, out of the lives of its pages; `None`: none of them was sent in what the log still has.
    pub(crate) fn of(path: &str, life: &Life) -> Option<Self> {
        let is_sent = |step: &&Step| {
            let owner = step.owner.as_ref().and_then(|owner| owner.path());
            matches!(step.what, Use::Sent { .. }) && owner == Some(path)
        };
        let page = life.steps.iter().rev().find(is_sent)?.gpa >> 12;
        let steps = life.steps.iter().filter(|step| step.gpa >> 12 == page).cloned();
        Some(LastPage(steps.collect()))
    }

    /// A line per step, no wider than `width`.
    pub(crate) fn text(&self, width: u16) -> String {
        let LastPage(steps) = self;
        let whose = steps.iter().rev().find_map(|step| step.owner.as_ref());
        let gpa = steps.last().map_or(0, |step| step.gpa & !0xfff);
        let name = whose.map_or_else(|| "the page".to_owned(), ToString::to_string);
        let mut text = paragraph_within(width, format!("{name}, at {gpa:#x}, was sent last:"), PLAIN);
        let shown = steps.get(steps.len().saturating_sub(STEPS)..).unwrap_or_default();
        if shown.len() < steps.len() {
            let earlier = figures::count((steps.len() - shown.len()) as u64);
            text += &paragraph_within(width, format!("{earlier} steps before these; vnic life shows them"), PLAIN);
        }
        let columns = [("seconds", Align::Right), ("bytes", Align::Right), ("what", Align::Left)];
        let row = |step: &Step| {
            let seconds = step.at_ns as f64 / 1e9;
            vec![Cell::new(format!("{seconds:.6}")), Cell::new(step.bytes), styled(step, GOOD)]
        };
        text + &table_within(width, &columns, shown.iter().map(row).collect())
    }
}
