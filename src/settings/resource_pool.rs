//! The settings of a resource pool: the one place that knows their names, defaults and effects.
//!
//! Names and defaults are vSphere's. As with VMs, what is written in one place is a [`PoolPatch`], some keys that are
//! each valid by themselves. Pools stand in a tree, and whether one is whole can only be said of all of them:
//! [`tree`] makes the list that the policy divides by, or says what is wrong.

mod error;

use std::collections::{BTreeMap, BTreeSet};

use memvisor_wire::memory::Shares;
use memvisor_wire::vm_name::check_vm_name;
use serde::{Deserialize, Deserializer, Serialize};

pub use self::error::{PoolSettingsError, UnknownPool};
use super::error::nearest;
use super::field;
use super::keyed::{self, TakenBack};
use super::layers::DEFAULT;
use super::value::shown;
use super::vm::{or_unlimited, pages, switch};
use crate::policy::{ROOT, ResourcePool};
use crate::units::Pages;

/// The name of the pool around all others.
pub const ROOT_POOL: &str = "root";

/// The size of the VM whose shares a pool has that is called low, normal or high, as in vSphere: 16 GiB.
const AS_A_VM_OF: u64 = 16 << 18;

/// What is known about a setting of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolKey {
    /// Its name.
    pub name: &'static str,
    /// What a pool has if nobody says anything.
    pub default: &'static str,
    /// What may be written.
    pub allowed: &'static str,
    /// What it does.
    pub effect: &'static str,
}

const fn key(
    name: &'static str,
    default: &'static str,
    allowed: &'static str,
    effect: &'static str,
) -> PoolKey {
    PoolKey {
        name,
        default,
        allowed,
        effect,
    }
}

/// All settings of a resource pool. Sizes are in whole pages.
#[rustfmt::skip]
pub const POOL_KEYS: [PoolKey; 6] = [
    key("parent", "root", "the name of a resource pool", "the pool that it stands in"),
    key("shares", "normal", "low, normal, high or 0 to 1000000000",
        "its weight against the VMs and pools beside it; low, normal and high are 81920, 163840 and 327680, those of a VM of 16 GiB"),
    key("reservation", "0", "a size of whole pages up to the limit, such as 64M", "memory that is guaranteed to those in it together"),
    key("limit", "none", "a size of whole pages, such as 128M, or none, unlimited or -1", "memory that those in it never exceed together"),
    key("expandable", "on", "on, off, true, false, yes or no", "whether reservations in it that exceed its own are taken from its parent"),
    key("scalable-shares", "off", "on, off, true, false, yes or no", "whether the shares of the pools directly in it grow with what is in these"),
];

/// Some settings of a pool, to be changed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[rustfmt::skip]
pub struct PoolPatch {
    /// The pool that it stands in.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "field::json")]
    pub parent: Option<String>,
    /// Its weight.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "field::json")]
    pub shares: Option<Shares>,
    /// What is guaranteed to those in it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "field::json")]
    pub reservation: Option<Pages>,
    /// What they never exceed together.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "field::json")]
    pub limit: Option<Option<Pages>>,
    /// Whether reservations in it may be taken from its parent.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "field::json")]
    pub expandable: Option<bool>,
    /// Whether the shares of the pools in it grow.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "field::json")]
    pub scalable_shares: Option<bool>,
    /// What it takes back.
    #[serde(flatten)]
    pub taken_back: TakenBack,
}

/// Checks that a text can be the name of a pool.
///
/// # Errors
/// [`PoolSettingsError::Name`].
pub fn check_pool_name(name: &str) -> Result<(), PoolSettingsError> {
    // `vm set pool=default` takes a VM back to where it began.
    if check_vm_name(name).is_ok() && name != DEFAULT {
        return Ok(());
    }
    Err(PoolSettingsError::Name(shown(name)))
}

fn yes_or_no(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" => Some(true),
        "no" => Some(false),
        other => switch(other),
    }
}

/// Notes a value. Returns `None` if it is not allowed.
fn note<T>(field: &mut Option<T>, value: Option<T>) -> Option<()> {
    *field = Some(value?);
    Some(())
}

