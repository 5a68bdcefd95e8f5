//! Classes of synthetic pages, and the numbers they are made of.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::units::{PAGE_SIZE, PageBuf};

/// A class of synthetic pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// All zero.
    Zero,
    /// One word repeated over the page, a different one on each page.
    Filled,
    /// Lines of a log: compresses below half.
    Text,
    /// Like machine code: some of the pages compress to half.
    Code,
    /// Like the heap of a program: pointers, small numbers, gaps.
    Heap,
    /// Bytes that no compressor makes smaller; no two pages are equal.
    Random,
    /// Groups of all the other classes.
    Mixed,
}

impl Class {
    pub(super) fn fill(self, dice: &mut Dice, group: u64, page: &mut PageBuf) {
        match self {
            Self::Zero => page.0.fill(0),
            Self::Filled => {
                let word = dice.next().to_le_bytes();
                let (words, _) = page.0.as_chunks_mut::<8>();
                words.fill(word);
            }
            Self::Text => fill_with(page, || {
                let mut phrase = PHRASES[dice.below(PHRASES.len())].as_bytes().to_vec();
                // Each phrase gets a digit, so that lines differ.
                phrase.push(b'0' + (dice.next() % 10) as u8);
                phrase
            }),
            Self::Code => code(dice, page),
            Self::Heap => heap(dice, page),
            Self::Random => {
                let (words, _) = page.0.as_chunks_mut::<8>();
                words
                    .iter_mut()
                    .for_each(|word| *word = dice.next().to_le_bytes());
            }
            Self::Mixed => {
                let class = match group % 20 {
                    0..2 => Self::Zero,
                    2 => Self::Filled,
                    3..9 => Self::Text,
                    9..13 => Self::Code,
                    13..17 => Self::Heap,
                    _ => Self::Random,
                };
                class.fill(dice, group, page);
            }
        }
    }
}

/// The phrases that lines of a log are made of.
const PHRASES: [&str; 20] = [
    "INFO the guest has been powered on ",
    "WARN memory of the host is short ",
    "ERROR cannot read from the socket ",
    "page is shared with another guest ",
    "connection closed by peer ",
    "configuration file was read again ",
    "started in ",
    "name=",
    "size=",
    "status=200 ",
    "status=404 ",
    "/usr/lib/x86_64-linux-gnu/",
    "/var/log/messages ",
    "retry after a timeout of 30 s ",
    "\n2026-11-22T09:30:",
    "\n2026-11-22T09:31:",
    "the balloon has reached its target ",
    "GET /index.html HTTP/1.1 ",
    "worker thread is idle ",
    "user=daemon ",
];

/// Sequences of instructions that compilers for x86-64 emit again and again; operands follow them.
const IDIOMS: [&[u8]; 8] = [
    b"\x55\x48\x89\xe5\x41\x57\x41\x56\x53\x48\x83\xec",
    b"\x48\x8b\x7d\xf8\x48\x85\xff\x0f\x84",
    b"\x48\x83\xc4\x18\x5b\x41\x5e\x41\x5f\x5d\xc3",
    b"\x0f\x1f\x44\x00\x00\x48\x8d\x3d",
    b"\x48\x8b\x45\xf0\x48\x89\xc7\xe8",
    b"\x31\xc0\x48\x85\xc0\x75",
    b"\x4c\x89\xf6\x48\x89\xdf\xff\x15",
    b"\xc3\x66\x2e\x0f\x1f\x84\x00\x00\x00\x00\x00",
];

/// Machine code. The part that is operands varies from page to page, as it does in programs: some pages compress to
/// half and most do not.
fn code(dice: &mut Dice, page: &mut PageBuf) {
    let operands = 1 + dice.below(4);
    fill_with(page, || {
        let mut bytes = IDIOMS[dice.below(IDIOMS.len())].to_vec();
        bytes.extend(&dice.next().to_le_bytes()[..operands]);
        bytes
    });
}

/// Objects of a few words: a type, a count, pointers near each other, padding.
fn heap(dice: &mut Dice, page: &mut PageBuf) {
    let base = 0x7f3a_0000_0000 | (dice.next() & 0xff_f000);
    fill_with(page, || {
        let mut object = Vec::with_capacity(64);
        object.extend((0x5581_a040_u64 + 64 * (dice.next() % 8)).to_le_bytes());
        object.extend((1 + dice.next() % 3).to_le_bytes());
        for _ in 0..1 + dice.below(3) {
            object.extend((base + 16 * (dice.next() % 4096)).to_le_bytes());
        }
        object.resize(object.len() + 8 * dice.below(4), 0);
        object
    });
}

fn fill_with(page: &mut PageBuf, mut next: impl FnMut() -> Vec<u8>) {
    let mut at = 0;
    while at < PAGE_SIZE {
        let bytes = next();
        let len = bytes.len().min(PAGE_SIZE - at);
        page.0[at..at + len].copy_from_slice(&bytes[..len]);
        at += len;
    }
}

/// The generator xorshift64* with a mixed seed: fast, and the same everywhere.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Numbers that follow from `seed` and `part`.
    #[must_use]
    pub const fn new(seed: u64, part: u64) -> Self {
        // The finaliser of splitmix64, so that neighbouring pages have nothing in common.
        let mut z = seed.wrapping_add(part.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // Not zero, from where xorshift never gets away.
        Self((z ^ (z >> 31)) | 1)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which must not be zero.
    pub const fn below(&mut self, end: usize) -> usize {
        ((self.next() >> 32) % end as u64) as usize
    }

    /// The numbers below `count` in a random order.
    pub fn order(&mut self, count: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::Compressor;

    fn page(class: Class, number: u64) -> PageBuf {
        let mut page = PageBuf([0xee; PAGE_SIZE]);
        class.fill(&mut Dice::new(3, number), number / 32, &mut page);
        page
    }

    #[test]
    fn classes_compress_as_they_say() {
        let mut compressor = Compressor::new();
        let mut halves = |class| {
            let pages = (0..300).map(|number| page(class, number));
            pages
                .filter(|page| compressor.compress(page).is_some())
                .count()
        };
        assert_eq!(halves(Class::Random), 0);
        for class in [Class::Zero, Class::Filled, Class::Text, Class::Heap] {
            assert_eq!(halves(class), 300, "{class}");
        }
        let code = halves(Class::Code);
        assert!((30..270).contains(&code), "{code} pages of code in 300");
    }

    #[test]
    fn order_has_every_number_once() {
        let mut order = Dice::new(1, 2).order(1000);
        assert_ne!(order, (0..1000).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
    }
}
