//! The guests of a scenario.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::pools::{Pools, check_pool};
use super::read::Time;
use crate::launch::guests::{guest_table, length_here};
use crate::settings::{Keys, Memory, Reading, VM_KEYS, VmKey, VmPatch, VmSettings};
use crate::units::Bytes;

/// What stands in a workload for the directory of the scenario's files.
const FILES: &str = "{files}";

/// A table `[[guest]]`: keys of its own, and settings of a VM by either of their names.
#[derive(Clone, Debug)]
pub(super) struct WrittenGuest {
    name: Spanned<String>,
    memory: Spanned<Memory>,
    workloads: Spanned<Vec<String>>,
    count: Option<Spanned<usize>>,
    seed: Option<u64>,
    alike: bool,
    start: Option<Spanned<Time>>,
    until: Option<Spanned<Time>>,
    agent: Option<bool>,
    inline: Option<bool>,
    settings: Keys,
}

/// What a guest can be set to: all that a VM can but what becomes of its swap file, which can only be changed later.
fn settings() -> impl Iterator<Item = &'static VmKey> {
    let is_of_swap = |key: &VmKey| key.name.starts_with("swap-");
    VM_KEYS.iter().filter(move |key| !is_of_swap(key))
}

/// The setting that is called so.
pub(super) fn setting(name: &str) -> Option<&'static VmKey> {
    settings().find(|key| key.is(name))
}

/// Declares how a table is read: its own keys, those that are needed first.
macro_rules! own_keys {
    (needed: $($needed:ident),+; others: $($other:ident = $default:expr),+;) => {
        const OWN: &[&str] = &[$(stringify!($needed)),+, $(stringify!($other)),+];

        impl<'de> Visitor<'de> for Table {
            type Value = WrittenGuest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WrittenGuest, A::Error> {
                $(let mut $needed = None;)+
                $(let mut $other = $default;)+
                let mut settings = Keys::new();
                while let Some(GuestKey(key)) = map.next_key()? {
                    match key.as_str() {
                        $(stringify!($needed) => $needed = Some(map.next_value()?),)+
                        $(stringify!($other) => $other = map.next_value()?,)+
                        _ => {
                            settings.insert(key, map.next_value()?);
                        }
                    }
                }
                Ok(WrittenGuest {
                    $($needed: $needed.ok_or_else(|| de::Error::missing_field(stringify!($needed)))?,)+
                    $($other,)+
                    settings,
                })
            }
        }
    };
}

own_keys! {
    needed: name, memory, workloads;
    others: count = None, seed = None, alike = false, start = None, until = None, agent = None, inline = None;
}

struct Table;

/// A key that a table may have.
struct GuestKey(String);

impl<'de> Deserialize<'de> for GuestKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        static ALL: LazyLock<Vec<&str>> = LazyLock::new(|| {
            let settings = settings().flat_map(|key| [key.name, key.esx]);
            OWN.iter().copied().chain(settings).collect()
        });
        let key = String::deserialize(deserializer)?;
        if OWN.contains(&key.as_str()) || setting(&key).is_some() {
            return Ok(Self(key));
        }
        Err(de::Error::unknown_field(&key, &ALL))
    }
}

impl<'de> Deserialize<'de> for WrittenGuest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Table)
    }
}

/// A guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its configured size.
    pub memory: Bytes,
    /// What it runs.
    pub workloads: Vec<String>,
    /// What is added to the seed of the repetition.
    pub seed: u64,
    /// Its settings.
    pub patch: VmPatch,
    /// Whether it runs a balloon agent.
    pub agent: bool,
    /// Whether it serves some of its faults itself.
    pub inline: bool,
    /// When it starts; `None`: when a change starts it.
    pub start: Option<Duration>,
    /// When it ends; `None`: with the run, or by a change.
    pub until: Option<Duration>,
}

