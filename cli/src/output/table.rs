//! Tables for people: columns as wide as their widest cell, numbers to the right.

/// Rows under a header.
#[derive(Debug, Clone, Default)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new<'a>(header: impl IntoIterator<Item = &'a str>) -> Table {
        Table {
            header: header.into_iter().map(str::to_owned).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines to print; a table without rows is its header.
    pub fn lines(&self) -> Vec<String> {
        let all = || std::iter::once(&self.header).chain(&self.rows);
        let cell_of =
            |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
        let columns = self.header.len();
        let shape: Vec<(usize, bool)> = (0..columns)
            .map(|column| {
                let width = all().map(|row| cell_of(row, column).chars().count()).max();
                let numeric = self.rows.iter().all(|row| is_number(&cell_of(row, column)));
                (width.unwrap_or(0), numeric && !self.rows.is_empty())
            })
            .collect();
        all()
            .map(|row| {
                let cells: Vec<String> = shape
                    .iter()
                    .enumerate()
                    .map(|(column, (width, numeric))| {
                        let cell = cell_of(row, column);
                        if *numeric {
                            format!("{cell:>width$}")
                        } else {
                            format!("{cell:<width$}")
                        }
                    })
                    .collect();
                cells.join("  ").trim_end().to_owned()
            })
            .collect()
    }
}

fn is_number(cell: &str) -> bool {
    cell.starts_with(|c: char| c.is_ascii_digit())
        && cell
            .chars()
            .all(|c| c.is_ascii_digit() || c == ',' || c == '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let mut table = Table::new(["topic", "messages"]);
        table.row(["a".to_owned(), "12,345".to_owned()]);
        table.row(["longer".to_owned(), "7".to_owned()]);
        assert_eq!(
            table.lines(),
            ["topic   messages", "a         12,345", "longer         7"]
        );
        assert_eq!(Table::new(["a", "b"]).lines(), ["a  b"]);
    }
}
