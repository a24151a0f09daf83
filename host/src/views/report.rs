//! `vnic report`: the table of a run.

use anyhow::Result;
use vnic::hardware::Model;
use vnic_experiment::run::{Method, Run, Verdict};

use comfy_table::Cell;

use super::style::{BAD, DIM, GOOD, HEAD, PLAIN, WARN};
use super::table::{Align, NULL, paragraph, styled, table as aligned};
use super::{classic, figures, hardware, life, verdict};

/// The columns that can be `null`: head, the figure's path in the record, and how it is shown.
type Column = (&'static str, &'static str, fn(&Method) -> Option<String>);

/// Figures between `nic` and `sha256`.
pub(super) const FIGURES: &[Column] = &[
    ("chains", "device.chains", |m| m.device.chains.map(figures::count)),
    ("descriptors", "device.descriptors", |m| m.device.descriptors.map(figures::count)),
    ("bytes sent", "bytes_sent", |m| m.bytes_sent.map(figures::bytes)),
    ("from page cache", "device.from_page_cache_bytes", |m| share(m, m.device.from_page_cache_bytes)),
];

fn share(method: &Method, part: Option<u64>) -> Option<String> {
    figures::percent(part?, method.device.payload_bytes?)
}

/// `ok`, `WRONG`, or nothing.
pub(super) fn digest(method: &Method) -> Option<&'static str> {
    method.sha256_ok.map(|ok| if ok { "ok" } else { "WRONG" })
}

/// Why a figure of a row is missing.
pub(super) fn reason<'a>(method: &'a Method, path: &str) -> &'a str {
    // A share is missing when its whole is.
    let keys = [path, "device.payload_bytes"];
    keys.iter()
        .find_map(|key| method.reasons.get(*key))
        .or_else(|| method.reasons.get("verdict"))
        .map_or("the record gives no reason", String::as_str)
}

/// Missing figures of a row, as (column heads, reason), the same reason once.
pub(super) fn missing(method: &Method) -> Vec<(String, &str)> {
    let mut found: Vec<(String, &str)> = Vec::new();
    let mut note = |head: &str, path: &str| {
        let reason = reason(method, path);
        match found.iter_mut().find(|(_, known)| *known == reason) {
            Some((heads, _)) => {
                heads.push_str(", ");
                heads.push_str(head);
            }
            None => found.push((head.to_owned(), reason)),
        }
    };
    for (head, path, show) in FIGURES {
        if show(method).is_none() {
            note(head, path);
        }
    }
    if method.sha256_ok.is_none() {
        note("sha256", "sha256_ok");
    }
    if method.verdict.is_none() {
        note("verdict", "verdict");
    }
    found
}

/// The table, what is missing and why, and what is not as expected.
pub(crate) fn show(run: &Run, surprises: &[String], models: &[Model]) -> Result<()> {
    super::put(if run.watched.is_some() { verdict::text(run) } else { text(run, surprises, models) })
}

fn text(run: &Run, surprises: &[String], models: &[Model]) -> String {
    let dim = |line: String| paragraph(line, DIM);
    let mut text = format!("{}\n{}", paragraph(about(run), PLAIN), table(run));
    for method in &run.methods {
        for (heads, reason) in missing(method) {
            text += &dim(format!("{NULL} {}: {heads}: {reason}", classic::name(method)));
        }
    }
    text += &format!("\n{}\n{}", paragraph(format!("{}:", classic::TITLE), PLAIN), classic::table(run));
    text.extend(classic::missing(run).into_iter().map(|line| dim(format!("{NULL} {line}"))));
    text.extend(classic::notes(run).into_iter().map(|line| paragraph(line, PLAIN)));
    text += &(dim(classic::NOTE.to_owned()) + &hardware::text(run, models));
    text += &(life::of_rows(run) + "\n");
    if surprises.is_empty() {
        text += &paragraph("Every digest matches and every verdict is the expected one.", GOOD);
    } else {
        text += &paragraph("Not as expected:", HEAD);
        text.extend(surprises.iter().map(|surprise| paragraph(surprise, BAD)));
    }
    text
}

/// What ran, in a line.
pub(super) fn about(run: &Run) -> String {
    if let Some(watched) = &run.watched {
        return verdict::about(run, watched);
    }
    format!(
        "Linux {} under QEMU {} ({}), a file of {} on {}",
        run.kernel,
        run.qemu.as_deref().unwrap_or("of unknown version"),
        run.accel.as_deref().unwrap_or("accelerator not told"),
        figures::bytes(run.file.bytes),
        run.file.filesystem
    )
}

fn table(run: &Run) -> String {
    let mut columns = vec![("method", Align::Left), ("nic", Align::Left)];
    columns.extend(FIGURES.iter().map(|(head, _, _)| (*head, Align::Right)));
    columns.extend([("sha256", Align::Left), ("verdict", Align::Left)]);
    let rows = run.methods.iter().map(|method| {
        let mut cells = vec![Cell::new(classic::broken_name(method)), Cell::new(method.nic)];
        cells.extend(FIGURES.iter().map(|(_, _, show)| Cell::new(show(method).as_deref().unwrap_or(NULL))));
        let style = if method.sha256_ok == Some(false) { BAD } else { PLAIN };
        cells.push(styled(digest(method).unwrap_or(NULL), style));
        let style = match (method.verdict, method.expected) {
            (Some(Verdict::ZeroCopy), Some(Verdict::ZeroCopy)) => GOOD,
            (verdict, Some(_)) if verdict != method.expected => BAD,
            (Some(Verdict::Mixed | Verdict::WitnessesDisagree), _) => WARN,
            _ => PLAIN,
        };
        cells.push(styled(method.verdict.map_or_else(|| NULL.to_owned(), |verdict| verdict.to_string()), style));
        cells
    });
    aligned(&columns, rows.collect())
}
