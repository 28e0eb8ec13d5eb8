//! Tables that line up, by the width that a terminal gives each character.
//!
//! Cells often come from nodes, so every cell is made printable on its way in:
//! no table can carry a control sequence to a terminal.

use crate::output::{Paint, printable};
use unicode_width::UnicodeWidthStr;

/// Spaces between columns.
const GAP: usize = 2;

/// Rows of cells under titles.
#[derive(Debug, Clone)]
pub struct Table {
    titles: Vec<String>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these titles. A title that begins with `>` makes its column flush right.
    #[must_use]
    pub fn new(titles: &[&str]) -> Self {
        Self {
            right: titles.iter().map(|title| title.starts_with('>')).collect(),
            titles: titles.iter().map(|title| printable(title.trim_start_matches('>'))).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. Missing cells are empty; an empty cell under a title shows as `-`.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let mut row: Vec<String> = cells.into_iter().map(|cell| printable(&cell.into())).collect();
        row.resize(self.titles.len(), String::new());
        for (cell, title) in row.iter_mut().zip(&self.titles) {
            if cell.is_empty() && !title.is_empty() {
                cell.push('-');
            }
        }
        self.rows.push(row);
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines, each ending in a newline, without trailing spaces.
    #[must_use]
    pub fn render(&self, paint: Paint) -> String {
        let widths: Vec<usize> = (0..self.titles.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].width());
                cells.chain([self.titles[column].width()]).max().unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        let titles = self.line(&self.titles, &widths);
        out.push_str(&paint.bold(&titles));
        out.push('\n');
        for row in &self.rows {
            out.push_str(&self.line(row, &widths));
            out.push('\n');
        }
        out
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let padding = " ".repeat(widths[column].saturating_sub(cell.width()));
            if column > 0 {
                line.push_str(&" ".repeat(GAP));
            }
            if self.right[column] {
                line.push_str(&padding);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&padding);
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_up_wide_characters_and_escapes_controls() {
        let mut table = Table::new(&["NODE", ">FREE", "NOTE"]);
        table.row(["prod-1", "9 MB", "ok"]);
        table.row(["日本", "120 MB", "\u{1b}[31mred"]);
        table.row(["x"]);
        insta::assert_snapshot!(table.render(Paint { colour: false }), @r"
        NODE      FREE  NOTE
        prod-1    9 MB  ok
        日本    120 MB  ^[[31mred
        x            -  -
        ");
    }
}
