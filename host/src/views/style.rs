//! Colours, in one place; `{STYLE}` and `{STYLE:#}` around what they colour.

use anstyle::{AnsiColor, Style};

/// Titles and column heads.
pub(crate) const HEAD: Style = Style::new().bold();
/// What is only there for completeness.
pub(crate) const DIM: Style = Style::new().dimmed();
/// As it should be.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// Broken.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// Worth a look.
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
/// A descriptor's address and length.
pub(crate) const ADDRESS: Style = AnsiColor::Cyan.on_default();
/// A page of the file.
pub(crate) const PAGE: Style = AnsiColor::Green.on_default().bold();
/// No style.
pub(crate) const PLAIN: Style = Style::new();

/// The style of a state word: `running`, `stopped`, …
pub(crate) fn of_state(state: &str) -> Style {
    match state {
        "running" => GOOD,
        "held" | "waiting" => WARN,
        "stopped" => BAD,
        _ => DIM,
    }
}
