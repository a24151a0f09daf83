//! The table as one page that needs nothing else: colours for verdicts, the evidence behind a click, differences marked.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Filled, NO_SG, NOT_RUN, Table, WHY_NOT_RUN, changes, on_nic};
use crate::cell::State;
use crate::figures::FIGURES;

const STYLE: &str = "\
body{font:14px/1.4 system-ui,sans-serif;margin:1.5em;color:#222;background:#fff}\
table{border-collapse:collapse;margin:.5em 0 1.5em}th,td{border:1px solid #ccc;padding:2px 7px;text-align:right}\
th{background:#f4f4f4;font-weight:600}th[scope=row]{text-align:left;font-family:monospace}\
td{cursor:pointer}td:focus{outline:2px solid #333}\
.zero{background:#c9ecc9}.copied{background:#f6d3cd}.mixed{background:#f8ebc0}.cannot{background:#eee;color:#777}.wrong{background:#c33;color:#fff}\
.changed{box-shadow:inset 0 0 0 2px #36c}\
#evidence{position:sticky;bottom:0;background:#fffbe8;border:1px solid #cb8;padding:.6em 1em;white-space:pre-wrap;max-height:40vh;overflow:auto}\
@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}th{background:#262626}th,td{border-color:#444}.zero{background:#1d4d1d}.copied{background:#5c2a22}.mixed{background:#56491a}.cannot{background:#242424}#evidence{background:#2a2718;border-color:#665}}";

const SCRIPT: &str = "\
const e=document.getElementById('evidence');\
function show(t){if(t&&t.dataset.why!==undefined)e.textContent=t.dataset.why}\
document.addEventListener('click',v=>show(v.target.closest('td')));\
document.addEventListener('keydown',v=>{if(v.key==='Enter')show(v.target)});";

fn class(cell: &Filled) -> &'static str {
    use vnic_experiment::run::Verdict;
    match State::of(cell.row()) {
        State::Measured { verdict: Verdict::ZeroCopy, .. } => "zero",
        State::Measured { verdict: Verdict::Copied, .. } => "copied",
        State::Measured { verdict: Verdict::Mixed, .. } => "mixed",
        State::Lacking(_) => "cannot",
        State::Measured { .. } | State::Failed(_) | State::Open => "wrong",
    }
}

/// What the cell rests on.
fn evidence(cell: &Filled, change: Option<&str>) -> String {
    let (origin, row) = (&cell.origin, cell.row());
    let verdict = row.verdict.map_or("no verdict", |verdict| verdict.name());
    let mut text = format!("{} · {} · {}: {verdict}\n{}\n", origin.row, origin.filesystem, origin.kernel, row.why);
    let figures = FIGURES.iter().filter_map(|(name, of)| Some(format!("{name} {:.2}", of(row)?)));
    text += &figures.collect::<Vec<_>>().join(" · ");
    for (what, count) in &row.guest.claims {
        text += &format!("\nthe kernel claims: {what}: {count}");
    }
    if let Some(change) = change {
        text += &format!("\nbefore: {change}");
    }
    text
}

fn cell(table: &Table, at: usize, filesystem: &str, row: &str) -> Markup {
    let Some(cell) = table.cell(&table.kernels[at], filesystem, row) else {
        let why = format!("{row} · {filesystem} · {}: {WHY_NOT_RUN}", table.kernels[at]);
        return html! { td.cannot tabindex="0" data-why=(why) { (NOT_RUN) } };
    };
    let before = at.checked_sub(1).and_then(|at| table.cell(&table.kernels[at], filesystem, row));
    let change = before.and_then(|before| changes::change(before, cell));
    let class = format!("{}{}", class(cell), if change.is_some() { " changed" } else { "" });
    html! { td class=(class) tabindex="0" data-why=(evidence(cell, change.as_deref())) title=[change.as_deref()] { (cell.short()) } }
}

fn grid(table: &Table, at: usize, suffix: &str) -> Markup {
    let rows = table.rows.iter().map(|row| (row, on_nic(row, suffix)));
    let kernel = &table.kernels[at];
    let is_there =
        |name: &str| table.filesystems.iter().any(|filesystem| table.cell(kernel, filesystem, name).is_some());
    html! {
        table {
            thead { tr { th { } @for filesystem in &table.filesystems { th scope="col" { (filesystem) } } } }
            tbody {
                @for (row, name) in rows.filter(|(_, name)| is_there(name)) {
                    tr { th scope="row" { (row) } @for filesystem in &table.filesystems { (cell(table, at, filesystem, &name)) } }
                }
            }
        }
    }
}

pub(super) fn page(table: &Table) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "Is sendfile still zero-copy?" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Is sendfile still zero-copy?" }
                p {
                    "How often the CPU copied each payload byte, per kernel, method and file system. A click shows what a cell rests on. "
                    span.zero { " zero-copy " } " " span.copied { " copied " } " " span.mixed { " mixed " } " "
                    span.cannot { " – cannot be done, or not run " } " " span.wrong { " failed, or witnesses disagree " } " "
                    span.changed { " other than on the kernel before " }
                }
                @for at in (0..table.kernels.len()).rev() {
                    h2 { "Linux " (table.kernels[at]) }
                    h3 { "A NIC with scatter-gather" }
                    (grid(table, at, ""))
                    h3 { "Without scatter-gather" }
                    (grid(table, at, NO_SG))
                }
                div #evidence { "Nothing is chosen." }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}
