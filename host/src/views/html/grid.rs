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

/// A record whose verdicts are in the grid, and what tells its columns from the others'.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'r> {
    pub(crate) name: &'r str,
    pub(crate) run: &'r Run,
}

impl Part<'_> {
    /// The column of one of its rows.
    fn column(&self, row: &Method) -> String {
        if self.name.is_empty() { column(row) } else { format!("{}: {}", self.name, column(row)) }
    }
}

/// Each once, in the order in which they come.
fn distinct(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut found = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// The grid; every verdict of the first record leads to its figure.
pub(super) fn grid(parts: &[Part<'_>]) -> Markup {
    let rows = || parts.iter().flat_map(|part| part.run.methods.iter().map(move |row| (part, row)));
    let columns = distinct(rows().map(|(part, row)| part.column(row)));
    let first = parts.first().map(|part| part.name);
    html! {
        h2 id="grid" { "Verdicts" }
        div.scroll { table.grid {
            thead { tr { th scope="col" { "method" } @for name in &columns { th.word scope="col" { (name) } } } }
            tbody {
                @for name in distinct(rows().map(|(_, row)| method(row))) {
                    tr {
                        th scope="row" { (name) }
                        @for place in &columns {
                            @if let Some((part, row)) = rows().find(|(part, row)| method(row) == name && part.column(row) == *place) {
                                @let (class, word) = super::verdict(row);
                                td class={ "word " (class) } {
                                    @if Some(part.name) == first { a href={ "#" (super::anchor(row)) } { (word) } } @else { (word) }
                                }
                            } @else { td.word.soft { "not run" } }
                        }
                    }
                }
            }
        } }
    }
}