impl WrittenGuest {
    /// Where the setting of this short name stands.
    fn place(&self, name: &str) -> Option<Range<usize>> {
        let mut settings = self.settings.iter();
        let found = settings.find(|(key, _)| setting(key).is_some_and(|key| key.name == name));
        found.map(|(_, value)| value.span())
    }
}

impl Guest {
    /// Its workloads, with the directory of the scenario's files in the place of `{files}`.
    #[must_use]
    pub fn workloads_in(&self, files: &str) -> Vec<String> {
        let in_place = |text: &String| text.replace(FILES, files);
        self.workloads.iter().map(in_place).collect()
    }
}

guest_table!(WrittenGuest);

/// The bytes of a file that a workload of a scenario with these `files` reads.
fn length(files: &[(String, Bytes)], path: &Path) -> Result<u64, String> {
    let Ok(name) = path.strip_prefix(FILES) else {
        return length_here(path);
    };
    if name == Path::new("") {
        return Ok(0);
    }
    let file = files.iter().find(|(file, _)| Path::new(file) == name);
    file.map(|(_, size)| size.0).ok_or_else(|| {
        let known: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        format!("this file is not in [files]; allowed: {}", known.join(", "))
    })
}

impl Reading {
    /// The guests, each of which says whether it can be.
    pub(super) fn crew(
        &mut self,
        written: &BTreeMap<String, Spanned<WrittenGuest>>,
        files: &[(String, Bytes)],
        pools: &Pools,
        duration: Duration,
    ) -> Vec<Guest> {
        let groups = self.groups(written, &|path| length(files, path));
        let mut guests = Vec::new();
        for group in groups {
            let table = group.table;
            let patch = self.patch(table, group.memory);
            if let Some(name) = &patch.pool
                && let Err(wrong) = check_pool(name, pools)
            {
                self.wrong(table.place("pool"), &format!("pool: {wrong}"));
            }
            let (start, until) = self.life(table, duration);
            let first = group.members.first().map(|(_, seed)| *seed);
            let alike = first.filter(|_| table.alike);
            guests.extend(group.members.into_iter().map(|(name, seed)| Guest {
                name,
                memory: group.memory,
                workloads: table.workloads.get_ref().clone(),
                seed: alike.unwrap_or(seed),
                patch: patch.clone(),
                agent: table.agent.unwrap_or(true),
                inline: table.inline.unwrap_or(true),
                start: Some(start),
                until,
            }));
        }
        guests
    }

    /// The settings of a guest of this size.
    fn patch(&mut self, written: &WrittenGuest, memory: Bytes) -> VmPatch {
        let mut patch = VmPatch::default();
        for (key, value) in &written.settings {
            if let Err(error) = patch.put(key, &value.get_ref().to_string()) {
                self.wrong(value.span(), &error.in_full());
            }
        }
        if let Err(error) = patch.apply(&VmSettings::default(), memory.pages()) {
            let at = error.key().and_then(|key| written.place(key));
            self.wrong(at, &error.in_full());
        }
        patch
    }

    /// When a guest starts, and when it ends.
    fn life(&mut self, written: &WrittenGuest, duration: Duration) -> (Duration, Option<Duration>) {
        let start = written.start.as_ref();
        let until = written.until.as_ref();
        let time = |time: &Spanned<Time>| time.get_ref().0;
        let begins = start.map(time).unwrap_or_default();
        if let Some(start) = start
            && begins >= duration
        {
            let text = format!(
                "start: {} is not before the end at {}",
                Time(begins),
                Time(duration)
            );
            self.wrong(start.span(), &text);
        }
        let ends = until.map(time);
        if let Some((until, end)) = until.zip(ends)
            && !(begins < end && end <= duration)
        {
            let text = format!(
                "until: {} is not after its start at {} and at most {}",
                Time(end),
                Time(begins),
                Time(duration)
            );
            self.wrong(until.span(), &text);
        }
        (begins, ends)
    }
}
