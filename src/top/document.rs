//! Makes the tables of docs/top.md.

use std::fmt::Write as _;

use super::fields::{Field, HOST, SHOWN_AT_FIRST, VM};
use super::view::KEYS;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/top.md");

/// The text with what is between the two marks of `name` replaced.
fn replaced(text: &str, name: &str, table: &str) -> String {
    let (start, end) = (format!("<!-- {name} -->\n"), "<!-- end -->\n");
    let (before, rest) = text.split_once(&start).expect("a table");
    let (_, after) = rest.split_once(end).expect("its end");
    format!("{before}{start}{table}{end}{after}")
}

fn keys() -> String {
    let mut table = "| keys | effect |\n|---|---|\n".to_owned();
    for (keys, what) in KEYS {
        let keys: Vec<_> = keys.split(' ').map(|key| format!("`{key}`")).collect();
        let _ = writeln!(table, "| {} | {what} |", keys.join(" "));
    }
    table
}

fn fields(table: &[Field], place: &str) -> String {
    let mut text = "| field | unit | meaning | field of the status | counter of a recording |\n|---|---|---|---|---|\n".to_owned();
    for (at, field) in table.iter().enumerate() {
        let shown = if place == "vms[]." && at >= SHOWN_AT_FIRST {
            ""
        } else {
            " *"
        };
        let shown = if place.is_empty() { "" } else { shown };
        let path = |path: &&[&str]| match path {
            ["rates", rate @ ..] => format!("rate `{}`", rate.join(".")),
            [_, path @ ..] => format!("`{place}{}`", path.join(".")),
            [] => String::new(),
        };
        let paths: Vec<_> = field.paths.iter().map(path).collect();
        let unit = match field.unit.name() {
            "" => " ".to_owned(),
            unit => format!(" {unit} "),
        };
        let _ = writeln!(
            text,
            "| `{}`{shown} |{unit}| {} | {} | `{}` |",
            field.name,
            field.about,
            paths.join(" less "),
            field.counter,
        );
    }
    text
}

#[test]
fn document_has_the_tables_of_top() {
    let text = std::fs::read_to_string(PATH).expect("docs/top.md");
    let mut made = replaced(&text, "keys", &keys());
    made = replaced(&made, "fields of a VM", &fields(VM, "vms[]."));
    made = replaced(&made, "numbers of the host", &fields(HOST, ""));
    if std::env::var_os("MEMVISOR_WRITE_DOCS").is_some() {
        std::fs::write(PATH, made).expect("write docs/top.md");
        return;
    }
    assert!(
        made == text,
        "docs/top.md is not what src/top says: \
         `MEMVISOR_WRITE_DOCS=1 cargo test -p memvisor --lib document_has_the_tables_of_top` writes it"
    );
}
