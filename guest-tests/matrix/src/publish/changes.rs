//! What differs between two kernels, row by row.

use vnic_experiment::run::Verdict;

use super::{Filled, Table};
use crate::figures::figure;

/// By so much two counts of copies differ.
const COPIES: f64 = 0.05;
/// By this factor two counts of descriptors differ.
const DESCRIPTORS: f64 = 2.0;

/// What differs from an earlier kernel's cell to a later one's, in words; none where nothing is worth a word.
pub(super) fn change(before: &Filled, after: &Filled) -> Option<String> {
    let (from, to) = (before.row(), after.row());
    let verdict = |verdict: Option<Verdict>, filled: &Filled| {
        verdict.map_or_else(|| filled.short(), |verdict| verdict.name().to_owned())
    };
    if from.verdict != to.verdict {
        return Some(format!("{} → {}", verdict(from.verdict, before), verdict(to.verdict, after)));
    }
    if let (Some(from), Some(to)) = (from.cpu_copies, to.cpu_copies)
        && (from - to).abs() > COPIES
    {
        return Some(format!("{from:.2} → {to:.2} copies"));
    }
    let name = "descriptors_per_mib";
    if let (Some(from), Some(to)) = (figure(from, name), figure(to, name))
        && (from > DESCRIPTORS * to || to > DESCRIPTORS * from)
    {
        return Some(format!("{from:.0} → {to:.0} descriptors per MiB"));
    }
    None
}

/// The same change in several cells.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) what: String,
    pub(super) row: String,
    pub(super) filesystems: Vec<String>,
}

/// All that changed from one kernel to another.
pub(super) fn between(table: &Table, from: &str, to: &str) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for cell in table.cells.iter().filter(|cell| cell.origin.kernel == to) {
        let (filesystem, row) = (&cell.origin.filesystem, &cell.origin.row);
        let Some(what) = table.cell(from, filesystem, row).and_then(|before| change(before, cell)) else { continue };
        match changes.iter_mut().find(|change| change.what == what && change.row == *row) {
            Some(change) => change.filesystems.push(filesystem.clone()),
            None => changes.push(Change { what, row: row.clone(), filesystems: vec![filesystem.clone()] }),
        }
    }
    for change in &mut changes {
        change.filesystems.sort_unstable();
    }
    changes.sort_by(|one, other| (&one.row, &one.what).cmp(&(&other.row, &other.what)));
    changes
}
