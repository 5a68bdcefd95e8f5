//! What VMs and resource pools have in common: settings that somebody has written as keys and values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserializer, Serialize, Serializer};

use super::layers::DEFAULT;
use super::value::{Scalar, shown};
use super::{PoolPatch, VmPatch};

/// The settings of which a patch takes back what was set by hand, by their short names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TakenBack(BTreeSet<&'static str>);

impl TakenBack {
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains(key)
    }

    pub(super) fn add(&mut self, key: &'static str) {
        self.0.insert(key);
    }
}

impl Serialize for TakenBack {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|key| (key, DEFAULT)))
    }
}

/// A table of a configuration file, `[vm.NAME]` or `[pool.NAME]`. Only when a host applies it can it find out what it
/// cannot do; the lines are kept to tell then where that was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyedTable<P> {
    /// The settings.
    pub patch: P,
    line: usize,
    keys: BTreeMap<&'static str, usize>,
}

/// What a configuration file says of one VM.
pub type VmTable = KeyedTable<VmPatch>;
/// What a configuration file says of one resource pool.
pub type PoolTable = KeyedTable<PoolPatch>;

impl<P: Default> KeyedTable<P> {
    /// An empty table that begins on a line.
    pub(super) fn at(line: usize) -> Self {
        Self {
            patch: P::default(),
            line,
            keys: BTreeMap::new(),
        }
    }
}

impl<P> KeyedTable<P> {
    /// Notes on which line the setting of this short name is.
    pub(super) fn note(&mut self, key: &'static str, line: usize) {
        self.keys.insert(key, line);
    }

    /// The line of a setting, by its short name; for one that the table does not have, the line where the table
    /// begins.
    #[must_use]
    pub fn line_of(&self, key: &str) -> usize {
        self.keys.get(key).copied().unwrap_or(self.line)
    }
}

/// Reads words of the form `KEY=VALUE`, each with `change`, and returns whether the word `default` is among them.
/// `no_pair` says that a word is not of that form.
pub(super) fn read_words<'a, E>(
    words: impl IntoIterator<Item = &'a str>,
    no_pair: fn(String) -> E,
    mut change: impl FnMut(&str, &str) -> Result<&'static str, E>,
) -> Result<bool, E> {
    let mut takes_back = false;
    for word in words {
        if word == DEFAULT {
            takes_back = true;
            continue;
        }
        let pair = word.split_once('=');
        let (key, value) = pair.ok_or_else(|| no_pair(shown(word)))?;
        change(key.trim(), value)?;
    }
    Ok(takes_back)
}

/// Reads an object whose fields are settings; `null` is `none`. `put` adds one, or says in full why it cannot. `what` is
/// what the settings are of.
pub(super) fn read<'de, D, P>(
    deserializer: D,
    what: &'static str,
    put: fn(&mut P, &str, &str) -> Result<(), String>,
) -> Result<P, D::Error>
where
    D: Deserializer<'de>,
    P: Default,
{
    struct Fields<P>(&'static str, fn(&mut P, &str, &str) -> Result<(), String>);
    impl<'de, P: Default> Visitor<'de> for Fields<P> {
        type Value = P;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an object of {} settings", self.0)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<P, A::Error> {
            let mut patch = P::default();
            while let Some((key, value)) = map.next_entry::<String, Option<Scalar>>()? {
                let text = value.map_or_else(|| "none".to_owned(), |value| value.to_string());
                // As text, so that JSON and command lines are read by the same rules.
                (self.1)(&mut patch, &key, &text).map_err(de::Error::custom)?;
            }
            Ok(patch)
        }
    }
    deserializer.deserialize_map(Fields(what, put))
}
