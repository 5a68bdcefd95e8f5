//! What workloads write: bytes that can be computed again from their place and the number of writes, so
//! that verifying needs no second copy of them.

use std::fmt;
use std::str::FromStr;

use memvisor_wire::PAGE_SIZE;

use super::profile::{self, Likeness, Profile};

/// Pages per group. All pages of a group have content of one class, because in real guests equal and
/// compressible pages come in runs too.
const GROUP_PAGES: u64 = 8;

/// The seed of content that is equal in all guests.
const COMMON: u64 = 0x636f_6d6d_6f6e;

/// How well what a workload writes can be shared and compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mix {
    /// Incompressible, different in each guest.
    Random,
    /// Text-like, compresses below 50 %, different in each guest.
    Text,
    /// Zeroes.
    Zero,
    /// A mixture as in real guests. Of the groups of pages, 15 % are zeroes, 30 % text of this guest,
    /// 25 % incompressible; 15 % are text and 15 % incompressible content that is equal in all guests.
    #[default]
    Mixed,
    /// As recorded from real processes: the profile and its name.
    Recorded(&'static str, &'static Profile),
}

impl Mix {
    /// The names, for messages.
    pub(super) const NAMES: &str =
        "random, text, zero, mixed, recorded:userland, recorded:compiler, recorded:database";
}

impl FromStr for Mix {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "random" => Ok(Self::Random),
            "text" => Ok(Self::Text),
            "zero" => Ok(Self::Zero),
            "mixed" => Ok(Self::Mixed),
            _ => {
                let known = text.strip_prefix("recorded:").and_then(profile::find);
                known
                    .map(|(name, profile)| Self::Recorded(name, profile))
                    .ok_or(())
            }
        }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Random => "random",
            Self::Text => "text",
            Self::Zero => "zero",
            Self::Mixed => "mixed",
            Self::Recorded(name, _) => return write!(f, "recorded:{name}"),
        })
    }
}

/// What the bytes of one page look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Zero,
    Text { common: bool },
    Random { common: bool },
    Recorded(&'static Profile, Likeness),
}

/// The content of all pages of one workload in one guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    mix: Mix,
    domain: u64,
}

impl Content {
    /// Content that differs from that of all other domains, except where it is equal in all guests.
    pub(super) const fn new(mix: Mix, domain: u64) -> Self {
        Self { mix, domain }
    }

    /// Writes the content of item `item` on page `page` after its `version`-th write. Version 0 was
    /// never written and is zero. The class depends on the page only, so that all small items of a page
    /// have one class. Content that is equal in all guests depends on item and version only.
    pub(super) fn fill(&self, page: u64, item: u64, version: u32, out: &mut [u8]) {
        if version == 0 {
            return out.fill(0);
        }
        let seed = |common| {
            let domain = if common { COMMON } else { self.domain };
            hash(hash(domain, item), u64::from(version))
        };
        match self.class(page) {
            Class::Zero => out.fill(0),
            Class::Text { common } => fill_text(seed(common), out),
            Class::Random { common } => fill_random(seed(common), out),
            Class::Recorded(profile, likeness) => {
                self.fill_recorded(profile, likeness, item, version, out);
            }
        }
    }

    fn fill_recorded(
        &self,
        profile: &Profile,
        likeness: Likeness,
        item: u64,
        version: u32,
        out: &mut [u8],
    ) {
        let (domain, item) = match likeness {
            Likeness::Zero => return out.fill(0),
            Likeness::Common => (COMMON, item),
            // Items that are smaller than a page have numbers of their own, and are not equal to others.
            Likeness::Duplicate(block) if out.len() == PAGE_SIZE => (self.domain, block),
            Likeness::Duplicate(_) | Likeness::Unique => (hash(self.domain, 0), item),
        };
        profile.fill(hash(hash(domain, item), u64::from(version)), out);
    }

    fn class(&self, page: u64) -> Class {
        match self.mix {
            Mix::Zero => Class::Zero,
            Mix::Text => Class::Text { common: false },
            Mix::Random => Class::Random { common: false },
            Mix::Recorded(_, profile) => Class::Recorded(profile, profile.likeness(COMMON, page)),
            // Hashed without the domain: what is equal in all guests must be on the same pages in all of them.
            Mix::Mixed => match hash(COMMON, page / GROUP_PAGES) % 100 {
                0..15 => Class::Zero,
                15..45 => Class::Text { common: false },
                45..70 => Class::Random { common: false },
                70..85 => Class::Text { common: true },
                _ => Class::Random { common: true },
            },
        }
    }
}

/// The output function of SplitMix64: every bit of the result depends on every bit of the input.
const fn scramble(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The step of SplitMix64: 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Derives a seed from another and a number.
pub(super) const fn hash(seed: u64, number: u64) -> u64 {
    scramble(scramble(seed.wrapping_add(STEP)) ^ number.wrapping_mul(STEP))
}

pub(super) fn fill_random(seed: u64, out: &mut [u8]) {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(STEP);
        scramble(state).to_le_bytes()
    };
    let (words, rest) = out.as_chunks_mut::<8>();
    for word in words {
        *word = next();
    }
    rest.copy_from_slice(&next()[..rest.len()]);
}

