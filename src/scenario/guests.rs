//! The guests of a scenario.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::pools::{Pools, check_pool};
use super::read::Time;
use crate::launch::guests::{guest_table, length_here};
use crate::settings::{Memory, Reading, Scalar, VmPatch, VmSettings};
use crate::units::Bytes;

/// What stands in a workload for the directory of the scenario's files.
const FILES: &str = "{files}";

/// A table `[[guest]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct WrittenGuest {
    name: Spanned<String>,
    memory: Spanned<Memory>,
    workloads: Spanned<Vec<String>>,
    count: Option<Spanned<usize>>,
    seed: Option<u64>,
    #[serde(default)]
    alike: bool,
    start: Option<Spanned<Time>>,
    until: Option<Spanned<Time>>,
    agent: Option<bool>,
    inline: Option<bool>,
    shares: Option<Spanned<Scalar>>,
    reservation: Option<Spanned<Scalar>>,
    limit: Option<Spanned<Scalar>>,
    pool: Option<Spanned<Scalar>>,
    balloon_max: Option<Spanned<Scalar>>,
    sharing: Option<Spanned<Scalar>>,
    salt: Option<Spanned<Scalar>>,
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
            if let Some((name, written)) = patch.pool.as_ref().zip(table.pool.as_ref())
                && let Err(wrong) = check_pool(name, pools)
            {
                self.wrong(written.span(), &format!("pool: {wrong}"));
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
        let given = [
            ("shares", &written.shares),
            ("reservation", &written.reservation),
            ("limit", &written.limit),
            ("pool", &written.pool),
            ("balloon-max", &written.balloon_max),
            ("sharing", &written.sharing),
            ("salt", &written.salt),
        ];
        let given = given
            .iter()
            .filter_map(|(key, value)| Some((*key, value.as_ref()?)));
        for (key, value) in given.clone() {
            if let Err(error) = patch.put(key, &value.get_ref().to_string()) {
                self.wrong(value.span(), &error.in_full());
            }
        }
        if let Err(error) = patch.apply(&VmSettings::default(), memory.pages()) {
            let at = given
                .clone()
                .find(|(key, _)| error.key() == Some(key))
                .map(|(_, value)| value.span());
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
