//! Colours, the same as [`crate::views`] has; what they say is said in words or signs, too.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Text;

use ansi_to_tui::IntoText as _;

pub(super) const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);
pub(super) const DIM: Style = Style::new().add_modifier(Modifier::DIM);
pub(super) const GOOD: Style = Style::new().fg(Color::Green);
pub(super) const WARN: Style = Style::new().fg(Color::Yellow);
pub(super) const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
pub(super) const ADDRESS: Style = Style::new().fg(Color::Cyan);
pub(super) const PAGE: Style = Style::new().fg(Color::Green).add_modifier(Modifier::BOLD);
/// What a key would act on.
pub(super) const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);

/// The style of a state word: `running`, `stopped`, …
pub(super) fn of_state(state: &str) -> Style {
    match state {
        "running" => GOOD,
        "held" | "waiting" => WARN,
        "stopped" => BAD,
        _ => DIM,
    }
}

/// What the other commands would print.
pub(super) fn printed(text: &str) -> Text<'static> {
    text.into_text().unwrap_or_else(|_| Text::raw(anstream::adapter::strip_str(text).to_string()))
}
