//! Content with the statistics of memory that was recorded from real processes.
//!
//! How much sharing and compressing save depends on content more than on anything else, and content that
//! somebody thought up proves nothing. The memory of real processes cannot be kept here: it is large, and it
//! is others'. Its statistics can: which part of the pages is zero, equal in all guests or equal to a
//! neighbour, and how small LZ4 makes each of the others. A page with a given compressed size is easy to
//! make: LZ4 cannot shorten noise, and shortens a run of one byte to next to nothing.
//!
//! `cargo run --example record` records a profile.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::content::{fill_random, hash};

/// The whole, of which shares are parts.
const WHOLE: u32 = 10_000;

/// How many sizes are told apart.
pub const SIZES: usize = 32;

/// The sizes of one entry of [`Profile::sizes`].
const STEP: usize = 4096 / SIZES;

/// The least noise of a page, so that pages are only equal that shall be.
const LEAST: usize = 8;

/// What LZ4 adds to the noise of a page: the description of the run behind it.
const OVERHEAD: usize = 27;

/// The statistics of recorded pages. Shares are parts of 10 000.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What was recorded, and how much of it.
    pub recorded: String,
    /// The share of pages that are zero.
    pub zero: u32,
    /// The share of pages of files that are not zero: equal in all guests that run the same programs.
    pub common: u32,
    /// The share of other pages that are not zero and equal to another one of the same process.
    pub duplicate: u32,
    /// How many equal pages there are of a page of `duplicate`.
    pub copies: u32,
    /// Of the pages that are not zero, how many LZ4 shortens to less than 128 bytes, to less than 256, and so on. The
    /// last entry has all pages of 3968 bytes and more, those included that LZ4 does not shorten.
    pub sizes: [u32; SIZES],
}

/// What a page of recorded content is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Likeness {
    Zero,
    /// Equal in all guests.
    Common,
    /// Equal on all pages that have this number.
    Duplicate(u64),
    Unique,
}

/// The profiles by the names that `content=recorded:NAME` takes.
pub(super) static PROFILES: LazyLock<[(&str, Profile); 3]> = LazyLock::new(|| {
    let read = |text| serde_json::from_str(text).expect("a test reads each profile");
    [
        ("userland", read(include_str!("profiles/userland.json"))),
        ("compiler", read(include_str!("profiles/compiler.json"))),
        ("database", read(include_str!("profiles/database.json"))),
    ]
});

/// The profile with this name.
pub(super) fn find(name: &str) -> Option<(&'static str, &'static Profile)> {
    let known = PROFILES.iter().find(|(known, _)| *known == name);
    known.map(|(name, profile)| (*name, profile))
}

impl Profile {
    /// What a page is. Neighbours are alike in as many pages as a duplicate has copies.
    pub(super) fn likeness(&self, seed: u64, page: u64) -> Likeness {
        let block = page / u64::from(self.copies.max(1));
        let at = (hash(seed, block) % u64::from(WHOLE)) as u32;
        match at {
            _ if at < self.zero => Likeness::Zero,
            _ if at < self.zero + self.common => Likeness::Common,
            _ if at < self.zero + self.common + self.duplicate => Likeness::Duplicate(block),
            _ => Likeness::Unique,
        }
    }

    /// Fills `out` with noise and a run, so that LZ4 shortens it as it did a recorded page. An item of a page is
    /// shortened in the same proportion.
    pub(super) fn fill(&self, seed: u64, out: &mut [u8]) {
        let size = self.size(hash(seed, 1)) * out.len() / 4096;
        let noise = size.saturating_sub(OVERHEAD).max(LEAST).min(out.len());
        let (noise, run) = out.split_at_mut(noise);
        fill_random(seed, noise);
        // Never zero, so that a page which compresses well is still not a page of zeroes.
        run.fill((seed % 255 + 1) as u8);
    }

