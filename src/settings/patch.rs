//! Changes of a VM's settings, as people, files and clients write them.

use serde::{Deserialize, Deserializer};

use super::error::{VmSettingsError, nearest};
use super::keyed;
use super::layers::DEFAULT;
use super::value::shown;
use super::vm::{VM_KEYS, VmKey, VmPatch, VmSettings};
use crate::units::Pages;

impl VmPatch {
    /// Reads words of the form `KEY=VALUE`. The word `default` takes back all settings that no other word names.
    ///
    /// # Errors
    /// [`VmSettingsError`] of the first word that is wrong.
    pub fn from_words<'a>(
        words: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, VmSettingsError> {
        let mut patch = Self::default();
        let change = |key: &str, value: &str| patch.change(key, value);
        let takes_back = keyed::read_words(words, VmSettingsError::Word, change)?;
        for key in VM_KEYS.iter().filter(|_| takes_back) {
            if !(key.is_in)(&patch) {
                patch.taken_back.add(key.name);
            }
        }
        Ok(patch)
    }

    /// Adds one setting, or, if the text is `default`, takes back what was set by hand; returns its short name.
    ///
    /// # Errors
    /// [`VmSettingsError`]; the patch is as before.
    pub fn change(&mut self, key: &str, text: &str) -> Result<&'static str, VmSettingsError> {
        if text != DEFAULT {
            return self.put(key, text);
        }
        let known = self.first(key)?;
        self.taken_back.add(known.name);
        Ok(known.name)
    }

    /// Adds one setting; returns its short name.
    ///
    /// # Errors
    /// [`VmSettingsError`]; the patch is as before.
    pub fn put(&mut self, key: &str, text: &str) -> Result<&'static str, VmSettingsError> {
        let known = self.first(key)?;
        // Under ESX's names, a bare number counts MB.
        let is_esx = known.esx.eq_ignore_ascii_case(key);
        let in_mb = known.is_size && is_esx && text.parse::<u64>().is_ok();
        let in_mb = in_mb.then(|| format!("{text}M"));
        let read = (known.read)(self, in_mb.as_deref().unwrap_or(text));
        read.map(|()| known.name)
            .ok_or_else(|| VmSettingsError::Value {
                key: known.name,
                value: shown(text),
                allowed: known.allowed,
            })
    }

    /// The setting of a name, of which the patch says nothing yet.
    fn first(&self, key: &str) -> Result<&'static VmKey, VmSettingsError> {
        let found = VM_KEYS.iter().find(|known| known.is(key));
        let known = found.ok_or_else(|| VmSettingsError::Unknown {
            key: shown(key),
            nearest: nearest(key, VM_KEYS.iter().flat_map(|key| [key.name, key.esx])),
        })?;
        if (known.is_in)(self) {
            return Err(VmSettingsError::Twice(known.name));
        }
        Ok(known)
    }

    /// The settings of a VM of `size` that had `settings`, after this change.
    ///
    /// # Errors
    /// [`VmSettingsError::Limit`] or [`VmSettingsError::Reservation`] if the values contradict each
    /// other or the size.
    pub fn apply(&self, settings: &VmSettings, size: Pages) -> Result<VmSettings, VmSettingsError> {
        let new = self.changed(settings);
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

impl<'de> Deserialize<'de> for VmPatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        keyed::read(deserializer, "VM", |patch: &mut Self, key, text| {
            let changed = patch.change(key, text);
            changed.map(drop).map_err(|error| error.in_full())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use memvisor_wire::memory::Shares;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::keyed::TakenBack;
    use super::*;

    const SIZE: Pages = Pages(65_536);

    fn patch(words: &str) -> Result<VmPatch, VmSettingsError> {
        VmPatch::from_words(words.split_whitespace())
    }

    #[test]
    fn words_under_both_names_are_read() {
        let short = "shares=high reservation=16M limit=128M balloon-max=64M sharing=off salt=a \
                     swap-dir=/s swap-persist=on";
        let esx = "sched.mem.shares=high sched.mem.min=16 SCHED.MEM.MAX=128 \
                   sched.mem.maxmemctl=64 sched.mem.pshare.enable=FALSE sched.mem.pshare.salt=a \
                   sched.swap.dir=/s sched.swap.persist=TRUE";
        let read = patch(short).expect("valid");
        assert_eq!(patch(esx).as_ref(), Ok(&read));
        assert_eq!(read.shares, Some(Shares::PerMib(20)));
        let sizes = (read.reservation, read.limit, read.balloon_max);
        let [small, large, most] = [4096, 32_768, 16_384].map(Pages);
        assert_eq!(sizes, (Some(small), Some(Some(large)), Some(Some(most))));
        assert_eq!(read.sharing, Some(false));
        assert_eq!(read.salt, Some(Some("a".to_owned())));
        assert_eq!(read.swap_dir, Some(Some(PathBuf::from("/s"))));
        assert_eq!(read.swap_persist, Some(true));
    }

    #[test]
    fn default_takes_back_what_is_below_and_nothing_else() {
        let by_hand = patch("limit=64M shares=high salt=a").expect("valid");
        let taken = patch("sched.mem.max=default shares=low").expect("valid");
        let left = taken.over(&by_hand);
        assert_eq!(left, patch("shares=low salt=a").expect("valid"));
        let all = patch("default").expect("valid");
        assert_eq!(all.over(&by_hand), VmPatch::default());
        let most = patch("default salt=b").expect("valid");
        assert_eq!(most.over(&by_hand), patch("salt=b").expect("valid"));
        let json = serde_json::to_value(&taken).expect("plain data");
        assert_eq!(
            json,
            serde_json::json!({"limit": "default", "shares": "low"})
        );
        assert!(VmPatch::default().put("limit", "default").is_err());
        for words in ["limit=1M limit=default", "limit=default limit=1M"] {
            let error = patch(words).expect_err(words);
            assert_eq!(error, VmSettingsError::Twice("limit"));
        }
    }

    #[test]
    fn esx_says_unlimited_and_minus_one() {
        for text in ["none", "unlimited", "Unlimited", "-1"] {
            for key in [
                "limit",
                "sched.mem.max",
                "balloon-max",
                "sched.mem.maxmemctl",
            ] {
                let read = patch(&format!("{key}={text}")).expect(text);
                assert!(
                    [read.limit, read.balloon_max].contains(&Some(None)),
                    "{key}={text}"
                );
            }
        }
        let read = serde_json::from_str::<VmPatch>(r#"{"sched.mem.max": -1}"#);
        assert_eq!(read.expect("valid").limit, Some(None));
        assert!(patch("limit=-2").is_err() && patch("reservation=-1").is_err());
    }

    #[test]
    fn none_unsets_and_an_empty_salt_is_one() {
        let unset = patch("limit=none balloon-max=none salt=none swap-dir=none").expect("valid");
        assert_eq!((unset.limit, unset.balloon_max), (Some(None), Some(None)));
        assert_eq!((unset.salt, unset.swap_dir), (Some(None), Some(None)));
        let own = patch("salt=").expect("valid");
        assert_eq!(own.salt, Some(Some(String::new())));
    }

    #[test]
    fn wrong_words_are_refused_with_key_value_and_what_is_allowed() {
        for (words, parts) in [
            ("shares", ["`shares`", "KEY=VALUE", "balloon-max"]),
            ("sahres=1", ["`sahres`", "no VM setting", "allowed: shares"]),
            (
                "x=1",
                ["`x`", "no VM setting", "swap-persist, or their ESX"],
            ),
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
            (r#"{"reservation": null}"#, "reservation cannot be `none`"),
            (r#"{"limits": 1}"#, "allowed: limit"),
            ("7", "an object of VM settings"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    /// A patch with what can be put into it of some texts.
    fn any_patch() -> impl Strategy<Value = VmPatch> {
        let text = prop_oneof![
            "low|normal|high|none|unlimited|-1|default|on|off|/[a-z]{1,9}|[a-z ]{0,3}",
            (0_u64..1 << 28).prop_map(|pages| format!("{pages} pages")),
            (0..=Shares::MAX).prop_map(|shares| shares.to_string()),
        ];
        vec((0..VM_KEYS.len(), text), 0..30).prop_map(|puts| {
            let mut patch = VmPatch::default();
            for (key, text) in puts {
                let _ = patch.change(VM_KEYS[key].name, &text);
            }
            patch
        })
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
                // What is taken back is taken from a patch, not from settings in which nobody sees whence they come.
                let takes_back = second.taken_back != TakenBack::default();
                let between = first.apply(&was, SIZE).ok().filter(|_| !takes_back);
                if let Some(between) = between {
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