/// Bytes of one phrase of text.
const PHRASE: usize = 16;

/// Phrases between two stamps. The stamps make pages differ that consist of the same phrases.
const PHRASES_A_STAMP: usize = 15;

const PHRASES: [&[u8; PHRASE]; 32] = [
    b" the kernel was ",
    b"reading a page, ",
    b"writing to disk ",
    b"\nINFO request ok",
    b"\nWARN retry soon",
    b" after the fault",
    b" before the host",
    b" {\"user\": \"anna\"",
    b", \"role\": \"root\"",
    b", \"size\": 1024, ",
    b"\"state\": \"idle\"}",
    b"\n    return Null",
    b"\n   if value > 0",
    b" and page tables",
    b"nobody has asked",
    b" for yesterday. ",
    b"<td class=\"row\">",
    b"</td></tr>\n<tr> ",
    b"/usr/lib/x86_64/",
    b"libexample.so.1\n",
    b"GET /index.html ",
    b"HTTP/1.1 200 OK\n",
    b"Content-Length: ",
    b"\nUser-Agent: me ",
    b"SELECT id, name ",
    b"FROM orders AS o",
    b" WHERE total < 9",
    b" ORDER BY id ASC",
    b"\0\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0",
    b"\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0",
    b"                ",
    b"----------------",
];

fn fill_text(seed: u64, out: &mut [u8]) {
    let (mut state, mut bits) = (seed, 0);
    for (number, chunk) in out.chunks_mut(PHRASE).enumerate() {
        if number % (PHRASES_A_STAMP + 1) == 0 {
            state = state.wrapping_add(STEP);
            bits = scramble(state);
            chunk.copy_from_slice(&stamp(scramble(bits))[..chunk.len()]);
        } else {
            // 5 bits choose a phrase but only 4 are shifted out, so that 64 bits last for all phrases
            // up to the next stamp. Neighbours share a bit, which is good enough for text.
            let phrase = PHRASES[bits as usize % PHRASES.len()];
            bits >>= 4;
            chunk.copy_from_slice(&phrase[..chunk.len()]);
        }
    }
}

/// A number as 16 hexadecimal digits.
fn stamp(number: u64) -> [u8; PHRASE] {
    std::array::from_fn(|digit| b"0123456789abcdef"[(number >> (4 * digit)) as usize % 16])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn page(content: &Content, page: u64, version: u32) -> Vec<u8> {
        let mut bytes = vec![0xee; PAGE_SIZE];
        content.fill(page, page, version, &mut bytes);
        bytes
    }

    fn compressed(bytes: &[u8]) -> usize {
        lz4_flex::block::compress(bytes).len()
    }

    #[test]
    fn content_depends_on_domain_page_and_version() {
        for mix in [Mix::Random, Mix::Text] {
            let contents = [1, 2].map(|domain| Content::new(mix, domain));
            let all: HashSet<_> = contents
                .iter()
                .flat_map(|content| (0..50).map(move |number| (content, number)))
                .flat_map(|(content, number)| (1..5).map(move |v| page(content, number, v)))
                .collect();
            assert_eq!(all.len(), 2 * 50 * 4, "{mix}");
            assert_eq!(page(&contents[0], 7, 3), page(&contents[0], 7, 3), "{mix}");
        }
    }

    #[test]
    fn content_that_was_never_written_is_zero() {
        for mix in [Mix::Random, Mix::Text, Mix::Zero, Mix::Mixed] {
            let content = Content::new(mix, 1);
            assert_eq!(page(&content, 3, 0), [0; PAGE_SIZE], "{mix}");
        }
    }

    #[test]
    fn text_compresses_below_half_and_random_does_not() {
        for number in 0..500 {
            let text = page(&Content::new(Mix::Text, 1), number, 1);
            assert!(compressed(&text) < PAGE_SIZE / 2, "{}", compressed(&text));
            let random = page(&Content::new(Mix::Random, 1), number, 1);
            assert!(compressed(&random) >= PAGE_SIZE, "page {number}");
        }
    }

    #[test]
    fn mixed_content_has_the_documented_shares() {
        let pages = 40_000;
        let guests = [1, 2].map(|domain| Content::new(Mix::Mixed, domain));
        let mut counts = [0u64; 4];
        for number in 0..pages {
            let (one, other) = (page(&guests[0], number, 1), page(&guests[1], number, 1));
            let zero = one.iter().all(|byte| *byte == 0);
            let kinds = [
                zero,
                !zero && one == other,
                one != other && compressed(&one) < PAGE_SIZE / 2,
                one != other && compressed(&one) >= PAGE_SIZE,
            ];
            assert_eq!(kinds.iter().filter(|kind| **kind).count(), 1, "{number}");
            for (count, kind) in counts.iter_mut().zip(kinds) {
                *count += u64::from(kind);
            }
        }
        for (count, percent) in counts.into_iter().zip([15, 30, 30, 25]) {
            let found = 100 * count / pages;
            assert!(found.abs_diff(percent) <= 3, "{found} % for {percent} %");
        }
    }
}
