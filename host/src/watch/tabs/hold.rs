//! Hold and release: the only view whose keys touch the device.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Wrap};

use super::super::model::Model;
use super::super::theme::{self, BAD, CHOSEN, GOOD, HEAD};
use super::window;

/// Lines above the queues.
const ABOVE: u16 = 6;

pub(crate) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let [warning, list] = Layout::vertical([Constraint::Length(ABOVE), Constraint::Fill(1)]).areas(area);
    let words = "H has the device keep the buffers of the queue below that is marked, so that there is time to look: the \
        guest gets none of them back. R lets them go. Everything else in this program only looks.";
    let block = Block::bordered().title(" these two keys touch the device ").border_style(BAD);
    frame.render_widget(Paragraph::new(words).wrap(Wrap { trim: true }).block(block), warning);
    let mut lines: Vec<Line<'_>> = Vec::new();
    match &model.touched {
        Some(Ok(what)) => lines.push(Line::styled(what.clone(), GOOD)),
        Some(Err(why)) => lines.push(Line::styled(why.clone(), BAD)),
        None => lines.push(Line::default()),
    }
    let (all, shown) = shown(list, model);
    for queue in &all[shown] {
        let chosen = Some(&queue.queue) == model.queue.as_ref();
        lines.push(Line::from(vec![
            Span::styled(format!("{:<22}", queue.queue), if chosen { CHOSEN } else { HEAD }),
            Span::styled(format!(" {}", queue.state), theme::of_state(&queue.state)),
        ]));
    }
    frame.render_widget(Paragraph::new(lines), list);
}

/// All queues, and which of them are shown.
fn shown(list: Rect, model: &Model) -> (Vec<&vnic::observe::protocol::QueueStatus>, std::ops::Range<usize>) {
    let all: Vec<_> = model.queues().collect();
    let at = all.iter().position(|queue| Some(&queue.queue) == model.queue.as_ref()).unwrap_or_default();
    let shown = window(all.len(), at, list.height.saturating_sub(1));
    (all, shown)
}

/// The queue in this row of the screen.
pub(crate) fn at(area: Rect, model: &Model, row: u16) -> Option<String> {
    let at = usize::from(row.checked_sub(area.y + ABOVE + 1)?);
    let list = Rect { y: area.y + ABOVE, height: area.height.saturating_sub(ABOVE), ..area };
    let (all, shown) = shown(list, model);
    all[shown].get(at).map(|queue| queue.queue.clone())
}
