//! Makes the tables of docs/settings.md, and checks its example.

use std::path::Path;

use super::*;
use crate::machine::BudgetChoice;
use crate::units::Bytes;

const DOCUMENT: &str = include_str!("../../docs/settings.md");
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/settings.md");
/// A generated table is between a line that names it and this one.
const END: &str = "<!-- end of table -->\n";

fn row<T: AsRef<str>>(cells: impl IntoIterator<Item = T>) -> String {
    let cells = cells.into_iter().map(|cell| match cell.as_ref() {
        "" => " |".to_owned(),
        cell => format!(" {cell} |"),
    });
    format!("|{}\n", cells.collect::<String>())
}

fn table(header: &[&str], rows: impl Iterator<Item = String>) -> String {
    let line = format!("|{}\n", "---|".repeat(header.len()));
    row(header) + &line + &rows.collect::<String>()
}

fn host_settings() -> String {
    let row_of = |spec: &Spec| {
        let shown = |profile: Profile| format!("`{}`", spec.kind.scalar(profile.default_of(spec)));
        let (range, unit) = match spec.kind.bounds() {
            Some((min, max)) => (format!("{min} to {max}"), spec.kind.unit()),
            None => (spec.kind.unit(), String::new()),
        };
        row([
            format!("`{}`", spec.name),
            shown(Profile::Lab),
            shown(Profile::Esx),
            shown(Profile::Throughput),
            range,
            unit,
            spec.effect.to_owned(),
            spec.deviation.to_owned(),
        ])
    };
    let header = [
        "setting",
        "`lab`",
        "`esx`",
        "`throughput`",
        "range",
        "unit",
        "effect",
        "other than in ESX",
    ];
    table(&header, TABLE.iter().map(row_of))
}

/// The settings in which a profile departs from the one it is based on. One row has those of the same reason.
fn departures(profile: Profile, departure: fn(&Spec) -> Option<Departure>) -> String {
    let mut rows: Vec<(&str, Vec<String>)> = Vec::new();
    for spec in &TABLE {
        let Some(Departure { why, .. }) = departure(spec) else {
            continue;
        };
        let name = format!("`{}`", spec.name);
        match rows.iter_mut().find(|(known, _)| *known == why) {
            Some((_, names)) => names.push(name),
            None => rows.push((why, vec![name])),
        }
    }
    let header = ["setting", &format!("why `{profile}` differs")];
    let rows = rows
        .iter()
        .map(|(why, names)| row([names.join(", ").as_str(), *why]));
    table(&header, rows)
}

fn vm_settings() -> String {
    let rows = VM_KEYS.iter().map(|key| {
        let (name, esx) = (format!("`{}`", key.name), format!("`{}`", key.esx));
        row([name.as_str(), &esx, key.default, key.allowed, key.effect])
    });
    table(&["setting", "ESX", "default", "allowed", "effect"], rows)
}

fn pool_settings() -> String {
    let rows = POOL_KEYS.iter().map(|key| {
        let name = format!("`{}`", key.name);
        row([name.as_str(), key.default, key.allowed, key.effect])
    });
    table(&["setting", "default", "allowed", "effect"], rows)
}

#[test]
fn document_has_the_tables_of_settings() {
    let mut made = DOCUMENT.to_owned();
    for (name, table) in [
        ("host settings", host_settings()),
        ("lab", departures(Profile::Lab, |spec| spec.lab)),
        (
            "throughput",
            departures(Profile::Throughput, |spec| spec.throughput),
        ),
        ("VM settings", vm_settings()),
        ("resource pools", pool_settings()),
    ] {
        let start = format!("<!-- table of {name} -->\n");
        let (before, rest) = made.split_once(&start).expect(name);
        let (_, after) = rest.split_once(END).expect(name);
        made = format!("{before}{start}{table}{END}{after}");
    }
    if std::env::var_os("MEMVISOR_WRITE_DOCS").is_some() {
        std::fs::write(PATH, made).expect("write docs/settings.md");
        return;
    }
    assert!(
        made == DOCUMENT,
        "docs/settings.md is not what src/settings says: \
         `MEMVISOR_WRITE_DOCS=1 cargo test -p memvisor --lib settings::tests` writes it"
    );
}

#[test]
fn example_of_a_configuration_file_is_one() {
    let (_, text) = DOCUMENT
        .split_once("\n## Configuration file\n")
        .expect("a section");
    let (_, example) = text.split_once("```toml\n").expect("an example");
    let (example, _) = example.split_once("```").expect("an end");
    let file = ConfigFile::parse(Path::new("host.toml"), example).expect("no fault");
    assert_eq!(file.start.profile, Some(Profile::Esx));
    assert_eq!(
        file.start.memory,
        Some(BudgetChoice::Size(Bytes::from_mib(512)))
    );
    assert_eq!((file.vms.len(), file.pools.len()), (2, 1));
    let layers = Layers::new(Profile::Esx, file.settings, Layer::default());
    let from_file = layers
        .views()
        .into_iter()
        .filter(|view| view.from == Origin::File);
    assert!(from_file.count() >= 3);
}
