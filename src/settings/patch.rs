//! Changes of a VM's settings, as people, files and clients write them.

use std::fmt;
use std::path::PathBuf;

use memvisor_wire::memory::Shares;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::nearest;
use super::value::{Scalar, shown};
use super::vm::{VM_KEYS, VmSettings, VmSettingsError};
use crate::units::Pages;

/// Some settings of a VM, to be changed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmPatch {
    /// Its weight.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "shares_json"
    )]
    pub shares: Option<Shares>,
    /// Memory it is guaranteed.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "bytes_json")]
    pub reservation: Option<Pages>,
    /// Memory it never exceeds.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "or_null_json"
    )]
    pub limit: Option<Option<Pages>>,
    /// The most its balloon takes.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "or_null_json"
    )]
    pub balloon_max: Option<Option<Pages>>,
    /// Whether its pages are shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sharing: Option<bool>,
    /// Its salt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salt: Option<Option<String>>,
    /// Where its swap file is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_dir: Option<PathBuf>,
}

impl VmPatch {
    /// Reads words of the form `KEY=VALUE`.
    ///
    /// # Errors
    /// [`VmSettingsError`] of the first word that is wrong.
    pub fn from_words<'a>(
        words: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, VmSettingsError> {
        let mut patch = Self::default();
        for word in words {
            let pair = word.split_once('=');
            let (key, value) = pair.ok_or_else(|| VmSettingsError::Word(shown(word)))?;
            patch.put(key.trim(), value)?;
        }
        Ok(patch)
    }

    /// Adds one setting; returns its short name.
    ///
    /// # Errors
    /// [`VmSettingsError`]; the patch is as before.
    pub fn put(&mut self, key: &str, text: &str) -> Result<&'static str, VmSettingsError> {
        let is = |name: &str| name.eq_ignore_ascii_case(key);
        let found = VM_KEYS.iter().find(|known| is(known.name) || is(known.esx));
        let known = found.ok_or_else(|| VmSettingsError::Unknown {
            key: shown(key),
            nearest: nearest(key, VM_KEYS.iter().flat_map(|key| [key.name, key.esx])),
        })?;
        // Under ESX's names, a bare number counts MB.
        let in_mb = known.is_size && is(known.esx) && text.parse::<u64>().is_ok();
        let in_mb = in_mb.then(|| format!("{text}M"));
        match (known.read)(self, in_mb.as_deref().unwrap_or(text)) {
            Some(true) => Ok(known.name),
            Some(false) => Err(VmSettingsError::Twice(known.name)),
            None => Err(VmSettingsError::Value {
                key: known.name,
                value: shown(text),
                allowed: known.allowed,
            }),
        }
    }

    /// The settings of this patch, and those of `below` that this patch does not have.
    #[must_use]
    pub fn over(&self, below: &Self) -> Self {
        let below = below.clone();
        let this = self.clone();
        Self {
            shares: this.shares.or(below.shares),
            reservation: this.reservation.or(below.reservation),
            limit: this.limit.or(below.limit),
            balloon_max: this.balloon_max.or(below.balloon_max),
            sharing: this.sharing.or(below.sharing),
            salt: this.salt.or(below.salt),
            swap_dir: this.swap_dir.or(below.swap_dir),
        }
    }

    /// The settings of a VM of `size` that had `settings`, after this change.
    ///
    /// # Errors
    /// [`VmSettingsError::Limit`] or [`VmSettingsError::Reservation`] if the values contradict each
    /// other or the size.
    pub fn apply(&self, settings: &VmSettings, size: Pages) -> Result<VmSettings, VmSettingsError> {
        let was = settings.clone();
        let this = self.clone();
        let new = VmSettings {
            shares: this.shares.unwrap_or(was.shares),
            reservation: this.reservation.unwrap_or(was.reservation),
            limit: this.limit.unwrap_or(was.limit),
            balloon_max: this.balloon_max.unwrap_or(was.balloon_max),
            sharing: this.sharing.unwrap_or(was.sharing),
            salt: this.salt.unwrap_or(was.salt),
            swap_dir: this.swap_dir.or(was.swap_dir),
        };
        let most = new.limit.unwrap_or(size);
        if most > size {
            let (limit, size) = (most.bytes(), size.bytes());
            return Err(VmSettingsError::Limit { limit, size });
        }
        if new.reservation > most {
            let (reservation, most) = (new.reservation.bytes(), most.bytes());
            return Err(VmSettingsError::Reservation { reservation, most });
        }
        Ok(new)
    }
}

