//! Aligned columns and paragraphs, no wider than the screen: what does not fit is wrapped, between words only.

use std::env;
use std::io::{self, IsTerminal};

use anstyle::Style;
use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, Width};
use crossterm::terminal;

use super::style::{BAD, DIM, GOOD, HEAD, WARN};

/// Stands for a figure that could not be measured.
pub(super) const NULL: &str = "–";

/// The width where there is no terminal to ask.
const WIDTH: u16 = 100;

/// Between two columns.
const GAP: u16 = 2;

/// Words that stay on one line, as long as all of them are no longer than this.
const SHORT: usize = 16;

/// Which side a column leans to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    /// Words.
    Left,
    /// Numbers: never wrapped, since a space parts their thousands.
    Right,
}

/// A cell with a colour.
pub(super) fn styled(text: impl ToString, style: Style) -> Cell {
    let cell = Cell::new(text);
    match style {
        HEAD => cell.add_attribute(Attribute::Bold),
        DIM => cell.add_attribute(Attribute::Dim),
        BAD => cell.fg(Color::DarkRed).add_attribute(Attribute::Bold),
        GOOD => cell.fg(Color::DarkGreen),
        WARN => cell.fg(Color::DarkYellow),
        _ => cell,
    }
}

/// A line for the heads, unless all are empty, and at least one per row.
pub(super) fn table(columns: &[(&str, Align)], rows: Vec<Vec<Cell>>) -> String {
    table_within(width(), columns, rows)
}

/// The same, no wider than this.
pub(super) fn table_within(width: u16, columns: &[(&str, Align)], rows: Vec<Vec<Cell>>) -> String {
    let mut table = empty(width);
    if columns.iter().any(|(head, _)| !head.is_empty()) {
        table.set_header(columns.iter().map(|(head, _)| styled(head, HEAD)));
    }
    table.add_rows(rows);
    let narrowest: Vec<usize> = (0..columns.len())
        .map(|at| {
            let mut cells = table.column_cells_with_header_iter(at).flatten().map(Cell::content);
            let head = cells.next().as_deref().map_or(0, longest_word);
            let whole = |cell: &String| columns[at].1 == Align::Right || cell.chars().count() <= SHORT;
            let rest = cells.map(|cell| if whole(&cell) { cell.chars().count() } else { longest_word(&cell) });
            rest.fold(head, usize::max)
        })
        .collect();
    for (at, column) in table.column_iter_mut().enumerate() {
        let (_, align) = columns[at];
        let gap = if at + 1 == columns.len() { 0 } else { GAP };
        column.set_padding((0, gap));
        column.set_cell_alignment(if align == Align::Left { CellAlignment::Left } else { CellAlignment::Right });
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(narrowest[at] as u16 + gap)));
    }
    table.trim_fmt() + "\n"
}

/// Text of one colour, on as many lines as it takes.
pub(super) fn paragraph(text: impl ToString, style: Style) -> String {
    paragraph_within(width(), text, style)
}

/// The same, no wider than this.
pub(super) fn paragraph_within(width: u16, text: impl ToString, style: Style) -> String {
    let mut table = empty(width);
    table.add_row([styled(text, style)]);
    for column in table.column_iter_mut() {
        column.set_padding((0, 0));
    }
    table.trim_fmt() + "\n"
}

fn empty(width: u16) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    // Whether there is colour is decided where it is written.
    table.enforce_styling().style_text_only();
    table
}

/// What `COLUMNS` says, or the terminal, or [`WIDTH`].
pub(super) fn width() -> u16 {
    let told = env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let asked = || terminal::size().ok().filter(|_| io::stdout().is_terminal()).map(|(columns, _)| columns);
    told.or_else(asked).filter(|columns| *columns > 0).unwrap_or(WIDTH)
}

fn longest_word(text: &str) -> usize {
    text.split_whitespace().map(|word| word.chars().count()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lean_left_and_numbers_right() {
        let columns = [("queue", Align::Left), ("chains", Align::Right), ("state", Align::Left)];
        let rows = [["transmitq0", "7", "running"], ["rx", "1 000 000", "–"]];
        let table = table(&columns, rows.map(|row| row.map(Cell::new).to_vec()).to_vec());
        let plain = anstream::adapter::strip_str(&table).to_string();
        assert_eq!(
            plain,
            "queue          chains  state\n\
             transmitq0          7  running\n\
             rx          1 000 000  –\n"
        );
    }
}
