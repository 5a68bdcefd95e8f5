//! Rows and columns as text.

/// Rows of columns as wide as their widest cell. All rows have as many cells.
pub(super) fn aligned<R: AsRef<[String]>>(rows: &[R]) -> String {
    columns(rows, |_, _| false)
}

/// The same with right-aligned cells, as for numbers, in all columns except the first and the last.
pub(super) fn numbers<R: AsRef<[String]>>(rows: &[R]) -> String {
    columns(rows, |column, of| column > 0 && column + 1 < of)
}

/// The same, with right-aligned cells in all columns except the first two.
pub(super) fn labelled<R: AsRef<[String]>>(rows: &[R]) -> String {
    columns(rows, |column, _| column > 1)
}

fn columns<R: AsRef<[String]>>(rows: &[R], at_right: fn(usize, usize) -> bool) -> String {
    let of = rows.first().map_or(0, |row| row.as_ref().len());
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.as_ref().get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..of).map(width).collect();
    let line = |row: &R| {
        let mut line = String::new();
        for (column, (cell, width)) in row.as_ref().iter().zip(&widths).enumerate() {
            line += &if at_right(column, of) {
                format!("{cell:>width$}  ")
            } else {
                format!("{cell:<width$}  ")
            };
        }
        line.trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
