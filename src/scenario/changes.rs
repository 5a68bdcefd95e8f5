//! What changes while a scenario runs.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::guests::Guest;
use super::matches;
use super::pools::{self, Pools, check_pool};
use super::read::Time;
use crate::settings::{DEFAULT, Key, Keys, PoolPatch, Reading, VmPatch, VmSettings, shown};
use crate::units::Bytes;

/// The key under which a guest's balloon is set by hand.
const BALLOON: &str = "balloon";
/// The word that gives a balloon back to the policy.
const AUTO: &str = "auto";

/// A table `[[change]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct WrittenChange {
    at: Spanned<Time>,
    #[serde(default)]
    set: Keys,
    start: Option<Spanned<Names>>,
    stop: Option<Spanned<Names>>,
    kill: Option<Spanned<Names>>,
}

/// Makes an action on the guest of a name.
type Make = fn(String) -> Action;

/// A name, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "the name of a guest, or a list of names")]
enum Names {
    One(String),
    Many(Vec<String>),
}

impl Names {
    fn all(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }
}

/// What is done at one time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// When, from the start of the run. What is about a VM waits until its guest is powered on.
    pub at: Duration,
    /// What, in this order.
    pub actions: Vec<Action>,
}

/// One thing that is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Sets a setting of the host; [`DEFAULT`] takes it back.
    Set(Key, String),
    /// Sets a setting of a VM: the guest, what is written, what it means.
    SetVm(String, String, VmPatch),
    /// Sets a setting of a resource pool: the pool, what is written, what it means.
    SetPool(String, String, PoolPatch),
    /// Sets the balloon of a VM; `None` gives it back to the policy.
    Balloon(String, Option<Bytes>),
    /// Powers a guest on.
    Start(String),
    /// Asks a guest to end. It verifies its memory first.
    Stop(String),
    /// Kills a guest's process.
    Kill(String),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(key, value) => write!(f, "{} = {value}", key.spec().name),
            Self::SetVm(name, text, _) => write!(f, "{name}: {text}"),
            Self::SetPool(name, text, _) => write!(f, "resource pool {name}: {text}"),
            Self::Balloon(name, Some(target)) => write!(f, "{name}: balloon of {target}"),
            Self::Balloon(name, None) => write!(f, "{name}: balloon by the policy"),
            Self::Start(name) => write!(f, "{name} starts"),
            Self::Stop(name) => write!(f, "{name} is asked to end"),
            Self::Kill(name) => write!(f, "{name} is killed"),
        }
    }
}

impl Reading {
    /// The changes. A guest whose first change is a start waits for it.
    pub(super) fn changes(
        &mut self,
        written: &BTreeMap<String, Spanned<WrittenChange>>,
        guests: &mut [Guest],
        pools: &Pools,
        duration: Duration,
    ) -> Vec<Change> {
        let mut tables: Vec<_> = written.values().collect();
        tables.sort_by_key(|table| (table.get_ref().at.get_ref().0, table.span().start));
        let mut changes = Vec::new();
        let mut places = Vec::new();
        for table in tables {
            let change = table.get_ref();
            let at = change.at.get_ref().0;
            if at >= duration {
                let text = format!(
                    "at: {} is not before the end at {}",
                    Time(at),
                    Time(duration)
                );
                self.wrong(change.at.span(), &text);
            }
            let actions = self.actions(change, guests, pools);
            if actions.is_empty() && self.problems.is_empty() {
                let text = "nothing changes; allowed: set, start, stop or kill";
                self.wrong(table.span(), text);
            }
            places.push(change.at.span());
            changes.push(Change { at, actions });
        }
        for guest in guests {
            self.lives(guest, &changes, &places);
        }
        changes
    }

    fn actions(&mut self, change: &WrittenChange, guests: &[Guest], pools: &Pools) -> Vec<Action> {
        let mut actions = Vec::new();
        for (key, value) in &change.set {
            match set(key, &value.get_ref().to_string(), guests, pools) {
                Ok(set) => actions.extend(set),
                Err(wrong) => self.wrong(value.span(), &wrong),
            }
        }
        let others: [(_, Make); 3] = [
            (&change.kill, Action::Kill),
            (&change.stop, Action::Stop),
            (&change.start, Action::Start),
        ];
        for (names, action) in others {
            let Some(names) = names else {
                continue;
            };
            for pattern in names.get_ref().all() {
                let found: Vec<_> = named(pattern, guests).collect();
                if found.is_empty() {
                    self.wrong(names.span(), &no_guest(pattern, guests));
                }
                actions.extend(found.into_iter().map(|guest| action(guest.name.clone())));
            }
        }
        actions
    }

