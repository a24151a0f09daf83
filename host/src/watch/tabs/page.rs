//! Whose a page is and what happened to it, as `vnic page` and `vnic life` have it.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::Paragraph;
use vnic::observe::protocol::LifeOf;

use super::super::feed::Known;
use super::super::model::{Model, Tab};
use super::super::theme::{self, BAD, CHOSEN, DIM, HEAD};
use crate::views::{life, page};

pub(crate) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let [question, answer] = Layout::vertical([Constraint::Length(2), Constraint::Fill(1)]).areas(area);
    let tab = &model.page;
    let asked = tab.asked.as_ref().map(|of| match of {
        LifeOf::Page { gpa } => format!("{gpa:#x}"),
        LifeOf::File { path } => path.clone(),
        LifeOf::Pages { addresses } => format!("{} pages", addresses.len()),
    });
    let mut line = vec![Span::styled("address or file: ", HEAD)];
    match (&tab.editing, &asked) {
        (Some(text), _) => line.extend([Span::raw(text.clone()), Span::styled(" ", CHOSEN)]),
        (None, Some(asked)) => line.push(Span::raw(asked.clone())),
        (None, None) => line.push(Span::styled("/ to write one: 0x2ee1000, or /srv/file", DIM)),
    }
    frame.render_widget(Paragraph::new(Line::from(line)), question);
    let text = match (&tab.refused, &tab.asked, &tab.known) {
        (Some(why), ..) => Text::styled(why.clone(), BAD),
        (None, Some(of), Some(known)) => known_text(of, known, area.width),
        (None, Some(_), None) => Text::styled("asking the device …", DIM),
        (None, None, _) => Text::default(),
    };
    super::scrolled(frame, answer, text, model.scroll[Tab::Page.at()]);
}

fn known_text(of: &LifeOf, known: &Known, width: u16) -> Text<'static> {
    let mut text = Text::default();
    match &known.page {
        // Writing to a string does not fail.
        Some(Ok(known)) => {
            text.extend(theme::printed(&page::text(std::slice::from_ref(known)).unwrap_or_default()).lines)
        }
        Some(Err(why)) => text.push_line(Line::styled(why.clone(), BAD)),
        None => {}
    }
    text.push_line(Line::default());
    match &known.life {
        Ok(known) => text.extend(theme::printed(&life::text(of, known, true, width)).lines),
        Err(why) => text.push_line(Line::styled(why.clone(), DIM)),
    }
    text
}
