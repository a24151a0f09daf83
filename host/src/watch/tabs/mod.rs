//! The views, one file each, and the list of queues beside them.

pub(super) mod chain;
pub(super) mod chains;
pub(super) mod counters;
pub(super) mod flows;
pub(super) mod hold;
pub(super) mod page;
pub(super) mod queues;
pub(super) mod rings;

use std::ops::Range;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Text;
use ratatui::widgets::{Clear, Paragraph, Wrap};

use super::theme::DIM;

/// Which lines of so many a window of `height` shows, with the one that is looked at in the middle where there are more on both sides.
pub(super) fn window(len: usize, looked_at: usize, height: u16) -> Range<usize> {
    let height = usize::from(height);
    let first = looked_at.saturating_sub(height / 2).min(len.saturating_sub(height));
    first..len.min(first + height)
}

/// Text that is scrolled by so many lines, as far as there is more of it; and how many lines are below.
fn scrolled(frame: &mut Frame<'_>, area: Rect, text: Text<'_>, scroll: u16) {
    let text = Paragraph::new(text).wrap(Wrap { trim: false });
    let lines = u16::try_from(text.line_count(area.width)).unwrap_or(u16::MAX);
    let most = lines.saturating_sub(area.height);
    let scroll = scroll.min(most);
    frame.render_widget(text.scroll((scroll, 0)), area);
    let below = most - scroll;
    if below > 0 && area.height > 0 {
        let place = Rect { y: area.bottom() - 1, height: 1, ..area };
        frame.render_widget(Clear, place);
        frame.render_widget(Paragraph::new(format!("… {} more lines", below + 1)).style(DIM), place);
    }
}
