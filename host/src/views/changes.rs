//! Two records side by side: what changed from one to the other.
//!
//! Compared are the figures that a kernel, a file system or a card decides. Times are not: they are of the machine's other
//! work as well.

use anyhow::Result;
use comfy_table::Cell;
use schemars::JsonSchema;
use serde::Serialize;
use vnic_experiment::run::{Method, Run};

use super::classic::{self, Line};
use super::style::{DIM, GOOD, HEAD, PLAIN, WARN};
use super::table::{Align, NULL, paragraph, styled, table};
use super::{figures, report};

/// A figure that is another in the second record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Change {
    /// The row: method, with its file system where there are several.
    pub(crate) row: String,
    /// What it is of.
    pub(crate) figure: &'static str,
    /// In the first record; `null`: not measured, or no such row.
    pub(crate) before: Option<String>,
    /// In the second.
    pub(crate) after: Option<String>,
}

impl Change {
    /// Is it another verdict?
    pub(crate) fn is_verdict(&self) -> bool {
        self.figure == VERDICT
    }
}

const VERDICT: &str = "verdict";

/// Shares of a figure by which two runs of the same thing differ without anything having changed.
const NOISE: f64 = 0.1;

/// What changed, row by row in the order of the first record; rows that one of them lacks come last.
pub(crate) fn changes(before: &Run, after: &Run) -> Vec<Change> {
    let (was, is) = (classic::lines(before), classic::lines(after));
    let mut found = Vec::new();
    for (method, line) in before.methods.iter().zip(&was) {
        let row = classic::name(method);
        match after.methods.iter().zip(&is).find(|(other, _)| classic::name(other) == row) {
            Some((other, now)) => compare(&row, (method, line), (other, now), &mut found),
            None => found.push(Change { row, figure: VERDICT, before: verdict(method), after: None }),
        }
    }
    let known = |row: &str| before.methods.iter().any(|method| classic::name(method) == row);
    let new = after.methods.iter().filter(|method| !known(&classic::name(method)));
    found.extend(new.map(|method| Change {
        row: classic::name(method),
        figure: VERDICT,
        before: None,
        after: verdict(method),
    }));
    found
}

fn verdict(method: &Method) -> Option<String> {
    method.verdict.map(|verdict| verdict.to_string())
}

fn compare(row: &str, before: (&Method, &Line<'_>), after: (&Method, &Line<'_>), found: &mut Vec<Change>) {
    let mut change = |figure, before: Option<String>, after: Option<String>| {
        if before != after {
            found.push(Change { row: row.to_owned(), figure, before, after });
        }
    };
    change(VERDICT, verdict(before.0), verdict(after.0));
    change("NIC", Some(before.0.nic.to_string()), Some(after.0.nic.to_string()));
    // As they are shown: what looks the same is the same.
    let cells = before.1.cells().into_iter().zip(after.1.cells()).zip(classic::HEADS);
    for ((was, is), (head, path)) in cells {
        if ["cpu_copies", "dma_copies", "guest.mode_switches", "memory.physical_instances"].contains(&path) {
            change(head, was, is);
        }
    }
    let share = |method: &Method| figures::percent(method.device.from_page_cache_bytes?, method.device.payload_bytes?);
    change("from page cache", share(before.0), share(after.0));
    let (was, is) = (per_mib(before.0), per_mib(after.0));
    let same = was.zip(is).is_some_and(|(was, is)| (was - is).abs() <= NOISE * was.max(is));
    if !same {
        let shown = |count: Option<f64>| count.map(|count| format!("{count:.0}"));
        change("descriptors per MiB", shown(was), shown(is));
    }
    let digest = |method: &Method| report::digest(method).map(str::to_owned);
    change("sha256", digest(before.0), digest(after.0));
}

fn per_mib(method: &Method) -> Option<f64> {
    let bytes = method.device.payload_bytes.filter(|bytes| *bytes > 0)?;
    Some(method.device.descriptors? as f64 * (1_u64 << 20) as f64 / bytes as f64)
}

/// What is said where nothing changed.
pub(super) const NOTHING: &str =
    "Nothing changed: the same verdicts, copies, switches, instances and descriptors in every row.";
/// What is left out.
pub(super) const NOTE: &str =
    "Times are not compared: they are of the machine's other work, too. Descriptors per MiB are, from a tenth on.";

/// The table of what changed.
pub(crate) fn show(before: &Run, after: &Run, changes: &[Change]) -> Result<()> {
    let mut text = paragraph(format!("before: {}", report::about(before)), PLAIN);
    text += &paragraph(format!("after:  {}", report::about(after)), PLAIN);
    text.push('\n');
    if changes.is_empty() {
        text += &paragraph(NOTHING.to_owned(), GOOD);
    } else {
        let columns = ["method", "figure", "before", "after"].map(|head| (head, Align::Left));
        let cell = |text: &Option<String>| text.clone().unwrap_or_else(|| NULL.to_owned());
        let row = |change: &Change| {
            let style = if change.is_verdict() { WARN } else { PLAIN };
            let words = [&change.row, &change.figure.to_owned(), &cell(&change.before)].map(Cell::new);
            words.into_iter().chain([styled(cell(&change.after), style)]).collect()
        };
        text += &table(&columns, changes.iter().map(row).collect());
        if changes.iter().any(Change::is_verdict) {
            text += &paragraph("A verdict is another.".to_owned(), HEAD);
        }
    }
    super::put(text + &paragraph(NOTE.to_owned(), DIM))
}
