//! `vnic report --html`: one page that redraws the textbook's figures from the measurements.
//!
//! | module | one sentence |
//! |---|---|
//! | [`grid`] | all verdicts at a glance |
//! | [`way`] | for each row the textbook's figure: switches above, copies between the lanes, DMA at the ends |
//! | [`histogram`] | how long its descriptors are |
//! | [`chart`] | the rows side by side, as bars |
//! | [`lives`] | all pages of a file over time |
//! | [`changes`] | two records side by side |
//! | [`style`] | colours, light and dark, and for paper |
//!
//! The page fetches nothing and runs nothing. The record is a file like any other: `maud` escapes what stands in it.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use vnic::hardware::Model;
use vnic_experiment::run::{Method, PageLife, Run, Verdict, Watched};

use super::changes::Change;
use super::classic::Line;
use super::table::NULL;
use super::{classic, figures, hardware, report};

mod changes;
mod chart;
pub(crate) mod grid;
mod histogram;
mod lives;
mod style;
mod way;

const CONDUCTED: &str = "Measured by vnic: the NIC's descriptors against the physical addresses of the file's pages, the guest \
    kernel's own accounts, the guest's memory read from outside.";
const WATCHED: &str = "Measured by vnic: the NIC's descriptors, and whose memory they point at by the structures of the guest's \
    own kernel, read from outside.";

/// The card whose bus the chart is about, where none was named.
const CARD: &str = "82599";

/// The whole page; its grid has the verdicts of `parts`, of which the first is the run's.
pub(crate) fn page(run: &Run, parts: &[grid::Part<'_>], surprises: &[String], models: &[Model]) -> String {
    let lines = classic::lines(run);
    let body = html! {
        h1 { "Who copied the file?" }
        p.about { (report::about(run)) }
        @for surprise in surprises { p.b { (surprise) } }
        @if run.watched.is_none() { (grid::grid(parts)) }
        div.rows { @for (method, line) in run.methods.iter().zip(&lines) { (figure(method, line, None)) } }
        @if let Some(watched) = &run.watched { (files(watched)) } @else { (conducted(run, &lines, models)) }
        footer { (if run.watched.is_some() { WATCHED } else { CONDUCTED }) }
    };
    whole("Who copied the file?", &body)
}

/// The page of two records.
pub(crate) fn page_of_two(before: &Run, after: &Run, changes: &[Change]) -> String {
    whole("What changed?", &changes::body(before, after, changes))
}

fn whole(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                title { (title) }
                style { (PreEscaped(style::STYLE)) }
            }
            body { (body) }
        }
    };
    page.into_string()
}

/// What there is of transfers that were conducted: figures of the guest's too.
fn conducted(run: &Run, lines: &[Line<'_>], models: &[Model]) -> Markup {
    let card = models.first().cloned().or_else(|| CARD.parse().ok());
    html! {
        @if let Some(card) = &card { (chart::chart(run, lines, card)) }
        h2 { "What the card was handed" }
        (table(run))
        (classic_table(run))
        (hardware::pictures(run, models))
        @for method in &run.methods { @if let Some(life) = &method.page_life { (page_life(method, life)) } }
        @for method in &run.methods {
            @for (heads, reason) in report::missing(method) {
                p.why { (NULL) " " (method.method) ": " (heads) ": " (reason) }
            }
        }
    }
}

/// Class and word of a row's verdict.
fn verdict(method: &Method) -> (&'static str, String) {
    let class = match method.verdict {
        verdict if method.expected.is_some() && verdict != method.expected => "b",
        Some(Verdict::ZeroCopy) => "z",
        Some(Verdict::Copied) => "c",
        Some(Verdict::WitnessesDisagree) => "b",
        Some(Verdict::Mixed) | None => "",
    };
    (class, method.verdict.map_or_else(|| "no verdict".to_owned(), |verdict| verdict.to_string()))
}

/// A row's figures; `side` is the record's, where there are two.
fn figure(method: &Method, line: &Line<'_>, side: Option<&str>) -> Markup {
    let (class, word) = verdict(method);
    let anchor = side.into_iter().chain([anchor(method).as_str()]).collect::<Vec<_>>().join("-");
    html! {
        figure id=(anchor) {
            figcaption { span { @if let Some(side) = side { (side) ": " } (classic::name(method)) " " span.soft { "on " (method.nic) } } span class=(class) { (word) } }
            (way::figure(method, line))
            @if let Some(shapes) = &method.dma.shapes { (histogram::figure(&shapes.pieces)) }
            p.why { (method.why) }
        }
    }
}

/// What a row's figure can be linked by.
fn anchor(method: &Method) -> String {
    classic::name(method).replace(|sign: char| !sign.is_ascii_alphanumeric(), "-")
}

fn files(watched: &Watched) -> Markup {
    html! {
        div.scroll { table {
            thead { tr { th { "files whose own pages were sent" } th { "bytes" } } }
            tbody { @for file in &watched.files { tr { td { (file.name) } td { (figures::bytes(file.bytes)) } } } }
        } }
    }
}

/// What happened to one page of a row's file.
fn page_life(method: &Method, life: &PageLife) -> Markup {
    html! {
        @if !life.others.is_empty() {
            h2 { (method.method) ": when the disk filled each page, and the NIC sent it" }
            figure { (lives::figure(&life.others)) }
        }
        h2 { (method.method) ": what happened to page " (life.page) " of its file, at " (format!("{:#x}", life.gpa)) }
        ol.life { @for step in &life.steps { li { b { (format!("{:.6} s", step.seconds)) } " " (step.what) ", " (step.bytes) " bytes" } } }
    }
}

fn table(run: &Run) -> Markup {
    html! {
        div.scroll { table {
            thead { tr {
                th { "method" } th.word { "nic" }
                @for (head, _, _) in report::FIGURES { th { (head) } }
                th.word { "sha256" } th.word { "verdict" }
            } }
            tbody {
                @for method in &run.methods {
                    @let (class, word) = verdict(method);
                    tr {
                        td { (classic::name(method)) } td.word { (method.nic) }
                        @for (_, _, show) in report::FIGURES { td { (show(method).as_deref().unwrap_or(NULL)) } }
                        td.word.b[method.sha256_ok == Some(false)] { (report::digest(method).unwrap_or(NULL)) }
                        td class={ "word " (class) } { (word) }
                    }
                }
            }
        } }
    }
}

fn classic_table(run: &Run) -> Markup {
    html! {
        h2 { (classic::TITLE) }
        div.scroll { table {
            thead { tr { th { "method" } @for (head, _) in classic::HEADS { th.word { (head) } } } }
            tbody {
                @for (method, line) in run.methods.iter().zip(classic::lines(run)) {
                    tr {
                        td { (classic::name(method)) }
                        @for cell in line.cells() { td.word { (cell.as_deref().unwrap_or(NULL)) } }
                    }
                }
            }
        } }
        p.why { (classic::NOTE) }
        @for line in classic::missing(run) { p.why { (NULL) " " (line) } }
        @for line in classic::notes(run) { p.why { (line) } }
    }
}