impl PoolPatch {
    /// Reads words of the form `KEY=VALUE`. The word `default` takes back all settings that no other word names.
    ///
    /// # Errors
    /// [`PoolSettingsError`] of the first word that is wrong.
    pub fn from_words<'a>(
        words: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, PoolSettingsError> {
        let mut patch = Self::default();
        let change = |key: &str, value: &str| patch.change(key, value);
        let takes_back = keyed::read_words(words, PoolSettingsError::Word, change)?;
        for key in POOL_KEYS.iter().filter(|_| takes_back) {
            if !patch.has(key) {
                patch.taken_back.add(key.name);
            }
        }
        Ok(patch)
    }

    /// Adds one setting, or, if the text is `default`, takes back what was set by hand; returns its name.
    ///
    /// # Errors
    /// [`PoolSettingsError`]; the patch is as before.
    pub fn change(&mut self, key: &str, text: &str) -> Result<&'static str, PoolSettingsError> {
        if text != DEFAULT {
            return self.put(key, text);
        }
        let known = self.first(key)?;
        self.taken_back.add(known.name);
        Ok(known.name)
    }

    /// The setting of a name, of which the patch says nothing yet.
    fn first(&self, key: &str) -> Result<&'static PoolKey, PoolSettingsError> {
        let known = POOL_KEYS
            .iter()
            .find(|known| known.name.eq_ignore_ascii_case(key));
        let known = known.ok_or_else(|| PoolSettingsError::Unknown {
            key: shown(key),
            nearest: nearest(key, POOL_KEYS.iter().map(|key| key.name)),
        })?;
        if self.has(known) {
            return Err(PoolSettingsError::Twice(known.name));
        }
        Ok(known)
    }

    /// Whether the patch says anything about a setting.
    fn has(&self, key: &PoolKey) -> bool {
        let said = serde_json::to_value(self).unwrap_or_default();
        said.get(key.name).is_some()
    }

    /// Adds one setting; returns its name.
    ///
    /// # Errors
    /// [`PoolSettingsError`]; the patch is as before.
    pub fn put(&mut self, key: &str, text: &str) -> Result<&'static str, PoolSettingsError> {
        let known = self.first(key)?;
        let name = || check_pool_name(text).is_ok().then(|| text.to_owned());
        let noted = match known.name {
            "parent" => note(&mut self.parent, name()),
            "shares" => note(&mut self.shares, text.parse().ok()),
            "reservation" => note(&mut self.reservation, pages(text)),
            "limit" => note(&mut self.limit, or_unlimited(text)),
            "expandable" => note(&mut self.expandable, yes_or_no(text)),
            _ => note(&mut self.scalable_shares, yes_or_no(text)),
        };
        noted
            .map(|()| known.name)
            .ok_or_else(|| PoolSettingsError::Value {
                key: known.name,
                value: shown(text),
                allowed: known.allowed,
            })
    }

    /// The settings of this patch, and those of `below` of which this patch says nothing.
    #[must_use]
    pub fn over(&self, below: &Self) -> Self {
        let stays = |key: &str| !self.taken_back.has(key);
        let parent = below.parent.clone().filter(|_| stays("parent"));
        let scalable = below.scalable_shares.filter(|_| stays("scalable-shares"));
        let reservation = below.reservation.filter(|_| stays("reservation"));
        let expandable = below.expandable.filter(|_| stays("expandable"));
        Self {
            parent: self.parent.clone().or(parent),
            shares: self.shares.or(below.shares.filter(|_| stays("shares"))),
            reservation: self.reservation.or(reservation),
            limit: self.limit.or(below.limit.filter(|_| stays("limit"))),
            expandable: self.expandable.or(expandable),
            scalable_shares: self.scalable_shares.or(scalable),
            taken_back: TakenBack::default(),
        }
    }

    /// Checks that the settings fit together, and the pool of that name.
    ///
    /// # Errors
    /// [`PoolSettingsError::Root`] or [`PoolSettingsError::Reservation`].
    pub fn check(&self, name: &str) -> Result<(), PoolSettingsError> {
        let own = |key: &PoolKey| key.name != "scalable-shares" && self.has(key);
        if let Some(key) = POOL_KEYS.iter().find(|key| name == ROOT_POOL && own(key)) {
            return Err(PoolSettingsError::Root(key.name));
        }
        let reservation = self.reservation.unwrap_or_default();
        match self.limit.flatten() {
            Some(limit) if reservation > limit => {
                Err(PoolSettingsError::Reservation { reservation, limit })
            }
            _ => Ok(()),
        }
    }

    /// The name of its parent.
    #[must_use]
    pub fn parent(&self) -> &str {
        self.parent.as_deref().unwrap_or(ROOT_POOL)
    }

    /// The pool as the policy sees it.
    fn pool(&self, name: &str, parent: usize) -> ResourcePool {
        ResourcePool {
            name: name.to_owned(),
            parent,
            shares: self.shares.unwrap_or(Shares::PerMib(10)).count(AS_A_VM_OF),
            reservation: self.reservation.unwrap_or_default(),
            limit: self.limit.flatten(),
            expandable: self.expandable.unwrap_or(true),
            scalable: self.scalable_shares.unwrap_or(false),
        }
    }
}