// Serde passes fields to these by reference, and never a field that is skipped.

fn shares_json<S: Serializer>(shares: &Option<Shares>, to: S) -> Result<S::Ok, S::Error> {
    match shares {
        Some(Shares::PerMib(5)) => to.serialize_str("low"),
        Some(Shares::PerMib(20)) => to.serialize_str("high"),
        Some(Shares::Custom(count)) => to.serialize_u32(*count),
        Some(Shares::PerMib(_)) | None => to.serialize_str("normal"),
    }
}

fn bytes_json<S: Serializer>(pages: &Option<Pages>, to: S) -> Result<S::Ok, S::Error> {
    pages.map(Pages::bytes).serialize(to)
}

fn or_null_json<S: Serializer>(pages: &Option<Option<Pages>>, to: S) -> Result<S::Ok, S::Error> {
    pages.flatten().map(Pages::bytes).serialize(to)
}

impl<'de> Deserialize<'de> for VmPatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = VmPatch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of VM settings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VmPatch, A::Error> {
                let mut patch = VmPatch::default();
                while let Some((key, value)) = map.next_entry::<String, Option<Scalar>>()? {
                    let text = value.map_or_else(|| "none".to_owned(), |value| value.to_string());
                    let put = patch.put(&key, &text);
                    put.map_err(|error| de::Error::custom(error.in_full()))?;
                }
                Ok(patch)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    const SIZE: Pages = Pages(65_536);

    fn patch(words: &str) -> Result<VmPatch, VmSettingsError> {
        VmPatch::from_words(words.split_whitespace())
    }

    #[test]
    fn words_under_both_names_are_read() {
        let short = "shares=high reservation=16M limit=128M balloon-max=64M sharing=off salt=a \
                     swap-dir=/s";
        let esx = "sched.mem.shares=high sched.mem.min=16 SCHED.MEM.MAX=128 \
                   sched.mem.maxmemctl=64 sched.mem.pshare.enable=FALSE sched.mem.pshare.salt=a \
                   sched.swap.dir=/s";
        let expected = VmPatch {
            shares: Some(Shares::PerMib(20)),
            reservation: Some(Pages(4096)),
            limit: Some(Some(Pages(32_768))),
            balloon_max: Some(Some(Pages(16_384))),
            sharing: Some(false),
            salt: Some(Some("a".to_owned())),
            swap_dir: Some(PathBuf::from("/s")),
        };
        assert_eq!(patch(short), Ok(expected.clone()));
        assert_eq!(patch(esx), Ok(expected));
    }

    #[test]
    fn none_unsets_and_an_empty_salt_is_one() {
        let unset = patch("limit=none balloon-max=none salt=none").expect("valid");
        assert_eq!((unset.limit, unset.balloon_max), (Some(None), Some(None)));
        assert_eq!(unset.salt, Some(None));
        let own = patch("salt=").expect("valid");
        assert_eq!(own.salt, Some(Some(String::new())));
    }

    #[test]
    fn wrong_words_are_refused_with_key_value_and_what_is_allowed() {
        for (words, parts) in [
            ("shares", ["`shares`", "KEY=VALUE", "balloon-max"]),
            ("sahres=1", ["`sahres`", "no VM setting", "allowed: shares"]),
            ("x=1", ["`x`", "no VM setting", "swap-dir, or their ESX"]),
            ("shares=-1", ["shares", "`-1`", "0 to 1000000000"]),
            ("shares=1000000001", ["shares", "`1000000001`", "normal"]),
            ("limit=5000", ["limit", "`5000`", "whole pages"]),
            ("limit=0", ["limit", "`0`", "none"]),
            ("sched.mem.max=0", ["limit", "`0`", "none"]),
            ("reservation=none", ["reservation", "`none`", "64M"]),
            ("balloon-max=1Q", ["balloon-max", "`1Q`", "or none"]),
            (
                "sharing=maybe",
                ["sharing", "`maybe`", "on, off, true or false"],
            ),
            ("swap-dir=x", ["swap-dir", "`x`", "absolute"]),
            ("limit=1M limit=2M", ["limit", "given twice", "once"]),
            (
                "shares=1 sched.mem.shares=1",
                ["shares", "given twice", "once"],
            ),
        ] {
            let error = patch(words).expect_err(words).in_full();
            for part in parts {
                assert!(error.contains(part), "`{words}`: no `{part}` in: {error}");
            }
        }
        let long = format!("salt={}", "x".repeat(257));
        let error = patch(&long).expect_err("too long").in_full();
        assert!(error.contains("256 bytes") && error.len() < 200, "{error}");
        patch(&long[..long.len() - 1]).expect("as long as allowed");
    }

