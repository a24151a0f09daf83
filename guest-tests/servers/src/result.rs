//! What came of a row, as a table for people and as JSON.

use std::cmp::Reverse;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width};
use serde::{Deserialize, Serialize};
use vnic::provenance::{Report, SourceReport, descriptors_per_mib};

use crate::row::{Row, server};

/// The table's width.
const WIDTH: u16 = 100;

/// What its columns have at most, of it.
const COLUMNS: [u16; 6] = [16, 22, 11, 28, 8, 17];

/// What came of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The row's name.
    pub(crate) row: String,
    /// The package's version.
    pub(crate) version: String,
    /// What the configuration has.
    pub(crate) setting: String,
    /// What the manual has one expect.
    pub(crate) manual: String,
    /// When its measurement ended, seconds since 1970.
    pub(crate) measured_at: u64,
    /// What was sent; none: why there is none.
    #[serde(flatten)]
    pub(crate) measured: Measured,
}

/// What was sent, or why nothing was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Measured {
    /// All bytes arrived as they were.
    Sent(Box<Report>),
    /// The reason.
    Not(String),
}

impl Outcome {
    pub(crate) fn new(row: &Row, versions: &str, measured: Measured) -> Self {
        let version = version(versions, row.package).unwrap_or_else(|| "?".to_owned());
        let [name, setting, manual] = [row.name, row.setting, row.manual].map(str::to_owned);
        let measured_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Outcome { row: name, version, setting, manual, measured_at, measured }
    }

    /// Did all bytes arrive, and were they counted?
    pub(crate) fn is_measured(&self) -> bool {
        matches!(self.measured, Measured::Sent(_))
    }
}

/// The file with a package and its version on each line.
pub(crate) fn versions(folder: &Path) -> Result<String> {
    let file = folder.join("versions");
    std::fs::read_to_string(&file).with_context(|| file.display().to_string())
}

/// A package's version as its authors number it: without Debian's epoch and revision.
fn version(versions: &str, package: &str) -> Option<String> {
    let whole = versions.lines().find_map(|line| line.strip_prefix(package)?.strip_prefix(' '))?;
    let upstream = whole.split_once(':').map_or(whole, |(_, rest)| rest);
    let upstream = upstream.rsplit_once('-').map_or(upstream, |(rest, _)| rest);
    Some(upstream.split(['+', '~']).next().unwrap_or(upstream).to_owned())
}

/// The share in percent, with as many digits as tell "nearly all" from "all".
fn percent(part: u64, whole: u64) -> String {
    let share = 100.0 * part as f64 / whole.max(1) as f64;
    let text = format!("{share:.1}");
    match text.as_str() {
        "100.0" if part < whole => "> 99.9".to_owned(),
        "0.0" if part > 0 => "< 0.1".to_owned(),
        "100.0" => "100".to_owned(),
        "0.0" => "0".to_owned(),
        _ => text,
    }
}

/// Where the payload came from, the most first; what is under a tenth of a percent is left out behind the first.
fn sources(report: &Report) -> String {
    let mut from: Vec<&SourceReport> = report.files.iter().chain(&report.elsewhere).collect();
    from.sort_by_key(|source| Reverse(source.bytes));
    let mut words = Vec::new();
    for SourceReport { source, bytes } in from {
        let share = percent(*bytes, report.bytes);
        if !words.is_empty() && share.starts_with('<') {
            break;
        }
        let name = match &source.path {
            // All are on the one disk.
            Some(path) => path.clone(),
            None => source.to_string(),
        };
        words.push(if share == "100" || share.starts_with('>') { name } else { format!("{name} {share} %") });
    }
    words.join("; ")
}

/// Descriptors for each MiB of payload.
fn density(report: &Report) -> f64 {
    let descriptors: u64 = report.flows.iter().map(|flow| flow.descriptors).sum();
    descriptors_per_mib(descriptors, report.bytes)
}

/// All rows as a table of a hundred columns.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.set_header(["server", "setting", "zero-copy %", "from", "descr. per MiB", "its manual"]);
    let mut last = "";
    for outcome in outcomes {
        let none = || "–".to_owned();
        let (zero_copy, from, density) = match &outcome.measured {
            Measured::Sent(report) => {
                (percent(report.zero_copy_bytes, report.bytes), sources(report), format!("{:.0}", density(report)))
            }
            Measured::Not(why) => (none(), why.lines().next().unwrap_or_default().to_owned(), none()),
        };
        let name = server(&outcome.row);
        let shown = if name == last { String::new() } else { format!("{name} {}", outcome.version) };
        last = name;
        table.add_row([&shown, &outcome.setting, &zero_copy, &from, &density, &outcome.manual]);
    }
    for (column, width) in table.column_iter_mut().zip(COLUMNS) {
        column.set_padding((0, 2)).set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(width)));
    }
    for at in [2, 4] {
        if let Some(column) = table.column_mut(at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use vnic::provenance::{Source, SourceKind};

    use super::*;

    #[test]
    fn a_version_is_that_of_the_authors() {
        let versions = "nginx 1.22.1-9+deb12u11\nnginx-common 1\nsamba 2:4.17.12+dfsg-0+deb12u4\ngolang-go 2:1.19~1\n";
        for (package, expected) in [("nginx", "1.22.1"), ("samba", "4.17.12"), ("golang-go", "1.19")] {
            assert_eq!(version(versions, package).as_deref(), Some(expected));
        }
        assert_eq!(version(versions, "golang"), None);
    }

    #[test]
    fn nearly_all_is_not_all_and_nearly_none_is_not_none() {
        for (part, whole, expected) in [
            (10, 10, "100"),
            (99_999, 100_000, "> 99.9"),
            (0, 5, "0"),
            (1, 100_000, "< 0.1"),
            (1, 2, "50.0"),
            (0, 0, "0"),
        ] {
            assert_eq!(percent(part, whole), expected);
        }
    }

    #[test]
    fn no_line_of_the_table_is_longer_than_a_hundred_columns() {
        let path = Some("/var/lib/tomcat10/webapps/ROOT/big.bin".to_owned());
        let file = SourceReport { source: Source { path, ..Source::of(SourceKind::File) }, bytes: 3 << 20 };
        let copied = SourceReport { source: Source::of(SourceKind::Socket), bytes: 1 << 20 };
        let report = Report {
            bytes: 4 << 20,
            zero_copy_bytes: 3 << 20,
            files: vec![file],
            elsewhere: vec![copied],
            ..Report::default()
        };
        let sent = |row| Outcome::new(row, "nginx 1.22.1-9\n", Measured::Sent(Box::new(report.clone())));
        let outcomes: Vec<Outcome> = crate::row::ROWS.iter().map(sent).collect();
        let table = table(&outcomes);
        assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
        for words in ["nginx 1.22.1", "75.0", "25.0 %"] {
            assert!(table.contains(words), "{table}");
        }
    }
}
