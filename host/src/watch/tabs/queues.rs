//! Devices and queues: what they are at, how fast they go.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline};
use vnic::observe::protocol::{QueueStatus, Status};

use super::super::model::Model;
use super::super::theme::{self, BAD, CHOSEN, DIM, HEAD};
use super::window;
use crate::views::figures;

/// What a line is of.
enum Row<'m> {
    Device(&'m Status),
    Queue(&'m QueueStatus),
}

/// A line per queue, and one per device where there are several. Of many queues, those that were never used are left out.
fn rows(model: &Model) -> Vec<Row<'_>> {
    const MANY: usize = 16;
    let several = model.devices().len() > 1;
    let many = model.queues().count() > MANY;
    let mut rows = Vec::new();
    for device in model.devices() {
        if several {
            rows.push(Row::Device(device));
        }
        let idle = |queue: &QueueStatus| {
            matches!(queue.state.as_str(), "off" | "unused") && queue.counters.values().all(|count| *count == 0)
        };
        let shown = device.queues.iter().filter(|queue| !many || !idle(queue));
        rows.extend(shown.map(Row::Queue));
    }
    rows
}

/// Lines that all of it would take.
pub(crate) fn lines(model: &Model) -> usize {
    rows(model).len() + 1
}

/// The rows that are shown, and which of them stands first.
fn shown(area: Rect, model: &Model) -> Vec<Row<'_>> {
    let mut rows = rows(model);
    let is_chosen = |row: &Row<'_>| matches!(row, Row::Queue(queue) if Some(&queue.queue) == model.queue.as_ref());
    let at = rows.iter().position(is_chosen).unwrap_or_default();
    let window = window(rows.len(), at, area.height.saturating_sub(1));
    rows.drain(window).collect()
}

/// The queue that stands in this row of the screen.
pub(crate) fn at(area: Rect, model: &Model, row: u16) -> Option<String> {
    let at = usize::from(row.checked_sub(area.y + 1)?);
    match shown(area, model).get(at)? {
        Row::Queue(queue) => Some(queue.queue.clone()),
        Row::Device(_) => None,
    }
}

pub(crate) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let rows = shown(area, model);
    let longest = model.queues().map(|queue| queue.queue.chars().count()).max().unwrap_or_default();
    let name = longest.clamp(10, 22);
    let heads = format!(
        "{:name$} {:8} {:>9} {:>9} {:>11}  {}",
        "queue", "state", "in flight", "chains/s", "bytes/s", "history"
    );
    let line = |at: u16| Rect { y: area.y + at, height: 1, ..area };
    frame.render_widget(Paragraph::new(heads).style(HEAD), line(0));
    for (row, at) in rows.iter().zip(1..area.height) {
        match row {
            Row::Device(device) => {
                let what = format!("{} {} {}", device.device, device.socket, device.link);
                let why = match &device.last_error {
                    _ if device.connected => None,
                    Some(why) => Some(Span::styled(format!("  {why}"), BAD)),
                    None => Some(Span::styled("  no front-end", DIM)),
                };
                let words = [Span::styled(what.trim().to_owned(), DIM)].into_iter().chain(why);
                frame.render_widget(Paragraph::new(Line::from_iter(words)), line(at));
            }
            Row::Queue(queue) => draw_queue(frame, line(at), model, queue, name),
        }
    }
}

fn draw_queue(frame: &mut Frame<'_>, area: Rect, model: &Model, queue: &QueueStatus, name: usize) {
    let rates = model.rates.get(&queue.queue);
    // None before there were two looks.
    let known = rates.filter(|rates| !rates.now.is_empty());
    let rate = |counter: &str| known.filter(|_| queue.counters.contains_key(counter)).map(|rates| rates.of(counter));
    let in_flight = match (model.ring(&queue.queue), queue.counters.get("in_flight")) {
        (Some(ring), _) => format!("{}/{}", ring.in_flight, ring.size),
        (None, Some(count)) => format!("{count}/{}", queue.size),
        (None, None) => String::new(),
    };
    let chains = rate("chains").or_else(|| rate("used_idx")).map(|chains| figures::count(chains as u64));
    let bytes = rate("bytes").map(|bytes| figures::bytes(bytes as u64));
    let chosen = model.queue.as_ref() == Some(&queue.queue);
    let words = vec![
        Span::styled(format!("{:name$.name$}", queue.queue), if chosen { CHOSEN } else { HEAD }),
        Span::styled(format!(" {:8.8}", queue.state), theme::of_state(&queue.state)),
        Span::raw(format!(" {in_flight:>9} {:>9} {:>11}", chains.unwrap_or_default(), bytes.unwrap_or_default())),
    ];
    let line = Line::from(words);
    let width = u16::try_from(line.width()).unwrap_or(u16::MAX);
    let [words, _, history] =
        Layout::horizontal([Constraint::Length(width), Constraint::Length(2), Constraint::Fill(1)]).areas(area);
    frame.render_widget(Paragraph::new(line), words);
    if let Some(rates) = rates {
        let first = rates.bytes.len().saturating_sub(usize::from(history.width));
        let data = rates.bytes.iter().skip(first).copied();
        frame.render_widget(Sparkline::default().data(data).style(theme::ADDRESS), history);
    }
}
