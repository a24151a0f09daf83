//! Right, wrong, unsettled; and the table.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

/// Wrong ones that are shown in full, of a line.
pub(crate) const SHOWN: usize = 5;

/// What is to be thought of one look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Right,
    Wrong,
    Unsettled,
}

/// Look-ups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Tally {
    pub(crate) right: u64,
    pub(crate) wrong: u64,
    pub(crate) unsettled: u64,
}

impl Tally {
    /// One more; the first wrong ones are shown.
    pub(crate) fn add(&mut self, verdict: Verdict, what: impl FnOnce() -> String) {
        match verdict {
            Verdict::Right => self.right += 1,
            Verdict::Unsettled => self.unsettled += 1,
            Verdict::Wrong => {
                self.wrong += 1;
                if self.wrong <= SHOWN as u64 {
                    eprintln!("wrong: {}", what());
                }
            }
        }
    }

    /// All of them.
    pub(crate) fn all(self) -> u64 {
        self.right + self.wrong + self.unsettled
    }
}

/// A line of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    /// Its release.
    pub(crate) kernel: String,
    /// Memory and page tables.
    pub(crate) machine: String,
    /// What was looked at.
    pub(crate) kind: String,
    #[serde(flatten)]
    pub(crate) tally: Tally,
    /// What there is to be said beside: why there was nothing to look at, say.
    pub(crate) note: Option<String>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { right, wrong, unsettled } = self.tally;
        write!(f, "   {}: {right} right, {wrong} wrong, {unsettled} unsettled", self.kind)?;
        self.note.as_ref().map_or(Ok(()), |note| write!(f, " ({note})"))
    }
}

/// As a table.
pub(crate) fn table(lines: &[Line]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["kernel", "machine", "pages", "look-ups", "wrong", "unsettled"]);
    let (mut last, mut notes) = (("", ""), Vec::new());
    for line in lines {
        let Line { kind, tally, note, .. } = line;
        let of = (line.kernel.as_str(), line.machine.as_str());
        let (kernel, machine) = if of == last { ("", "") } else { of };
        last = of;
        let [all, wrong, unsettled] = [tally.all(), tally.wrong, tally.unsettled].map(|count| count.to_string());
        table.add_row([kernel, machine, kind, &all, &wrong, &unsettled]);
        if let Some(note) = note {
            notes.push(format!("{}, {}, {kind}: {note}", line.kernel, line.machine));
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for at in 3..6 {
        if let Some(column) = table.column_mut(at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let notes = notes.iter().map(|note| format!("{note}\n")).collect::<String>();
    format!("{}\n\n{notes}", table.trim_fmt())
}

/// Leaves the lines as a JSON array.
pub(crate) fn write(lines: &[Line], to: &Path) -> Result<()> {
    let made = to.parent().map_or(Ok(()), fs::create_dir_all);
    let text = serde_json::to_vec_pretty(lines)?;
    made.and_then(|()| fs::write(to, text)).with_context(|| to.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_the_table_is_longer_than_a_hundred_columns() {
        let tally = Tally { right: 12_345_678, wrong: 1, unsettled: 123_456 };
        let line = Line {
            kernel: "6.12.95+deb12-cloud-amd64".to_owned(),
            machine: "started by 5.10".to_owned(),
            kind: "private copy of a file".to_owned(),
            tally,
            note: Some("a note".to_owned()),
        };
        let table = table(&[line.clone(), line]);
        assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
        assert!(table.contains("12469135") && table.contains("a note"), "{table}");
    }
}
