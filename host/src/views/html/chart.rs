//! The rows side by side: what each costs, as bars with their figures.

use maud::{Markup, html};
use vnic::hardware::Model;
use vnic_experiment::run::{Method, Run};

use super::super::classic::{self, Line};
use super::super::hardware;
use super::super::table::NULL;

/// A figure of a row that bars can be drawn of.
struct Measure {
    head: String,
    /// Digits behind the point.
    digits: usize,
    /// One of each row, in their order.
    values: Vec<Option<f64>>,
}

/// Bytes of a MiB.
const MIB: f64 = (1_u64 << 20) as f64;

fn measures(run: &Run, lines: &[Line<'_>], model: &Model) -> Vec<Measure> {
    let of_method = |of: &dyn Fn(&Method) -> Option<f64>| run.methods.iter().map(of).collect();
    let switches = of_method(&|method| {
        let bytes = method.bytes_sent.filter(|bytes| *bytes > 0)?;
        Some(method.guest.mode_switches? as f64 * MIB / bytes as f64)
    });
    let bus = of_method(&|method| {
        let cost = hardware::cost(method, model)?;
        let payload = method.device.payload_bytes.filter(|bytes| *bytes > 0)?;
        Some((cost.bus_bytes_up + cost.bus_bytes_down) as f64 / payload as f64)
    });
    let measure = |head: &str, digits, values| Measure { head: head.to_owned(), digits, values };
    vec![
        measure("mode switches per MiB", 1, switches),
        measure("CPU copies", 2, of_method(&|method| method.cpu_copies)),
        measure("DMA copies", 2, of_method(&|method| method.dma_copies)),
        measure("CPU s/GiB", 2, lines.iter().map(|line| line.cpu_seconds_per_gib).collect()),
        measure(&format!("bus bytes per byte ({model})"), 3, bus),
    ]
}

/// The chart: a table, so that it can be read without being seen.
pub(super) fn chart(run: &Run, lines: &[Line<'_>], model: &Model) -> Markup {
    let measures = measures(run, lines, model);
    html! {
        h2 id="compared" { "What each method costs" }
        div.scroll { table.bars-of {
            thead { tr { th scope="col" { "method" } @for measure in &measures { th.word scope="col" { (measure.head) } } } }
            tbody {
                @for (at, method) in run.methods.iter().enumerate() {
                    tr {
                        th scope="row" { a href={ "#" (super::anchor(method)) } { (classic::name(method)) } }
                        @for measure in &measures { (bar(measure, at)) }
                    }
                }
            }
        } }
    }
}

fn bar(measure: &Measure, at: usize) -> Markup {
    let most = measure.values.iter().flatten().copied().fold(0.0, f64::max);
    match measure.values.get(at).copied().flatten() {
        Some(value) => html! {
            td.word {
                span.bar style=(format!("width:{:.1}%", if most > 0.0 { 60.0 * value / most } else { 0.0 })) {}
                (format!("{value:.0$}", measure.digits))
            }
        },
        None => html! { td.word { (NULL) } },
    }
}
