//! Two records on one page: what changed, then each row's figures side by side.

use maud::{Markup, html};
use vnic_experiment::run::Run;

use super::super::changes::{Change, NOTE, NOTHING};
use super::super::table::NULL;
use super::super::{classic, report};

/// The page's body.
pub(super) fn body(before: &Run, after: &Run, changes: &[Change]) -> Markup {
    let sides = [("before", before, classic::lines(before)), ("after", after, classic::lines(after))];
    html! {
        h1 { "What changed?" }
        @for (side, run, _) in &sides { p.about { b { (side) } ": " (report::about(run)) } }
        @if changes.is_empty() { p.z { (NOTHING) } } @else { (table(changes)) }
        p.why { (NOTE) }
        @for method in &before.methods {
            @let name = classic::name(method);
            h2 { (name) }
            div.rows {
                @for (side, run, lines) in &sides {
                    @for (method, line) in run.methods.iter().zip(lines).filter(|(method, _)| classic::name(method) == name) {
                        (super::figure(method, line, Some(side)))
                    }
                }
            }
        }
    }
}

fn table(changes: &[Change]) -> Markup {
    html! {
        div.scroll { table {
            thead { tr { th scope="col" { "method" } @for head in ["figure", "before", "after"] { th.word scope="col" { (head) } } } }
            tbody { @for change in changes {
                tr.b[change.is_verdict()] {
                    th scope="row" { (change.row) }
                    td.word { (change.figure) }
                    @for value in [&change.before, &change.after] { td.word { (value.as_deref().unwrap_or(NULL)) } }
                }
            } }
        } }
    }
}
