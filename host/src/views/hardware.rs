//! `vnic report --hardware`: what the chains of a run would cost cards of hardware, a table and a picture for each.

use comfy_table::Cell;
use maud::{Markup, html};
use schemars::JsonSchema;
use serde::Serialize;
use vnic::hardware::{Direction, Figures, Model, Parts, Traffic};
use vnic_experiment::run::{Method, Run, Verdict};

use super::style::{DIM, GOOD, PLAIN, WARN};
use super::table::{Align, NULL, paragraph, styled, table};
use super::{classic, figures};

/// A row of a run, on one card.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Line<'a> {
    method: &'a str,
    filesystem: Option<&'a str>,
    verdict: Option<Verdict>,
    /// `null`: the record does not have the shapes of its chains.
    cost: Option<Figures>,
}

/// The rows of a run, on one card.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct WhatIf<'a> {
    model: &'a str,
    rows: Vec<Line<'a>>,
}

/// The rows on each of these cards.
pub(crate) fn lines<'a>(run: &'a Run, models: &'a [Model]) -> Vec<WhatIf<'a>> {
    let line = |method: &'a Method, model: &Model| Line {
        method: &method.method,
        filesystem: method.filesystem.as_deref(),
        verdict: method.verdict,
        cost: cost(method, model),
    };
    let on = |model: &'a Model| run.methods.iter().map(|method| line(method, model)).collect();
    models.iter().map(|model| WhatIf { model: &model.name, rows: on(model) }).collect()
}

/// What a row would cost that card, where the record has the shapes of its chains.
pub(super) fn cost(method: &Method, model: &Model) -> Option<Figures> {
    let shapes = method.dma.shapes.as_ref()?;
    Some(Figures::new(model, &model.account(Direction::Transmit, shapes)))
}

/// The rows that have costs.
fn costs<'a>(run: &'a Run, model: &Model) -> Vec<(&'a Method, Figures)> {
    run.methods.iter().filter_map(|method| Some((method, cost(method, model)?))).collect()
}

/// The tables.
pub(super) fn text(run: &Run, models: &[Model]) -> String {
    models.iter().map(|model| on(run, model)).collect()
}

fn on(run: &Run, model: &Model) -> String {
    let columns = [("method", Align::Left), ("verdict", Align::Left)];
    let columns = [&columns[..], &COLUMNS].concat();
    let row = |method: &Method| {
        let style = match method.verdict {
            Some(Verdict::ZeroCopy) => GOOD,
            Some(Verdict::WitnessesDisagree) => WARN,
            _ => PLAIN,
        };
        let verdict = method.verdict.map_or_else(|| NULL.to_owned(), |verdict| verdict.to_string());
        let mut cells = vec![Cell::new(classic::broken_name(method)), styled(verdict, style)];
        cells.extend(match cost(method, model) {
            Some(cost) => self::cells(&cost).map(Cell::new),
            None => std::array::from_fn(|_| Cell::new(NULL)),
        });
        cells
    };
    let mut text = format!("\n{}\n", paragraph(format!("{}:", title(model)), PLAIN));
    text += &table(&columns, run.methods.iter().map(row).collect());
    text.extend(notes(run, model).into_iter().map(|note| paragraph(note, DIM)));
    text
}

/// What [`cells`] are of.
pub(super) const COLUMNS: [(&str, Align); 6] = [
    ("descriptors", Align::Right),
    ("round trips", Align::Right),
    ("bus bytes", Align::Right),
    ("bus time", Align::Right),
    ("limit", Align::Left),
    ("at most", Align::Right),
];

/// A cost, as [`COLUMNS`] have it.
pub(super) fn cells(cost: &Figures) -> [String; 6] {
    [
        figures::count(cost.descriptors),
        figures::count(cost.round_trips),
        figures::bytes(cost.bus_bytes_down.saturating_add(cost.bus_bytes_up)),
        milliseconds(cost.bus_seconds),
        cost.limit.name().to_owned(),
        cost.gbit_per_s.map_or_else(|| NULL.to_owned(), |rate| format!("{rate:.1} Gb/s")),
    ]
}

/// The card, and its bus where it has one.
fn title(model: &Model) -> String {
    let Some(hardware) = &model.hardware else { return format!("On a card that costs nothing ({model})") };
    let bus = &hardware.bus;
    format!(
        "On a {model}: PCIe {} x{}, MPS {}, MRRS {}, {:.2} Gb/s in either direction",
        bus.generation,
        bus.lanes,
        bus.mps,
        bus.mrrs,
        bus.usable_gbit_per_s()
    )
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.3} ms", seconds * 1e3)
}

