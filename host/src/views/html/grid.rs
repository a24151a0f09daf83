//! All verdicts at a glance: methods down, file systems and what the NIC can across.

use maud::{Markup, html};
use vnic_experiment::row::Row;
use vnic_experiment::run::{Method, Run};

/// A row's method as the grid has it: a cold file is another method, a NIC that lacks something another column.
fn method(row: &Method) -> String {
    match Row::parse(&row.method) {
        Ok(parsed) if parsed.cold => parsed.method + "-cold",
        Ok(parsed) => parsed.method,
        Err(_) => row.method.clone(),
    }
}

/// Under which file system, and what the NIC could.
fn column(row: &Method) -> String {
    match &row.filesystem {
        Some(filesystem) => format!("{filesystem}, {}", row.nic),
        None => row.nic.to_string(),
    }
}

/// Each once, in the order in which they come.
fn distinct(run: &Run, of: fn(&Method) -> String) -> Vec<String> {
    let mut found = Vec::new();
    for name in run.methods.iter().map(of) {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// The grid; every verdict leads to its figure.
pub(super) fn grid(run: &Run) -> Markup {
    let columns = distinct(run, column);
    html! {
        h2 id="grid" { "Verdicts" }
        div.scroll { table.grid {
            thead { tr { th scope="col" { "method" } @for name in &columns { th.word scope="col" { (name) } } } }
            tbody {
                @for name in distinct(run, method) {
                    tr {
                        th scope="row" { (name) }
                        @for place in &columns {
                            @let row = run.methods.iter().find(|row| method(row) == name && column(row) == *place);
                            @if let Some(row) = row {
                                @let (class, word) = super::verdict(row);
                                td class={ "word " (class) } { a href={ "#" (super::anchor(row)) } { (word) } }
                            } @else { td.word.soft { "not run" } }
                        }
                    }
                }
            }
        } }
    }
}
