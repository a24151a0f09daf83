//! Aligned columns.

use std::fmt;

use anstyle::Style;

use super::style;

/// Which side a column leans to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// One cell: text and its colour.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell with a colour.
    pub(super) fn styled(text: impl Into<String>, style: Style) -> Self {
        Cell { text: text.into(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell::styled(text, style::PLAIN)
    }
}

/// A table; `Display` prints a line for the heads and one per row.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table of these columns.
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// One more row; it has a cell for each column.
    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head: Vec<Cell> = self.columns.iter().map(|(name, _)| Cell::styled(*name, style::HEAD)).collect();
        let mut widths = vec![0; self.columns.len()];
        for row in std::iter::once(&head).chain(&self.rows) {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = width(&cell.text).max(*widest);
            }
        }
        for row in std::iter::once(&head).chain(&self.rows) {
            for (at, ((cell, (_, align)), widest)) in row.iter().zip(&self.columns).zip(&widths).enumerate() {
                let pad = widest - width(&cell.text);
                let (before, after) = match align {
                    Align::Left if at + 1 == self.columns.len() => (0, 0),
                    Align::Left => (0, pad),
                    Align::Right => (pad, 0),
                };
                let gap = if at == 0 { "" } else { "  " };
                let Cell { text, style } = cell;
                write!(f, "{gap}{:before$}{style}{text}{style:#}{:after$}", "", "")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lean_left_and_numbers_right() {
        let mut table = Table::new(&[("queue", Align::Left), ("chains", Align::Right), ("state", Align::Left)]);
        table.row(vec!["transmitq0".into(), "7".into(), "running".into()]);
        table.row(vec!["rx".into(), "1 000 000".into(), "–".into()]);
        let plain = anstream::adapter::strip_str(&table.to_string()).to_string();
        assert_eq!(
            plain,
            "queue          chains  state\n\
             transmitq0          7  running\n\
             rx          1 000 000  –\n"
        );
    }
}
