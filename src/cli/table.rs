//! Rows and columns as text.

/// Rows of columns as wide as their widest cell.
pub(super) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    columns(rows, |_| false)
}

/// The same with right-aligned cells, as for numbers, in all columns except the first and the last.
pub(super) fn numbers<const N: usize>(rows: &[[String; N]]) -> String {
    columns(rows, |column| column > 0 && column + 1 < N)
}

fn columns<const N: usize>(rows: &[[String; N]], at_right: fn(usize) -> bool) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let line = |row: &[String; N]| {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            line += &if at_right(column) {
                format!("{cell:>width$}  ")
            } else {
                format!("{cell:<width$}  ")
            };
        }
        line.trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
