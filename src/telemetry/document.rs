//! Compares docs/metrics.md with the code.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Rates, VmRates, fixture};

const DOCUMENT: &str = include_str!("../../docs/metrics.md");

/// The names in the first column of the tables of a part of the document.
fn documented(part: &str) -> BTreeSet<String> {
    let rows = part.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect()
}

/// The paths of all values that are not objects; `vms[]` stands for the elements of the array `vms`.
fn leaves(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                leaves(value, &format!("{path}{dot}{name}"), into);
            }
        }
        Value::Array(elements) => {
            for element in elements {
                leaves(element, &format!("{path}[]"), into);
            }
        }
        _ => {
            into.insert(path.to_owned());
        }
    }
}

/// The rates are documented once, below: in the status they are one field.
fn without_rates(fields: BTreeSet<String>) -> BTreeSet<String> {
    const RATES: &str = "vms[].rates";
    let row = |field: String| {
        if field.starts_with(RATES) {
            RATES.to_owned()
        } else {
            field
        }
    };
    fields.into_iter().map(row).collect()
}

/// The paths of all values of `value`.
pub(super) fn fields(value: &impl serde::Serialize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let value = serde_json::to_value(value).expect("plain data");
    leaves(&value, "", &mut found);
    found
}

#[test]
fn metrics_document_has_exactly_the_fields_of_the_status() {
    let (status, _) = DOCUMENT.split_once("\n## Rates").expect("a section");
    let fields = without_rates(fields(&fixture::host()));
    assert_eq!(documented(status), fields);
}

#[test]
fn metrics_document_has_exactly_the_rates() {
    let (_, rates) = DOCUMENT.split_once("\n## Rates").expect("a section");
    let (rates, _) = rates.split_once("\n## OpenMetrics").expect("a section");
    let mut expected = fields(&VmRates::default());
    let interval = fields(&Rates::default());
    expected.extend(interval.into_iter().filter(|path| !path.contains('.')));
    assert_eq!(documented(rates), expected);
}

/// A row of a table.
pub(super) fn row_of(cells: &[&str]) -> String {
    let cells = cells.iter().map(|cell| match *cell {
        "" => " |".to_owned(),
        cell => format!(" {cell} |"),
    });
    format!("|{}\n", cells.collect::<String>())
}