/// What is to be known beside the figures, each said once for all the rows it is true of.
fn notes(run: &Run, model: &Model) -> Vec<String> {
    let costs = costs(run, model);
    let mut notes: Vec<String> = compared(&costs).into_iter().collect();
    let mut note = |words: &str, count: &dyn Fn(&Figures) -> u64| {
        let rows = costs.iter().filter(|(_, cost)| count(cost) > 0);
        let rows: Vec<String> =
            rows.map(|(method, cost)| format!("{} {}", classic::name(method), figures::count(count(cost)))).collect();
        if !rows.is_empty() {
            notes.push(format!("{words}: {}", rows.join(", ")));
        }
    };
    note("Pieces longer than this card takes, each split into several descriptors", &|cost| cost.too_long);
    note("Pieces shorter than this card takes", &|cost| cost.too_short);
    note("Chains of more descriptors than this card takes, which its driver would copy into one piece", &|cost| {
        cost.too_many
    });
    note("Pages whose translation the IO-TLB does not remember", &|cost| cost.iotlb_misses.unwrap_or(0));
    let missing: Vec<String> =
        run.methods.iter().filter(|method| method.dma.shapes.is_none()).map(classic::name).collect();
    if !missing.is_empty() {
        notes.push(format!("{NULL} {}: the record does not have the shapes of these chains", missing.join(", ")));
    }
    let shortened: u64 = run.methods.iter().filter_map(|method| Some(method.dma.shapes.as_ref()?.shortened)).sum();
    if shortened > 0 {
        notes.push(format!("{} pieces or chains were too long to be recorded as they are", figures::count(shortened)));
    }
    notes
}

/// The first zero-copy row beside the first copied one.
fn compared(costs: &[(&Method, Figures)]) -> Option<String> {
    let first = |verdict| costs.iter().find(|(method, _)| method.verdict == Some(verdict) && method.nic.sg);
    let ((zero_copy, cheap), (copied, dear)) = (first(Verdict::ZeroCopy)?, first(Verdict::Copied)?);
    let times = |of: fn(&Figures) -> f64| Some(of(cheap) / of(dear)).filter(|times| times.is_finite());
    let descriptors = times(|cost| cost.descriptors as f64)?;
    let round_trips = times(|cost| cost.round_trips as f64)?;
    let words = format!(
        "{} beside {}: {descriptors:.2} × the descriptors, {round_trips:.2} × the round trips",
        classic::name(zero_copy),
        classic::name(copied)
    );
    Some(match times(|cost| cost.bus_seconds) {
        Some(time) => format!("{words}, {time:.3} × the bus's time."),
        None => words + ".",
    })
}

/// A picture for each card: how long the bus is busy with each row, and with what.
pub(super) fn pictures(run: &Run, models: &[Model]) -> Markup {
    html! {
        @for model in models.iter().filter(|model| model.hardware.is_some()) {
            @let costs = costs(run, model);
            @if !costs.is_empty() {
                h2 { "What zero copy costs the bus" }
                p.about { (title(model)) }
                (picture(&costs))
            }
            @for note in notes(run, model) { p.why { (note) } }
        }
    }
}

/// Height of a row of the picture, and where its bars begin and end.
const ROW: usize = 22;
const LEFT: f64 = 170.0;
const RIGHT: f64 = 690.0;

fn picture(costs: &[(&Method, Figures)]) -> Markup {
    let longest = costs.iter().map(|(_, cost)| cost.bus_seconds).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (RIGHT - LEFT) / longest;
    html! {
        div.scroll { svg.bars viewBox=(format!("0 0 860 {}", ROW * (costs.len() + 1) + 8)) role="img" aria-label="Bus time of each method" {
            @for (at, (method, cost)) in costs.iter().enumerate() {
                @let y = ROW * at;
                text.end x="162" y=(y + 15) { (classic::name(method)) }
                @for (class, from, to) in bars(method, cost, scale) {
                    rect class=(class) x=(format!("{from:.1}")) y=(y + 3) width=(format!("{:.1}", to - from)) height=(ROW - 6) {}
                }
                text.start x=(format!("{:.1}", LEFT + cost.bus_seconds * scale + 6.0)) y=(y + 15) {
                    (milliseconds(cost.bus_seconds)) ", " (figures::count(cost.descriptors)) " descriptors"
                }
            }
            @let y = ROW * costs.len() + 4;
            @for (at, (class, word)) in [("zero", "data, zero-copy"), ("copy", "data"), ("descriptors", "descriptors"), ("rest", "all else")].into_iter().enumerate() {
                rect class=(class) x=(170 + 130 * at) y=(y + 4) width="12" height="12" {}
                text.start.soft x=(187 + 130 * at) y=(y + 14) { (word) }
            }
        } }
    }
}

/// The bars of a row: class, and from where to where.
fn bars(method: &Method, cost: &Figures, scale: f64) -> [(&'static str, f64, f64); 3] {
    let up = cost.bus_bytes_up > cost.bus_bytes_down;
    let bytes = |traffic: Traffic| if up { traffic.up.bytes } else { traffic.down.bytes };
    let Parts { payload, descriptors, .. } = cost.parts;
    let whole = cost.bus_bytes_up.max(cost.bus_bytes_down).max(1) as f64;
    let width = |bytes: u64| bytes as f64 / whole * cost.bus_seconds * scale;
    let data = if method.verdict == Some(Verdict::ZeroCopy) { "zero" } else { "copy" };
    let first = LEFT + width(bytes(payload));
    let second = first + width(bytes(descriptors));
    let third = (LEFT + cost.bus_seconds * scale).max(second);
    [(data, LEFT, first), ("descriptors", first, second), ("rest", second, third)]
}