    /// A compressed size, distributed as recorded.
    fn size(&self, random: u64) -> usize {
        let all: u32 = self.sizes.iter().sum();
        let mut at = (random % u64::from(all.max(1))) as u32;
        let within = (hash(random, 0) % STEP as u64) as usize;
        for (number, share) in self.sizes.iter().enumerate() {
            if at < *share {
                return match number + 1 {
                    // Pages that LZ4 does not shorten.
                    SIZES => 4096 + OVERHEAD,
                    _ => number * STEP + within,
                };
            }
            at -= share;
        }
        4096 + OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use memvisor_wire::PAGE_SIZE;

    use super::super::content::{Content, Mix};
    use super::*;

    /// How far a share of the content may be from that of its profile, in parts of 10 000.
    const ERROR: u32 = 150;

    const PAGES: u64 = 40_000;

    fn page(content: &Content, number: u64) -> Vec<u8> {
        let mut bytes = vec![0xee; PAGE_SIZE];
        content.fill(number, number, 1, &mut bytes);
        bytes
    }

    /// The share of `count` in `of`.
    fn share(count: usize, of: usize) -> u32 {
        (count as u64 * u64::from(WHOLE) / of.max(1) as u64) as u32
    }

    #[track_caller]
    fn is_near(found: u32, wanted: u32, what: &str) {
        assert!(
            found.abs_diff(wanted) <= ERROR,
            "{what}: {found} for {wanted}"
        );
    }

    #[test]
    fn profiles_are_whole() {
        for (name, profile) in PROFILES.iter() {
            let shares = [profile.zero, profile.common, profile.duplicate];
            assert!(shares.iter().sum::<u32>() <= WHOLE, "{name}");
            let sizes: u32 = profile.sizes.iter().sum();
            assert!(sizes.abs_diff(WHOLE) <= SIZES as u32, "{name}: {sizes}");
            assert!(profile.copies >= 2 || profile.duplicate == 0, "{name}");
            assert!(!profile.recorded.is_empty(), "{name}");
        }
    }

    #[test]
    fn recorded_content_has_the_shares_and_the_compressed_sizes_of_its_profile() {
        for (name, profile) in PROFILES.iter() {
            let mix: Mix = format!("recorded:{name}").parse().expect("a mix");
            let guests = [1, 2].map(|domain| Content::new(mix, domain));
            let (mut zero, mut common, mut sizes) = (0, 0, [0; SIZES]);
            let mut own: HashMap<Vec<u8>, usize> = HashMap::new();
            for number in 0..PAGES {
                let one = page(&guests[0], number);
                if one.iter().all(|byte| *byte == 0) {
                    zero += 1;
                    continue;
                }
                let size = lz4_flex::block::compress(&one).len();
                sizes[(size / STEP).min(SIZES - 1)] += 1;
                if one == page(&guests[1], number) {
                    common += 1;
                } else {
                    *own.entry(one).or_default() += 1;
                }
            }
            let pages = PAGES as usize;
            is_near(share(zero, pages), profile.zero, &format!("{name}: zero"));
            is_near(
                share(common, pages),
                profile.common,
                &format!("{name}: common"),
            );
            let equal: Vec<usize> = own.into_values().filter(|copies| *copies > 1).collect();
            let duplicate = equal.iter().sum();
            is_near(
                share(duplicate, pages),
                profile.duplicate,
                &format!("{name}: duplicate"),
            );
            if profile.duplicate > ERROR {
                let copies = duplicate as f64 / equal.len() as f64;
                assert!(
                    (copies - f64::from(profile.copies)).abs() < 0.5,
                    "{name}: {copies}"
                );
            }
            // The shares of all sizes up to one, so that a page in the next entry counts little.
            let (mut found, mut wanted) = (0, 0);
            for (number, recorded) in profile.sizes.iter().enumerate() {
                found += sizes[number];
                wanted += recorded;
                let what = format!("{name}: less than {} bytes", (number + 1) * STEP);
                is_near(share(found, pages - zero), wanted, &what);
            }
        }
    }
}
