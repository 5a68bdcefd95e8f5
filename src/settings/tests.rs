//! Checks that docs/settings.md says what the tables say.

use std::path::Path;

use super::*;
use crate::units::Bytes;

const DOCUMENT: &str = include_str!("../../docs/settings.md");

/// The lines of the section below a heading.
fn section(heading: &str) -> Vec<&'static str> {
    let (_, rest) = DOCUMENT.split_once(heading).expect(heading);
    let lines = rest.lines().skip(1);
    let is_heading = |line: &str| line.trim_start_matches('#').starts_with(' ');
    lines
        .take_while(|line| !(line.starts_with("##") && is_heading(line)))
        .collect()
}

/// The rows of the first table of a section, without its header.
fn rows(heading: &str) -> Vec<&'static str> {
    let is_row = |line: &&str| line.starts_with('|');
    let mut lines = section(heading)
        .into_iter()
        .skip_while(|line| !is_row(line));
    assert!(
        lines.next().is_some() && lines.next().is_some(),
        "{heading}"
    );
    lines.take_while(is_row).collect()
}

fn row(spec: &Spec) -> String {
    let shown = |value| format!("`{}`", spec.kind.scalar(value));
    let (range, unit) = spec.kind.bounds().map_or_else(
        || (spec.kind.unit(), String::new()),
        |(min, max)| (format!("{min} to {max}"), spec.kind.unit()),
    );
    let cells = [
        format!("`{}`", spec.name),
        shown(spec.lab),
        shown(spec.esx),
        shown(Profile::Throughput.default_of(spec)),
        range,
        unit,
        spec.effect.to_owned(),
        spec.deviation.to_owned(),
    ];
    cells
        .iter()
        .fold("|".to_owned(), |row, cell| match cell.as_str() {
            "" => row + " |",
            cell => row + " " + cell + " |",
        })
}

#[test]
fn document_has_the_table_of_host_settings() {
    let expected: Vec<String> = TABLE.iter().map(row).collect();
    let found = rows("\n## Host settings\n");
    let text = expected.join("\n");
    assert!(found == expected, "docs/settings.md should have:\n{text}");
}

#[test]
fn document_has_the_table_of_vm_settings() {
    let expected = VM_KEYS.map(|key| {
        let VmKey {
            name,
            esx,
            default,
            allowed,
            effect,
            ..
        } = key;
        format!("| `{name}` | `{esx}` | {default} | {allowed} | {effect} |")
    });
    let found = rows("\n## VM settings\n");
    let text = expected.join("\n");
    assert!(found == expected, "docs/settings.md should have:\n{text}");
}

#[test]
fn document_names_each_setting_in_which_the_profiles_differ() {
    let text = section("\n### Profiles\n").join("\n");
    for spec in &TABLE {
        let differs = spec.lab != spec.esx || spec.throughput.is_some();
        assert_eq!(
            text.contains(&format!("`{}`", spec.name)),
            differs,
            "{}",
            spec.name
        );
    }
}

#[test]
fn example_of_a_configuration_file_is_one() {
    let text = section("\n## Configuration file\n").join("\n");
    let (_, example) = text.split_once("```toml\n").expect("an example");
    let (example, _) = example.split_once("```").expect("an end");
    let file = ConfigFile::parse(Path::new("host.toml"), example).expect("no fault");
    assert_eq!(file.start.profile, Some(Profile::Esx));
    assert_eq!(file.start.memory, Some(Bytes::from_mib(512)));
    assert_eq!(file.vms.len(), 2);
    let layers = Layers::new(Profile::Esx, file.settings, Layer::default());
    let from_file = layers
        .views()
        .into_iter()
        .filter(|view| view.from == Origin::File);
    assert!(from_file.count() >= 3);
}
