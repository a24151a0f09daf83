//! `vnic verdict`, and `vnic report` of its record: the flows of a VM that was watched, and their verdicts.

use std::io::{self, IsTerminal};
use std::time::Duration;

use anyhow::Result;
use comfy_table::Cell;
use indicatif::{ProgressBar, ProgressStyle};
use vnic::observe::protocol::Report;
use vnic::provenance::descriptors_per_mib;
use vnic_experiment::run::{Method, Run, Verdict, Watched};

use super::figures;
use super::style::{BAD, DIM, GOOD, PLAIN, WARN};
use super::table::{Align, NULL, paragraph, styled, table};

/// Flows of which it is said what their verdict rests on.
const REASONS: usize = 5;
/// Flows, and files, that are listed.
const LINES: usize = 20;

/// A bar while it is watched, on a terminal; elsewhere a line.
pub(crate) struct Progress(Option<ProgressBar>);

impl Progress {
    /// Of so long a watch.
    pub(crate) fn new(time: Duration) -> Self {
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if !io::stderr().is_terminal() {
            anstream::eprintln!("watches for {:.1} s", time.as_secs_f64());
            return Progress(None);
        }
        let bar = ProgressBar::new(milliseconds);
        if let Ok(style) = ProgressStyle::with_template("{spinner} watches {wide_bar:.green} {msg}") {
            bar.set_style(style);
        }
        Progress(Some(bar))
    }

    /// So much was seen.
    pub(crate) fn tick(&mut self, report: &Report) {
        if let Some(bar) = &self.0 {
            bar.set_position((report.seconds * 1000.0) as u64);
            let flows = if report.flows.len() == 1 { "flow" } else { "flows" };
            bar.set_message(format!("{} sent in {} {flows}", figures::bytes(report.bytes), report.flows.len()));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// The flows, each with its verdict and what that rests on.
pub(crate) fn show(run: &Run) -> Result<()> {
    super::put(text(run))
}

pub(super) fn text(run: &Run) -> String {
    let mut text = run.watched.as_ref().map(|watched| paragraph(about(run, watched), PLAIN)).unwrap_or_default();
    if run.methods.is_empty() {
        return text + &paragraph("Nothing was sent over TCP or UDP meanwhile: there is nothing to judge.", WARN);
    }
    text += &format!("\n{}", flows(run));
    let files = run.watched.as_ref().map(|watched| watched.files.as_slice()).unwrap_or_default();
    if !files.is_empty() {
        let columns = [("files whose own pages were sent", Align::Left), ("bytes", Align::Right)];
        let row = |file: &vnic_experiment::run::WatchedFile| {
            vec![styled(&file.name, GOOD), Cell::new(figures::bytes(file.bytes))]
        };
        text += &format!("\n{}", table(&columns, files.iter().take(LINES).map(row).collect()));
    }
    let hidden =
        [(run.methods.len(), "flows"), (files.len(), "files")].map(|(all, what)| (all.saturating_sub(LINES), what));
    for (count, what) in hidden.into_iter().filter(|(count, _)| *count > 0) {
        text += &paragraph(format!("{count} more {what}, with fewer bytes"), DIM);
    }
    text.push('\n');
    for method in run.methods.iter().take(REASONS) {
        text += &paragraph(format!("{}: {}", method.method, method.why), DIM);
    }
    let more = run.methods.len().saturating_sub(REASONS);
    if more > 0 {
        text += &paragraph(format!("What the verdicts on {more} more flows rest on is in the record (--output)."), DIM);
    }
    text
}

/// How long, and how much was seen.
pub(super) fn about(run: &Run, watched: &Watched) -> String {
    let seen = match watched.seen_share {
        None => "nothing was sent".to_owned(),
        Some(share) if share >= 1.0 => format!("{} sent, all of it seen", figures::bytes(watched.passed_bytes)),
        Some(share) => format!(
            "{} sent, {:.1} % of it seen: the figures are of that",
            figures::bytes(watched.passed_bytes),
            share * 100.0
        ),
    };
    format!("Linux {}, watched for {:.1} s: {seen}", run.kernel, watched.seconds)
}

fn flows(run: &Run) -> String {
    let columns = [
        ("flow", Align::Left),
        ("verdict", Align::Left),
        ("bytes", Align::Right),
        ("from files", Align::Right),
        ("descriptors/MiB", Align::Right),
    ];
    let row = |method: &Method| {
        let (word, style) = match method.verdict {
            Some(verdict) => (
                verdict.to_string(),
                match verdict {
                    Verdict::ZeroCopy => GOOD,
                    Verdict::Copied => BAD,
                    Verdict::Mixed | Verdict::WitnessesDisagree => WARN,
                },
            ),
            None => ("not known".to_owned(), WARN),
        };
        let device = &method.device;
        let bytes = device.payload_bytes.unwrap_or_default();
        let per_mib = device.descriptors.map(|count| descriptors_per_mib(count, bytes));
        let share = device.from_page_cache_bytes.and_then(|part| figures::percent(part, bytes));
        vec![
            Cell::new(&method.method),
            styled(word, style),
            Cell::new(figures::bytes(bytes)),
            Cell::new(share.as_deref().unwrap_or(NULL)),
            Cell::new(per_mib.map_or_else(|| NULL.to_owned(), |count| format!("{count:.1}"))),
        ]
    };
    table(&columns, run.methods.iter().take(LINES).map(row).collect())
}