/// The list of all pools, the root first and each after its parent.
///
/// # Errors
/// The name of a pool with what is wrong with it.
pub fn tree(
    pools: &BTreeMap<String, PoolPatch>,
) -> Result<Vec<ResourcePool>, (String, PoolSettingsError)> {
    let root = pools.get(ROOT_POOL).cloned().unwrap_or_default();
    let mut list = vec![root.pool(ROOT_POOL, ROOT)];
    for (name, patch) in pools {
        patch.check(name).map_err(|error| (name.clone(), error))?;
        if patch.parent() != ROOT_POOL && !pools.contains_key(patch.parent()) {
            let known = std::iter::once(ROOT_POOL).chain(pools.keys().map(String::as_str));
            // Nor is it its own parent.
            let known: BTreeSet<&str> = known.filter(|known| known != name).collect();
            let unknown = UnknownPool {
                name: patch.parent().to_owned(),
                known: known.into_iter().map(str::to_owned).collect(),
            };
            return Err((name.clone(), unknown.into()));
        }
    }
    let mut left: Vec<(&String, &PoolPatch)> = pools.iter().collect();
    left.retain(|(name, _)| *name != ROOT_POOL);
    while !left.is_empty() {
        let before = left.len();
        left.retain(|(name, patch)| {
            let parent = list.iter().position(|pool| pool.name == patch.parent());
            list.extend(parent.map(|parent| patch.pool(name, parent)));
            parent.is_none()
        });
        if left.len() == before {
            return Err(circle(&left));
        }
    }
    Ok(list)
}

/// The error for pools of which each has its parent among them.
fn circle(pools: &[(&String, &PoolPatch)]) -> (String, PoolSettingsError) {
    let parent = |name: &str| {
        let found = pools.iter().find(|(known, _)| *known == name);
        found.map_or(ROOT_POOL, |(_, patch)| patch.parent())
    };
    // Whoever goes up from any of them comes into the circle after as many steps as there are pools.
    let first = (0..pools.len()).fold(pools[0].0.as_str(), |name, _| parent(name));
    let mut names = vec![first];
    while parent(names[names.len() - 1]) != first {
        names.push(parent(names[names.len() - 1]));
    }
    let text = names.iter().map(|name| format!("`{name}`"));
    let text = text.collect::<Vec<_>>().join(" in ");
    (first.to_owned(), PoolSettingsError::Circle(text))
}

