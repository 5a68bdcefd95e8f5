//! Holds docs/scenarios.md to the code.

use std::collections::BTreeSet;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::changes::WrittenChange;
use super::expect::WrittenExpect;
use super::guests::WrittenGuest;
use super::promises;
use super::read::{Written, parse};
use super::said::{OPERATIONS, P50, P99};
use crate::settings::VM_KEYS;

const DOCUMENT: &str = include_str!("../../docs/scenarios.md");

/// The keys of a type, as its reader lists them for a key that it does not know.
fn keys<T: DeserializeOwned>() -> BTreeSet<String> {
    let error = toml::from_str::<T>("no-such-key = 1")
        .err()
        .expect("no such key");
    let message = error.message().to_owned();
    let quoted = message.split('`').skip(1).step_by(2).skip(1);
    let keys: BTreeSet<String> = quoted.map(str::to_owned).collect();
    assert!(keys.len() > 4, "{message}");
    keys
}

/// The first cells of the table below a heading.
fn documented(heading: &str) -> BTreeSet<String> {
    let (_, section) = DOCUMENT
        .split_once(&format!("\n{heading}\n"))
        .expect(heading);
    let section = section.split("\n#").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.filter_map(|row| row.split_once('`'));
    cells.map(|(key, _)| key.to_owned()).collect()
}

#[test]
fn document_has_each_key_and_no_other() {
    assert_eq!(keys::<Written>(), {
        let mut keys = documented("## Keys");
        // It is taken out of the file before the rest is read.
        assert!(keys.remove("variants"));
        keys
    });
    let mut guest = keys::<WrittenGuest>();
    // By ESX's name too, which the table of settings has.
    guest.retain(|key| VM_KEYS.iter().all(|setting| setting.esx != key));
    assert_eq!(guest, documented("### Guests"));
    assert_eq!(keys::<WrittenChange>(), documented("### Changes"));
    let mut expect = documented("### Expectations");
    for series in [OPERATIONS, P50, P99] {
        assert!(expect.remove(series), "{series}");
    }
    assert_eq!(keys::<WrittenExpect>(), expect);
}

#[test]
fn examples_of_the_document_are_right() {
    let examples = DOCUMENT.split("```toml\n").skip(1).map(|rest| {
        let (example, _) = rest.split_once("```").expect("its end");
        let scenario = parse(Path::new("example.toml"), example);
        let scenario = scenario.unwrap_or_else(|error| panic!("{error}"));
        for variant in &scenario.variants {
            promises::all(&variant.setup).expect("the host makes them");
        }
        let names = scenario.variants.iter().map(|variant| &variant.name);
        names.cloned().collect::<Vec<_>>()
    });
    let names: Vec<_> = examples.collect();
    assert_eq!(names, [["esx", "stall"], ["shares=low", "shares=high"]]);
}