    #[test]
    fn contradictions_are_refused_with_the_values() {
        let was = VmSettings {
            reservation: Pages(16_384),
            ..VmSettings::default()
        };
        for (words, expected) in [
            (
                "limit=257M",
                "limit 257.0 MiB is more than the VM's memory of 256.0 MiB",
            ),
            (
                "limit=32M",
                "reservation 64.0 MiB is more than the 32.0 MiB",
            ),
            (
                "reservation=300M",
                "reservation 300.0 MiB is more than the 256.0 MiB",
            ),
        ] {
            let error = patch(words).expect(words).apply(&was, SIZE);
            let error = error.expect_err(words).in_full();
            assert!(error.starts_with(expected), "{error}");
            assert!(error.contains("; allowed: a "), "{error}");
        }
        let both = patch("limit=32M reservation=16M").expect("valid");
        let new = both.apply(&was, SIZE).expect("they fit each other");
        assert_eq!(
            (new.limit, new.reservation),
            (Some(Pages(8192)), Pages(4096))
        );
    }

    #[test]
    fn json_is_read_strictly() {
        let read = serde_json::from_str::<VmPatch>;
        let expected = patch("limit=1M shares=7 sharing=on salt=none").expect("valid");
        let text = r#"{"limit": 1048576, "shares": 7, "sharing": true, "salt": null}"#;
        assert_eq!(read(text).expect("valid"), expected);
        for (text, part) in [
            (r#"{"limit": "1M", "limit": "2M"}"#, "limit is given twice"),
            (r#"{"limit": [1]}"#, "a number, a text, true or false"),
            (r#"{"shares": null}"#, "shares cannot be `none`"),
            (r#"{"swap-dir": null}"#, "swap-dir cannot be `none`"),
            (r#"{"limits": 1}"#, "allowed: limit"),
            ("7", "an object of VM settings"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    fn pages() -> impl Strategy<Value = Pages> {
        (1u64..1 << 28).prop_map(Pages)
    }

    prop_compose! {
        fn any_patch()(
            shares in option::of(prop_oneof![
                (0..=Shares::MAX).prop_map(Shares::Custom),
                prop_oneof![Just(5), Just(10), Just(20)].prop_map(Shares::PerMib),
            ]),
            reservation in option::of(pages()),
            limit in option::of(option::of(pages())),
            balloon_max in option::of(option::of(pages())),
            sharing in option::of(any::<bool>()),
            salt in option::of(option::of("[a-z ]{0,3}")),
            swap_dir in option::of("/[a-z]{1,9}".prop_map(PathBuf::from)),
        ) -> VmPatch {
            VmPatch { shares, reservation, limit, balloon_max, sharing, salt, swap_dir }
        }
    }

    proptest! {
        #[test]
        fn patch_survives_json(patch in any_patch()) {
            let json = serde_json::to_string(&patch).expect("texts and numbers");
            prop_assert_eq!(serde_json::from_str::<VmPatch>(&json).expect("valid"), patch);
        }

        #[test]
        fn what_is_applied_is_within_the_size(first in any_patch(), second in any_patch()) {
            let was = VmSettings::default();
            if let Ok(new) = second.over(&first).apply(&was, SIZE) {
                let most = new.limit.unwrap_or(SIZE);
                prop_assert!(new.reservation <= most && most <= SIZE);
                if let Ok(between) = first.apply(&was, SIZE) {
                    prop_assert_eq!(second.apply(&between, SIZE), Ok(new));
                }
            }
        }

        #[test]
        fn any_word_is_a_patch_or_an_error_of_one_line(word: String) {
            if let Err(error) = VmPatch::from_words([word.as_str()]) {
                prop_assert!(!error.in_full().contains(char::is_control));
            }
        }
    }
}