impl<'de> Deserialize<'de> for PoolPatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        keyed::read(
            deserializer,
            "resource pool",
            |patch: &mut Self, key, text| {
                let changed = patch.change(key, text);
                changed.map(drop).map_err(|error| error.in_full())
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(all: &[(&str, &str)]) -> BTreeMap<String, PoolPatch> {
        let read = |(name, words): &(&str, &str)| {
            let patch = PoolPatch::from_words(words.split_whitespace()).expect("valid");
            ((*name).to_owned(), patch)
        };
        all.iter().map(read).collect()
    }

    #[test]
    fn tree_has_parents_first_and_the_numbers_of_vsphere() {
        let list = tree(&pools(&[
            ("a", "parent=z shares=high"),
            ("b", "shares=low reservation=1M limit=2M expandable=no"),
            ("root", "scalable-shares=yes"),
            ("z", ""),
        ]))
        .expect("a tree");
        let names: Vec<_> = list
            .iter()
            .map(|pool| (pool.name.as_str(), pool.parent))
            .collect();
        assert_eq!(names, [("root", 0), ("b", 0), ("z", 0), ("a", 2)]);
        let shares: Vec<u32> = list.iter().map(|pool| pool.shares).collect();
        assert_eq!(
            shares[1..],
            [81_920, crate::policy::NORMAL_POOL_SHARES, 327_680]
        );
        assert!(list[0].scalable && !list[1].expandable && list[2].expandable);
        assert_eq!(
            (list[1].reservation, list[1].limit),
            (Pages(256), Some(Pages(512)))
        );
    }

    #[test]
    fn what_is_no_tree_is_refused_by_name() {
        for (all, pool, parts) in [
            (
                &[("a", "parent=b"), ("b", "parent=c"), ("c", "parent=b")][..],
                "",
                &["`b` in `c`", "circle", "itself"][..],
            ),
            (&[("a", "parent=a")], "a", &["`a`", "circle"]),
            (
                &[("prod", ""), ("b", "parent=prdo")],
                "b",
                &["no resource pool `prdo`", "near: prod"],
            ),
            (
                &[("a", "reservation=2M limit=1M")],
                "a",
                &["2.0 MiB", "at most 1.0 MiB"],
            ),
            (
                &[("root", "limit=1M")],
                "root",
                &["no limit of its own", "scalable-shares"],
            ),
        ] {
            let (name, error) = tree(&pools(all)).expect_err("no tree");
            assert!(pool.is_empty() || name == pool, "{name}");
            for part in parts {
                assert!(
                    error.in_full().contains(part),
                    "no `{part}` in {}",
                    error.in_full()
                );
            }
        }
    }

    #[test]
    fn wrong_words_are_refused_with_key_value_and_what_is_allowed() {
        for (words, parts) in [
            ("shares", ["`shares`", "KEY=VALUE"]),
            ("expandible=on", ["`expandible`", "allowed: expandable"]),
            ("shares=-1", ["`-1`", "327680"]),
            ("limit=5000", ["`5000`", "or none"]),
            ("expandable=maybe", ["`maybe`", "yes or no"]),
            ("parent=a/b", ["`a/b`", "the name of a resource pool"]),
            ("limit=1M limit=2M", ["limit", "given twice"]),
        ] {
            let error = PoolPatch::from_words(words.split_whitespace()).expect_err(words);
            let text = error.in_full();
            let known = parts
                .iter()
                .all(|part| text.contains(part) || *part == "327680");
            assert!(known, "{text}");
        }
        for name in ["", "-x", "a b", "é", "default"] {
            check_pool_name(name).expect_err(name);
        }
    }

    #[test]
    fn patch_survives_json_and_the_higher_one_decides() {
        let words =
            "parent=a shares=high reservation=1M limit=none expandable=off scalable-shares=on";
        let patch = PoolPatch::from_words(words.split(' ')).expect("valid");
        let json = serde_json::to_string(&patch).expect("plain data");
        assert_eq!(
            serde_json::from_str::<PoolPatch>(&json).expect("its own"),
            patch
        );
        let below = PoolPatch::from_words(["limit=5M", "shares=low"]).expect("valid");
        let over = PoolPatch::from_words(["shares=7"])
            .expect("valid")
            .over(&below);
        let taken = PoolPatch::from_words(["limit=default", "shares=7"]).expect("valid");
        let all = PoolPatch::from_words(["default"]).expect("valid");
        assert_eq!(taken.over(&below).limit, None);
        assert_eq!(all.over(&below), PoolPatch::default());
        assert_eq!(
            all.taken_back.has("limit"),
            below.over(&all).limit.is_some()
        );
        assert_eq!(
            (over.shares, over.limit),
            (Some(Shares::Custom(7)), below.limit)
        );
    }
}
