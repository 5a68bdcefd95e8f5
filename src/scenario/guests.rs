//! The guests of a scenario.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use memvisor_guest_agent::workload::{Sequence, WorkloadSpec};
use memvisor_wire::vm_name::check_vm_name;
use serde::Deserialize;
use toml::Spanned;

use super::read::Time;
use crate::bench::guests::MAX_GUESTS;
use crate::settings::{Memory, Reading, Scalar, VmPatch, VmSettings};
use crate::units::{Bytes, Pages};

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

impl Reading {
    /// The guests, each of which says whether it can be.
    pub(super) fn crew(
        &mut self,
        written: &BTreeMap<String, Spanned<WrittenGuest>>,
        files: &[(String, Bytes)],
        duration: Duration,
    ) -> Vec<Guest> {
        let mut tables: Vec<_> = written.values().collect();
        tables.sort_by_key(|table| table.span().start);
        let (mut guests, mut names) = (Vec::new(), BTreeSet::new());
        for table in tables {
            for guest in self.members(table.get_ref(), guests.len(), files, duration) {
                if !names.insert(guest.name.clone()) {
                    let text = format!("there are two guests `{}`", guest.name);
                    self.wrong(table.span(), &text);
                }
                guests.push(guest);
            }
        }
        if self.problems.is_empty() && !(1..=MAX_GUESTS).contains(&guests.len()) {
            let guests = guests.len();
            let text =
                format!("{guests} guests; allowed: 1 to {MAX_GUESTS}, each a table [[guest]]");
            self.wrong(None, &text);
        }
        guests
    }

    /// The guests of one table. `before` guests have been read before.
    fn members(
        &mut self,
        written: &WrittenGuest,
        before: usize,
        files: &[(String, Bytes)],
        duration: Duration,
    ) -> Vec<Guest> {
        let Memory(memory) = *written.memory.get_ref();
        self.workloads(written, memory, files);
        let patch = self.patch(written, memory);
        let (start, until) = self.life(written, duration);
        let copies = written.count.as_ref().map_or(1, |count| *count.get_ref());
        if let Some(count) = &written.count
            && !(1..=MAX_GUESTS).contains(&copies)
        {
            let text =
                format!("count: {copies} are no number of guests; allowed: 1 to {MAX_GUESTS}");
            self.wrong(count.span(), &text);
            return Vec::new();
        }
        let name = written.name.get_ref();
        let first = written.seed.unwrap_or(before as u64 + 1);
        let guest = |number: usize| Guest {
            name: match copies {
                1 => name.clone(),
                _ => format!("{name}-{number}"),
            },
            memory,
            workloads: written.workloads.get_ref().clone(),
            seed: match written.alike {
                true => first,
                false => first.wrapping_add(number as u64 - 1),
            },
            patch: patch.clone(),
            agent: written.agent.unwrap_or(true),
            inline: written.inline.unwrap_or(true),
            start: Some(start),
            until,
        };
        let guests: Vec<_> = (1..=copies).map(guest).collect();
        if let Some(Err(error)) = guests.last().map(|guest| check_vm_name(&guest.name)) {
            self.wrong(written.name.span(), &format!("name: {error}"));
        }
        guests
    }

    /// Whether each workload can be, by the parser of the guests, and all of them fit.
    fn workloads(&mut self, written: &WrittenGuest, memory: Bytes, files: &[(String, Bytes)]) {
        let at = written.workloads.span();
        if written.workloads.get_ref().is_empty() {
            let text = "workloads: a guest needs one, such as \"kv,size=64M\"";
            self.wrong(at, text);
            return;
        }
        let mut wants = 0;
        for text in written.workloads.get_ref() {
            for (before, after) in text.match_indices(FILES).map(|(at, _)| text.split_at(at)) {
                let path = after[FILES.len()..].trim_start_matches('/');
                let name = path.split([',', '/']).next().unwrap_or_default();
                let is_all = name.is_empty() && before.ends_with(':');
                if !is_all && !files.iter().any(|(file, _)| file == name) {
                    let known: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
                    let text = format!(
                        "workloads: `{text}` reads a file that is not in [files]; allowed: {}",
                        known.join(", ")
                    );
                    self.wrong(at.clone(), &text);
                }
            }
            match text.replace(FILES, "/").parse::<Sequence>() {
                // Each workload of a sequence frees its memory before the next one begins.
                Ok(sequence) => {
                    let pages = sequence.workloads().iter().map(WorkloadSpec::needs);
                    wants += pages.max().map_or(0, u64::from);
                }
                Err(error) => self.wrong(at.clone(), &format!("workloads: {error}")),
            }
        }
        let wants = Pages(wants).bytes();
        if wants > memory {
            let text =
                format!("memory: {memory} are less than the {wants} that its workloads want");
            self.wrong(written.memory.span(), &text);
        }
    }

    /// The settings of a guest of this size.
    fn patch(&mut self, written: &WrittenGuest, memory: Bytes) -> VmPatch {
        let mut patch = VmPatch::default();
        let given = [
            ("shares", &written.shares),
            ("reservation", &written.reservation),
            ("limit", &written.limit),
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