    /// Checks that a guest is started only while it does not run, and the rest only while it does.
    fn lives(&mut self, guest: &mut Guest, changes: &[Change], places: &[Range<usize>]) {
        let of_guest = changes.iter().zip(places).flat_map(|(change, place)| {
            let actions = change.actions.iter();
            actions.map(move |action| (change.at, place, action))
        });
        let name = guest.name.clone();
        let mut of_guest = of_guest
            .filter(|(.., action)| action.guest() == Some(&name))
            .peekable();
        let is_awaited = guest.start == Some(Duration::ZERO) && guest.until.is_none();
        if is_awaited && matches!(of_guest.peek(), Some((.., Action::Start(_)))) {
            guest.start = None;
        }
        let (mut since, mut until) = (guest.start, guest.until);
        for (at, place, action) in of_guest {
            let is_over = until.is_some_and(|until| at >= until);
            let runs = since.is_some_and(|since| at >= since) && !is_over;
            let is_start = matches!(action, Action::Start(_));
            if runs == is_start {
                let state = if runs { "runs" } else { "does not run" };
                let text = format!("{action}: at {} it {state}", Time(at));
                self.wrong(place.clone(), &text);
                return;
            }
            match action {
                Action::Start(_) => (since, until) = (Some(at), None),
                Action::Stop(_) | Action::Kill(_) => since = None,
                Action::Set(..) | Action::SetVm(..) | Action::SetPool(..) | Action::Balloon(..) => {
                }
            }
        }
    }
}

impl Action {
    /// The guest that it is about.
    #[must_use]
    pub const fn guest(&self) -> Option<&String> {
        match self {
            Self::Set(..) | Self::SetPool(..) => None,
            Self::SetVm(name, ..)
            | Self::Balloon(name, _)
            | Self::Start(name)
            | Self::Stop(name)
            | Self::Kill(name) => Some(name),
        }
    }
}

fn named<'a>(pattern: &'a str, guests: &'a [Guest]) -> impl Iterator<Item = &'a Guest> {
    let is_meant = move |guest: &&Guest| matches(pattern, &guest.name);
    guests.iter().filter(is_meant)
}

fn no_guest(pattern: &str, guests: &[Guest]) -> String {
    let names: Vec<_> = guests.iter().map(|guest| guest.name.as_str()).collect();
    let (pattern, names) = (shown(pattern), names.join(", "));
    format!("there is no guest `{pattern}`; allowed: {names}, or the beginning of names with a *")
}

/// `NAME = VALUE` of the host, `GUEST.NAME = VALUE` or `pool.POOL.NAME = VALUE`.
fn set(key: &str, value: &str, guests: &[Guest], pools: &Pools) -> Result<Vec<Action>, String> {
    if let Some(of_pool) = pools::set(key, value, pools) {
        return of_pool.map(|action| vec![action]);
    }
    // Names of guests may have dots, and so have those of settings: the longest name decides.
    let split = key
        .match_indices('.')
        .map(|(at, _)| (&key[..at], &key[at + 1..]));
    let mut of_guest = split.filter(|(pattern, _)| named(pattern, guests).next().is_some());
    let Some((pattern, name)) = of_guest.next_back() else {
        return set_host(key, value, guests);
    };
    let found = named(pattern, guests);
    if name == BALLOON {
        let target = balloon(value)?;
        return found.map(|guest| within(guest, target)).collect();
    }
    let mut patch = VmPatch::default();
    let changed = patch.change(name, value);
    let name = changed.map_err(|error| error.in_full())?;
    if let Some(pool) = &patch.pool {
        check_pool(pool, pools)?;
    }
    found
        .map(|guest| {
            let settings = guest
                .patch
                .apply(&VmSettings::default(), guest.memory.pages());
            // What is wrong with them is said elsewhere.
            let settings = settings.unwrap_or_default();
            let applied = patch.apply(&settings, guest.memory.pages());
            applied.map_err(|error| format!("{}: {}", guest.name, error.in_full()))?;
            let text = format!("{name} = {value}");
            Ok(Action::SetVm(guest.name.clone(), text, patch.clone()))
        })
        .collect()
}

fn set_host(name: &str, value: &str, guests: &[Guest]) -> Result<Vec<Action>, String> {
    match Key::find(name) {
        Ok(key) => {
            if value != DEFAULT {
                key.read(value).map_err(|error| error.to_string())?;
            }
            Ok(vec![Action::Set(key, value.to_owned())])
        }
        Err(unknown) => {
            let names: Vec<_> = guests.iter().map(|guest| guest.name.as_str()).collect();
            Err(format!(
                "{unknown}; of a resource pool pool.POOL.NAME, and of a guest GUEST.NAME with one of these guests: {}",
                names.join(", ")
            ))
        }
    }
}

fn balloon(value: &str) -> Result<Option<Bytes>, String> {
    if value == AUTO {
        return Ok(None);
    }
    let size = value.parse::<Bytes>().ok();
    let size = size.filter(|size| size.whole_pages().is_some());
    let wrong = || {
        let value = shown(value);
        format!("balloon cannot be `{value}`; allowed: a size of whole pages, such as 64M, or auto")
    };
    size.map(Some).ok_or_else(wrong)
}

fn within(guest: &Guest, target: Option<Bytes>) -> Result<Action, String> {
    if !guest.agent {
        let name = &guest.name;
        return Err(format!(
            "{name}: it has no balloon; allowed: a guest without agent = false"
        ));
    }
    if let Some(size) = target.filter(|size| *size > guest.memory) {
        let (name, memory) = (&guest.name, guest.memory);
        return Err(format!(
            "{name}: a balloon of {size} is more than its memory of {memory}"
        ));
    }
    Ok(Action::Balloon(guest.name.clone(), target))
}
