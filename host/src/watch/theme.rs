//! The colours of [`crate::views`], as ratatui has them; what they say is said in words or signs, too.

use ansi_to_tui::IntoText as _;
use anstyle::{AnsiColor, Effects};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Text;

use crate::views::style;

pub(super) const HEAD: Style = same(style::HEAD);
pub(super) const DIM: Style = same(style::DIM);
pub(super) const GOOD: Style = same(style::GOOD);
pub(super) const WARN: Style = same(style::WARN);
pub(super) const BAD: Style = same(style::BAD);
pub(super) const ADDRESS: Style = same(style::ADDRESS);
pub(super) const PAGE: Style = same(style::PAGE);
/// What a key would act on.
pub(super) const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);

/// The style of a state word: `running`, `stopped`, …
pub(super) fn of_state(state: &str) -> Style {
    same(style::of_state(state))
}

/// As far as [`style`] has colours and effects; one that it is given later has to be added here, or this does not compile.
const fn same(style: anstyle::Style) -> Style {
    let color = match style.get_fg_color() {
        None => None,
        Some(anstyle::Color::Ansi(AnsiColor::Red)) => Some(Color::Red),
        Some(anstyle::Color::Ansi(AnsiColor::Green)) => Some(Color::Green),
        Some(anstyle::Color::Ansi(AnsiColor::Yellow)) => Some(Color::Yellow),
        Some(anstyle::Color::Ansi(AnsiColor::Cyan)) => Some(Color::Cyan),
        Some(_) => panic!("a colour that this view does not have"),
    };
    let effects = style.get_effects();
    let mut same = match color {
        Some(color) => Style::new().fg(color),
        None => Style::new(),
    };
    if effects.contains(Effects::BOLD) {
        same = same.add_modifier(Modifier::BOLD);
    }
    if effects.contains(Effects::DIMMED) {
        same = same.add_modifier(Modifier::DIM);
    }
    same
}

/// What the other commands would print.
pub(super) fn printed(text: &str) -> Text<'static> {
    text.into_text().unwrap_or_else(|_| Text::raw(anstream::adapter::strip_str(text).to_string()))
}
