//! The chains of a trace, a line each.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use vnic::observe::protocol::ChainEvent;

use super::super::chains::{Chains, Entry};
use super::super::model::Model;
use super::super::sources;
use super::super::theme::{ADDRESS, BAD, CHOSEN, DIM, HEAD, PAGE, WARN};
use super::{chain, window};
use crate::views::figures;

/// Lines above the list.
const ABOVE: u16 = 2;

pub(crate) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let chains = &model.chains;
    if let (Some(at), Some(chain)) = (chains.open, chains.chain()) {
        return chain::draw(frame, area, chain, at);
    }
    let [state, heads, list] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    frame.render_widget(Paragraph::new(state_line(chains)), state);
    let columns = Columns::of(model, list.width);
    frame.render_widget(Paragraph::new(columns.heads()).style(HEAD), heads);
    let shown = window(chains.list.len(), chains.at(), list.height);
    let lines: Vec<Line<'_>> = chains.list.range(shown).map(|entry| columns.line(entry, chains)).collect();
    if lines.is_empty() {
        let words = if chains.line.is_empty() { "no chain has passed yet" } else { "no such chain has passed yet" };
        return frame.render_widget(Paragraph::new(words).style(DIM), list);
    }
    frame.render_widget(Paragraph::new(lines), list);
}

/// The chain in this row of the screen, by its number.
pub(crate) fn at(area: Rect, model: &Model, row: u16) -> Option<u64> {
    let chains = &model.chains;
    let at = usize::from(row.checked_sub(area.y + ABOVE)?);
    let shown = window(chains.list.len(), chains.at(), area.height.saturating_sub(ABOVE));
    shown.clone().nth(at).and_then(|at| chains.list.get(at)).map(|entry| entry.number)
}

fn state_line(chains: &Chains) -> Line<'static> {
    if let Some(line) = &chains.editing {
        return Line::from(vec![Span::styled("only: ", HEAD), Span::raw(line.clone()), Span::styled(" ", CHOSEN)]);
    }
    let mut line = match (&chains.trouble, chains.paused) {
        (Some(why), _) => vec![Span::styled(why.clone(), BAD)],
        (None, true) => {
            let words = format!("stands still; {} chains came meanwhile", figures::count(chains.ignored));
            vec![Span::styled(words, WARN)]
        }
        (None, false) if chains.selected.is_some() => vec![Span::styled("goes on below; G for the newest", WARN)],
        (None, false) => vec![Span::raw("the newest last")],
    };
    line.push(Span::raw(format!("   {} came", figures::count(chains.came))));
    if chains.lost > 0 {
        line.push(Span::styled(format!(", {} came too fast to be shown", figures::count(chains.lost)), DIM));
    }
    if !chains.line.is_empty() {
        line.push(Span::styled(format!("   only: {}", chains.line), PAGE));
    }
    if let Some(why) = &chains.refused {
        line.push(Span::styled(format!("   {why}"), BAD));
    } else if let Some(why) = &chains.unlabelled {
        line.push(Span::styled(format!("   no labels: {why}"), DIM));
    }
    Line::from(line)
}

/// How wide the columns are.
struct Columns {
    queue: usize,
    /// Index and number of buffers, where there is room.
    numbers: bool,
    source: usize,
}

impl Columns {
    fn of(model: &Model, width: u16) -> Columns {
        let queue = model.queues().map(|queue| queue.queue.chars().count()).max().unwrap_or_default().clamp(10, 22);
        let numbers = width >= 100;
        // Seconds, bytes and gaps.
        let taken = 12 + 1 + queue + 1 + if numbers { 12 } else { 0 } + 7 + 2;
        let rest = usize::from(width).saturating_sub(taken);
        let words = |entry: &Entry| sources::of(&entry.chain.buffers).first().map(|first| first.words(usize::MAX));
        // Of those that may be on the screen.
        let last = model.chains.list.iter().rev().take(100).filter_map(words);
        let longest = last.map(|words| words.chars().count()).max().unwrap_or_default();
        Columns { queue, numbers, source: longest.min(rest / 2) }
    }

    fn heads(&self) -> String {
        let numbers = if self.numbers { format!(" {:>6} {:>4}", "index", "bufs") } else { String::new() };
        let source = if self.source > 0 { format!("{:<1$}", "of", self.source + 2) } else { String::new() };
        format!(
            "{:>12} {:<queue$}{numbers} {:>7}  {source}{}",
            "seconds",
            "queue",
            "bytes",
            "frame",
            queue = self.queue
        )
    }

    fn line(&self, entry: &Entry, chains: &Chains) -> Line<'static> {
        let chain = &entry.chain;
        let Columns { queue, numbers, source } = *self;
        let numbers = match numbers {
            true => format!(" {:>6} {:>4}", format!("#{}", chain.idx), chain.descriptors),
            false => String::new(),
        };
        let time = seconds(chain.at_ns);
        let words = format!("{time:>12} {:<queue$.queue$}{numbers} {:>7}  ", chain.queue, bytes(chain));
        let mut spans = vec![Span::raw(words)];
        if source > 0 {
            let of = sources::of(&chain.buffers).first().map(|first| first.words(source)).unwrap_or_default();
            spans.push(Span::styled(format!("{of:<width$}", width = source + 2), PAGE));
        }
        spans.push(Span::raw(chain.summary.clone()));
        if chain.summary.is_empty() {
            spans.extend(chain.buffers.first().map(|buffer| Span::styled(buffer.to_string(), ADDRESS)));
        }
        let line = Line::from(spans);
        if chains.selected == Some(entry.number) { line.style(CHOSEN) } else { line }
    }
}

/// As `vnic trace` has it.
pub(super) fn seconds(at_ns: u64) -> String {
    format!("{}.{:06}", at_ns / 1_000_000_000, at_ns % 1_000_000_000 / 1000)
}

/// Of all buffers that the device has read, or what it has written.
fn bytes(chain: &ChainEvent) -> u64 {
    let read = chain.buffers.iter().filter(|buffer| !buffer.writable).map(|buffer| u64::from(buffer.len)).sum::<u64>();
    if read > 0 { read } else { chain.written.into() }
}
