//! One thread's compressor. [`payload`](memvisor_wire::payload) undoes its work; guests use
//! that too.
//!
//! A payload is either 8 bytes, the word that a page repeats from end to end ([`filled`]), or an LZ4 block. The
//! length tells the two apart: in the block of a whole page the lengths alone take more than 16 bytes.
//!
//! Most pages of programs do not halve, and finding that out should cost little. lz4_flex cannot be told to give
//! up at a bound on its output. But it skips faster the longer it finds nothing, so a page without any structure
//! costs it a microsecond. Even that is saved by a sample of the page's bytes: a page whose sample has nearly as
//! many different values as a sample of noise will not halve. Where pages halve the sample would be wasted.
//! Neighbouring pages are alike, so a page is sampled only if the one before it did not halve. For pages in
//! between, such as machine code, no test was found that is cheaper than the work it saves: a test that is right
//! about them is half a compressor itself.

use std::fmt;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use memvisor_wire::filled;

use crate::units::{PAGE_SIZE, PageBuf};

/// The largest payload worth keeping, in bytes: two of these fill an arena page, so larger ones would not save
/// a page (ESX accepts a page that compresses to 50 % or less).
pub const MAX_PAYLOAD: usize = PAGE_SIZE / 2;

/// What LZ4 may need for a page that does not compress. The library refuses a smaller buffer.
const OUTPUT_BYTES: usize = get_maximum_output_size(PAGE_SIZE);

/// A page is sampled at the start of each part of this many bytes.
const SAMPLE_EVERY: usize = 512;
const SAMPLE: usize = 32;
/// From this number of different values on, a sample of 256 bytes looks like noise. Noise has 162 of them, and
/// hardly ever fewer than this. A page of half noise and half anything else has about 115.
const NOISE_VALUES: u32 = 145;

/// Compresses pages for one thread: the hash table and the output buffer are reused, so that a page
/// costs no allocation.
pub struct Compressor {
    table: CompressTable,
    output: Box<[u8; OUTPUT_BYTES]>,
    /// Whether the latest page did not halve. Neighbours are alike, so only then is the next page sampled.
    refused: bool,
}

impl Compressor {
    /// A compressor; it takes about 12 KiB.
    #[must_use]
    pub fn new() -> Self {
        Self {
            table: CompressTable::small(),
            output: Box::new([0; OUTPUT_BYTES]),
            refused: false,
        }
    }

    /// The page in fewer bytes, which a [`ZipCache`](super::ZipCache) can decompress; `None` when they are or seem to
    /// be more than [`MAX_PAYLOAD`].
    pub fn compress(&mut self, page: &PageBuf) -> Option<&[u8]> {
        if let Some(word) = filled::word_of(&page.0) {
            // The length of a payload tells a word from a block of LZ4, which is never as short.
            let payload = &mut self.output[..filled::WORD_BYTES];
            payload.copy_from_slice(&word.to_le_bytes());
            return Some(payload);
        }
        // A sample costs a fraction of the compression that it can save, and saves nothing where pages compress.
        if self.refused && is_noise(page) {
            return None;
        }
        let len = compress_into_with_table(&page.0, &mut self.output[..], &mut self.table)
            .expect("the buffer holds the largest block a page can become");
        self.refused = len > MAX_PAYLOAD;
        (len <= MAX_PAYLOAD).then(|| &self.output[..len])
    }
}

/// Whether the page seems to have no structure by which it would halve. Wrong for a page that has the same noise
/// twice, which programs do not have.
fn is_noise(page: &PageBuf) -> bool {
    let mut seen = [0u8; 256];
    let (parts, _) = page.0.as_chunks::<SAMPLE_EVERY>();
    for part in parts {
        for value in &part[..SAMPLE] {
            seen[usize::from(*value)] = 1;
        }
    }
    let values: u32 = seen.iter().map(|seen| u32::from(*seen)).sum();
    values >= NOISE_VALUES
}

impl Default for Compressor {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Pages of the kinds of content that guests have.

    use crate::units::{PAGE_SIZE, PageBuf};

