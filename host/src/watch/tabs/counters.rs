//! What is counted: drops and errors of all queues by reason, then everything of the queue that is looked at, then the link.

use std::collections::BTreeMap;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span, Text};

use super::super::model::{Model, Tab};
use super::super::theme::{BAD, DIM, GOOD, HEAD};
use crate::views::figures;

pub(crate) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let mut lines = lost(model);
    if let Some(queue) = model.selected() {
        lines.extend([Line::default(), Line::styled(queue.queue.clone(), HEAD)]);
        let rate = |name: &str| model.rates.get(&queue.queue).map(|rates| rates.of(name));
        lines.extend(columns(&queue.counters, rate, area.width));
    }
    for device in model.devices().iter().filter(|device| !device.link_counters.is_empty()) {
        let what = if device.device == "blk" { "disk" } else { "link" };
        lines.extend([Line::default(), Line::styled(format!("{what} {}", device.link), HEAD)]);
        lines.extend(columns(&device.link_counters, |_| None, area.width));
    }
    super::scrolled(frame, area, Text::from(lines), model.scroll[Tab::Counters.at()]);
}

/// Frames that were lost and rings that stopped, by reason.
fn lost(model: &Model) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for queue in model.queues() {
        let named = queue
            .counters
            .iter()
            .filter(|(name, count)| **count > 0 && (name.starts_with("drop_") || name.starts_with("error_")));
        for (name, count) in named {
            let (what, reason) = name.split_once('_').unwrap_or((name, ""));
            let what = if what == "drop" { "frames lost" } else { "times stopped" };
            let rate = model.rates.get(&queue.queue).map_or(0.0, |rates| rates.of(name));
            let now =
                if rate > 0.0 { format!("  {}/s now", figures::count(rate.ceil() as u64)) } else { String::new() };
            let words =
                format!("{:<14} {:>12} {what}: {}{now}", queue.queue, figures::count(*count), reason.replace('_', " "));
            lines.push(Line::styled(words, BAD));
        }
    }
    if lines.is_empty() {
        lines.push(Line::styled("no frame was lost, no ring has stopped", GOOD));
    }
    lines
}

/// Counters in as many columns as there is room for, those that are not zero first.
fn columns(counters: &BTreeMap<String, u64>, rate: impl Fn(&str) -> Option<f64>, width: u16) -> Vec<Line<'static>> {
    let mut all: Vec<(&String, &u64)> = counters.iter().collect();
    all.sort_by_key(|(_, count)| **count == 0);
    let name = counters.keys().map(|name| name.chars().count()).max().unwrap_or_default();
    let cell = name + 36;
    let across = (usize::from(width) / cell).max(1);
    let down = all.len().div_ceil(across);
    let text = |(counter, count): &(&String, &u64)| {
        let rate = rate(counter).filter(|rate| *rate > 0.0).map(|rate| format!("{}/s", figures::count(rate as u64)));
        let words = format!("  {counter:<name$} {:>17} {:>14} ", figures::count(**count), rate.unwrap_or_default());
        Span::styled(words, if **count == 0 { DIM } else { ratatui::style::Style::new() })
    };
    (0..down).map(|row| Line::from(all.iter().skip(row).step_by(down).map(text).collect::<Vec<_>>())).collect()
}
