//! `vnic report --html`: one page that redraws the textbook's pictures from the measurements.
//!
//! For each row one drawing: the file's page-cache pages on the left, the NIC on the right, and between them the two ways
//! the payload can take, straight or through copies in other memory, each as wide as its share of the bytes. The page
//! fetches nothing. The record is a file like any other: `maud` escapes what stands in it.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use vnic::hardware::Model;
use vnic_experiment::run::{Method, PageLife, Run, Verdict, Watched};

use super::table::NULL;
use super::{classic, figures, hardware, report};

const STYLE: &str = "\
:root{--ink:#1d2733;--soft:#68788a;--line:#d6dde5;--paper:#fbfcfd;--zero:#1a7f5a;--copy:#c2571a;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e4eaf0;--soft:#93a2b1;--line:#33404d;--paper:#141a20;--zero:#4cc396;\
--copy:#f0905a;--bad:#ff8a80}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem;margin:1.5rem 0 .5rem}p.about,.why,footer{color:var(--soft)}footer{margin-top:1.5rem}
.rows{display:grid;grid-template-columns:repeat(auto-fill,minmax(21rem,1fr));gap:1rem;margin:1.5rem 0}
figure{margin:0;border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem}
figcaption{font-weight:600;display:flex;justify-content:space-between;gap:1rem}
.why{font-size:.8rem;margin:.2rem 0 0}
svg{width:100%;height:auto;display:block}svg text{font:11px system-ui,sans-serif;fill:var(--ink);text-anchor:middle}
.box{fill:var(--paper);stroke:var(--line);stroke-width:1.5}.soft{fill:var(--soft)!important}
.bars text.end{text-anchor:end}.bars text.start{text-anchor:start}.bars rect{stroke:none}
.descriptors{fill:var(--ink)}.rest{fill:var(--soft)}
.zero{stroke:var(--zero);fill:var(--zero);opacity:.8}.copy{stroke:var(--copy);fill:var(--copy);opacity:.8}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child,.word{text-align:left}
.z{color:var(--zero)}.c{color:var(--copy)}.b{color:var(--bad);font-weight:600}.scroll{overflow-x:auto}";

const CONDUCTED: &str = "Measured by vnic: the NIC's descriptors against the physical addresses of the file's pages, the guest \
    kernel's own accounts, the guest's memory read from outside.";
const WATCHED: &str = "Measured by vnic: the NIC's descriptors, and whose memory they point at by the structures of the guest's \
    own kernel, read from outside.";

/// The whole page.
pub(crate) fn page(run: &Run, surprises: &[String], models: &[Model]) -> String {
    // A witness that was not there cannot say that what lies elsewhere are copies: a program may have made it there.
    let elsewhere = if run.watched.is_some() { "elsewhere" } else { "copies" };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                title { "Who copied the file?" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Who copied the file?" }
                p.about { (report::about(run)) }
                div.rows { @for method in &run.methods { (figure(method, elsewhere)) } }
                @if let Some(watched) = &run.watched { (files(watched)) } @else {
                    (table(run))
                    (classic_table(run))
                    (hardware::pictures(run, models))
                    @for method in &run.methods { @if let Some(life) = &method.page_life { (page_life(method, life)) } }
                }
                @for surprise in surprises { p.b { (surprise) } }
                @for method in run.methods.iter().filter(|_| run.watched.is_none()) {
                    @for (heads, reason) in report::missing(method) {
                        p.why { (NULL) " " (method.method) ": " (heads) ": " (reason) }
                    }
                }
                footer { (if run.watched.is_some() { WATCHED } else { CONDUCTED }) }
            }
        }
    };
    page.into_string()
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

/// A way's width in the drawing: by its share, but never so thin that it cannot be seen.
fn width(part: u64, whole: u64) -> f64 {
    if part == 0 { 0.0 } else { (18.0 * part as f64 / whole as f64).max(1.5) }
}

fn figure(method: &Method, elsewhere: &str) -> Markup {
    let (class, word) = verdict(method);
    let device = &method.device;
    html! {
        figure {
            figcaption { span { (method.method) } span class=(class) { (word) } }
            @match (device.payload_bytes, device.from_page_cache_bytes, device.from_elsewhere_bytes) {
                (Some(whole), Some(cached), Some(other)) if whole > 0 => (drawing(whole, cached, other, elsewhere)),
                _ => p.why { "No drawing: the device has no figures." }
            }
            @if let (Some(descriptors), Some(chains)) = (device.descriptors, device.chains) {
                p.why { (figures::count(descriptors)) " descriptors in " (figures::count(chains)) " chains" }
            }
            p.why { (method.why) }
        }
    }
}

fn drawing(whole: u64, cached: u64, elsewhere: u64, name: &str) -> Markup {
    let share = |part| figures::percent(part, whole).unwrap_or_default();
    // Half of an arrow's head, somewhat wider than its way.
    let half = |part| width(part, whole) / 2.0 + 5.0;
    html! {
        svg viewBox="0 0 340 130" role="img" aria-label="Ways of the payload" {
            // The ways first, so that the boxes lie on top; each ends in a head that points at the NIC.
            @if elsewhere > 0 {
                g.copy {
                    path d="M60 66 C60 104 90 104 128 104 L212 104 C250 104 290 104 290 78" fill="none"
                        stroke-width=(format!("{:.1}", width(elsewhere, whole))) {}
                    path d=(format!("M{:.1} 79 h{:.1} L290 67 Z", 290.0 - half(elsewhere), 2.0 * half(elsewhere))) stroke="none" {}
                }
            }
            @if cached > 0 {
                g.zero {
                    path d="M90 40 L238 40" stroke-width=(format!("{:.1}", width(cached, whole))) {}
                    path d=(format!("M237 {:.1} v{:.1} L249 40 Z", 40.0 - half(cached), 2.0 * half(cached))) stroke="none" {}
                }
            }
            @for (x, name) in [(10, "page cache"), (250, "NIC")] {
                rect.box x=(x) y="14" width="80" height="52" rx="5" {}
                text x=(x + 40) y="44" { (name) }
            }
            @if elsewhere > 0 {
                rect.box x="128" y="86" width="84" height="36" rx="5" {}
                text x="170" y="101" { (name) }
                text.soft x="170" y="115" { (share(elsewhere)) }
            }
            text.soft x="170" y="22" { (share(cached)) " straight" }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_as_wide_as_its_share_and_never_invisible() {
        assert_eq!(width(0, 100), 0.0);
        assert_eq!(width(100, 100), 18.0);
        assert_eq!(width(50, 100), 9.0);
        assert_eq!(width(1, 1_000_000), 1.5);
    }
}
