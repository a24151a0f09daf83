//! From what the frames come that the guest sends, as `vnic top` has it.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Text};

use super::super::model::{FlowsTab, Model, Tab};
use super::super::theme::{self, BAD, DIM};
use crate::views::top;

pub(crate) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let FlowsTab { last, before, by, trouble } = &model.flows;
    let mut text = match last {
        Some(report) => {
            // Writing to a string does not fail.
            let text = top::text(report, before.as_deref(), *by, area.width).unwrap_or_default();
            theme::printed(&text)
        }
        None if trouble.is_some() => Text::default(),
        None => Text::styled("asking the device …", DIM),
    };
    if let Some(why) = trouble {
        text.lines.insert(0, Line::styled(why.clone(), BAD));
    }
    super::scrolled(frame, area, text, model.scroll[Tab::Flows.at()]);
}
