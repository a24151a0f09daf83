//! `vnic top`: flows and files, with where their bytes came from.

use std::fmt::{self, Write as _};

use anyhow::Result;
use comfy_table::Cell;
use vnic::observe::protocol::{FlowReport, Report, SourceKind, SourceReport};

use super::style::{BAD, DIM, GOOD, HEAD, WARN};
use super::table::Align;
use super::{figures, table};

/// Lines of a table that are shown to people, at most.
const LINES: usize = 20;
/// What a flow is told to come from, at most.
const SOURCES: usize = 3;

/// What comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum By {
    /// Who talks to whom.
    Flow,
    /// What is sent.
    File,
}

/// Prints a report.
pub(crate) fn show(report: &Report, by: By) -> Result<()> {
    super::put(text(report, by)?)
}

fn text(report: &Report, by: By) -> Result<String, fmt::Error> {
    let mut text = head(report)?;
    if report.bytes > 0 {
        let (first, second) = match by {
            By::Flow => (flows(report), files(report)),
            By::File => (files(report), flows(report)),
        };
        write!(text, "\n{first}\n{second}")?;
    }
    text += &others(report);
    Ok(text)
}

/// What is said of all of it.
fn head(report: &Report) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let kernel = report.kernel.as_deref().map_or("guest".to_owned(), |kernel| format!("Linux {kernel}"));
    let (passed, seconds) = (figures::bytes(report.passed.bytes), report.seconds);
    write!(text, "{HEAD}{kernel}{HEAD:#}  sent {passed} in {seconds:.1} s")?;
    match figures::percent(report.seen.bytes, report.passed.bytes) {
        None => writeln!(text, ", nothing yet")?,
        Some(_) if report.seen == report.passed => writeln!(text, ", all of it seen")?,
        Some(share) => writeln!(text, ", {WARN}{share} of it seen{WARN:#}: the figures are of that")?,
    }
    if let Some(why) = &report.why {
        writeln!(text, "{BAD}{why}{BAD:#}")?;
    }
    Ok(text)
}

fn flows(report: &Report) -> String {
    let columns = [("flow", Align::Left), ("bytes", Align::Right), ("zero-copy", Align::Right), ("from", Align::Left)];
    let row = |flow: &FlowReport| {
        let share = flow.zero_copy_share();
        vec![
            Cell::new(name(flow)),
            Cell::new(figures::bytes(flow.bytes)),
            table::styled(percent(flow.zero_copy_bytes, flow.bytes.saturating_sub(flow.unsettled_bytes)), style(share)),
            Cell::new(from(flow)),
        ]
    };
    let rows = report.flows.iter().take(LINES).map(row).collect();
    table::table(&columns, rows)
}

/// Its addresses; of what is not TCP, its protocol, too.
fn name(flow: &FlowReport) -> String {
    if flow.protocol == "tcp" { flow.flow.clone() } else { format!("{} {}", flow.flow, flow.protocol) }
}

/// What it comes from, with a share where that is several.
fn from(flow: &FlowReport) -> String {
    let one = |source: &SourceReport| {
        if source.bytes == flow.bytes {
            source.source.to_string()
        } else {
            format!("{} {}", percent(source.bytes, flow.bytes), source.source)
        }
    };
    let mut all: Vec<String> = flow.sources.iter().take(SOURCES).map(one).collect();
    if flow.sources.len() > SOURCES {
        all.push(format!("{} more", flow.sources.len() - SOURCES));
    }
    all.join(", ")
}

fn files(report: &Report) -> String {
    let columns = [("from", Align::Left), ("bytes", Align::Right), ("share", Align::Right)];
    let mut all: Vec<&SourceReport> = report.files.iter().chain(&report.elsewhere).collect();
    all.sort_by_key(|source| std::cmp::Reverse(source.bytes));
    let row = |source: &&SourceReport| {
        let style = match source.source.kind {
            SourceKind::File | SourceKind::Anonymous => GOOD,
            SourceKind::Socket => BAD,
            SourceKind::Other | SourceKind::Unsettled => WARN,
        };
        vec![
            table::styled(&source.source, style),
            Cell::new(figures::bytes(source.bytes)),
            Cell::new(percent(source.bytes, report.bytes)),
        ]
    };
    table::table(&columns, all.iter().take(LINES).map(row).collect())
}

/// What is not listed.
fn others(report: &Report) -> String {
    let hidden = |all: usize, gone: u64| all.saturating_sub(LINES) as u64 + gone;
    let flows = hidden(report.flows.len(), report.others.flows);
    let sources = hidden(report.files.len() + report.elsewhere.len(), report.others.sources);
    if flows + sources == 0 {
        return String::new();
    }
    format!("{DIM}{flows} more flows and {sources} more sources, with fewer bytes or gone silent{DIM:#}\n")
}

fn style(share: Option<f64>) -> anstyle::Style {
    match share {
        Some(share) if share >= 0.999 => GOOD,
        Some(share) if share <= 0.01 => BAD,
        _ => WARN,
    }
}

/// A part of payload bytes; of none it is not known.
fn percent(part: u64, whole: u64) -> String {
    figures::percent(part, whole).unwrap_or_else(|| "?".to_owned())
}