    /// A small generator, so that every page is the same in every run.
    fn noise(seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        }
    }

    /// Bytes that no compressor makes smaller.
    pub(crate) fn random(seed: u64) -> PageBuf {
        mixed(seed, PAGE_SIZE)
    }

    /// `random` bytes of noise, then a repeating tail: compresses to a little over `random` bytes.
    pub(crate) fn mixed(seed: u64, random: usize) -> PageBuf {
        let mut next = noise(seed);
        let mut page = PageBuf([0x5a; PAGE_SIZE]);
        for byte in &mut page.0[..random] {
            *byte = (next() >> 32) as u8;
        }
        page
    }

    /// Lines of words, as a log has them.
    pub(crate) fn text(seed: u64) -> PageBuf {
        let words = [
            "page ", "frame ", "slot ", "fault ", "guest ", "share ", "\n",
        ];
        let mut next = noise(seed);
        fill(|bytes| bytes.extend(words[(next() % words.len() as u64) as usize].bytes()))
    }

    /// Idioms from a small set with operands that vary, as machine code has them.
    pub(crate) fn code(seed: u64) -> PageBuf {
        let idioms: [&[u8]; 3] = [
            b"\x55\x48\x89\xe5\x41\x57\x41\x56\x53\x48\x83\xec",
            b"\x48\x8b\x7d\xf8\x48\x85\xff\x0f\x84\x00\x00\x00",
            b"\x48\x83\xc4\x18\x5b\x41\x5e\x41\x5f\x5d\xc3\xcc",
        ];
        let mut next = noise(seed);
        fill(|bytes| {
            let draw = next();
            bytes.extend(idioms[(draw % 3) as usize]);
            bytes.push((draw >> 32) as u8);
        })
    }

    fn fill(mut more: impl FnMut(&mut Vec<u8>)) -> PageBuf {
        let mut bytes = Vec::with_capacity(PAGE_SIZE + 16);
        while bytes.len() < PAGE_SIZE {
            more(&mut bytes);
        }
        let mut page = PageBuf::zeroed();
        page.0.copy_from_slice(&bytes[..PAGE_SIZE]);
        page
    }
}

#[cfg(test)]
mod tests {
    use memvisor_wire::payload;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn compress_page_that_halves_comes_back() {
        let mut compressor = Compressor::new();
        for page in [
            PageBuf::zeroed(),
            PageBuf([0x5a; PAGE_SIZE]),
            samples::text(1),
            samples::code(1),
            samples::mixed(1, 1900),
        ] {
            let payload = compressor.compress(&page).expect("it halves").to_vec();
            let mut back = PageBuf([0xee; PAGE_SIZE]);
            assert!(payload::decompress(&payload, &mut back.0) && back == page);
        }
    }

    #[test]
    fn page_of_one_word_is_that_word_and_no_block_is_as_short() {
        let mut compressor = Compressor::new();
        let mut page = PageBuf::zeroed();
        filled::fill(0x0123_4567_89ab_cdef, &mut page.0);
        let payload = compressor.compress(&page).map(<[u8]>::to_vec);
        assert_eq!(
            payload,
            Some(0x0123_4567_89ab_cdef_u64.to_le_bytes().to_vec())
        );
        // As good as LZ4 gets: one match over all but the last bytes.
        page = PageBuf([7; PAGE_SIZE]);
        page.0[PAGE_SIZE - 1] = 8;
        let payload = compressor.compress(&page).expect("it halves");
        assert!(payload.len() > 2 * filled::WORD_BYTES, "{}", payload.len());
    }

    #[test]
    fn noise_is_seen_beforehand_and_half_of_it_is_not_taken_for_it() {
        for seed in 0..1000 {
            assert!(!is_noise(&samples::text(seed)));
            assert!(!is_noise(&samples::code(seed)));
            assert!(!is_noise(&samples::mixed(seed, 2048)), "seed {seed}");
        }
        let seen = (0..1000).filter(|seed| is_noise(&samples::random(*seed)));
        assert!(seen.count() > 980);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever a page holds, a payload that is kept decompresses to it, and is at most half as long.
        #[test]
        fn what_is_kept_comes_back(
            seed: u64,
            random in 0..2100usize,
            word: u64,
            changes in prop::collection::vec((0..PAGE_SIZE, any::<u8>()), 0..4),
        ) {
            let mut compressor = Compressor::new();
            let mut one_word = PageBuf::zeroed();
            filled::fill(word, &mut one_word.0);
            for mut page in [one_word, samples::mixed(seed, random), samples::text(seed)] {
                changes.iter().for_each(|(at, byte)| page.0[*at] = *byte);
                let Some(payload) = compressor.compress(&page).map(<[u8]>::to_vec) else {
                    continue;
                };
                prop_assert!(payload.len() <= MAX_PAYLOAD);
                let mut back = PageBuf([0xee; PAGE_SIZE]);
                prop_assert!(payload::decompress(&payload, &mut back.0) && back == page);
            }
        }
    }

    #[test]
    fn compress_page_over_half_is_refused() {
        let mut compressor = Compressor::new();
        assert!(compressor.compress(&samples::random(1)).is_none());
        assert!(compressor.compress(&samples::mixed(1, 2060)).is_none());
    }

    #[test]
    fn compress_after_another_page_gives_the_same_block() {
        let page = samples::text(7);
        let fresh = Compressor::new().compress(&page).map(<[u8]>::to_vec);
        let mut used = Compressor::new();
        used.compress(&samples::random(3));
        used.compress(&samples::text(8));
        assert_eq!(used.compress(&page).map(<[u8]>::to_vec), fresh);
    }
}
