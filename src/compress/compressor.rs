//! One thread's LZ4 compressor.

use std::fmt;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::units::{PAGE_SIZE, PageBuf};

/// The largest payload worth keeping, in bytes: two of them share an arena page, so a page is
/// saved only from here down (ESX accepts a page that compresses to 50 % or less).
pub const MAX_PAYLOAD: usize = PAGE_SIZE / 2;

/// What LZ4 may need for a page that does not compress; the compressor refuses a smaller buffer.
const OUTPUT_BYTES: usize = get_maximum_output_size(PAGE_SIZE);

/// Compresses pages for one thread: the hash table and the output buffer are reused, so that a page
/// costs no allocation.
pub struct Compressor {
    table: CompressTable,
    output: Box<[u8; OUTPUT_BYTES]>,
}

impl Compressor {
    /// A compressor; about 12 KiB.
    #[must_use]
    pub fn new() -> Self {
        Self {
            table: CompressTable::small(),
            output: Box::new([0; OUTPUT_BYTES]),
        }
    }

    /// The page as an LZ4 block, or `None` where that takes more than [`MAX_PAYLOAD`] bytes.
    pub fn compress(&mut self, page: &PageBuf) -> Option<&[u8]> {
        let len = compress_into_with_table(&page.0, &mut self.output[..], &mut self.table)
            .expect("the buffer holds the largest block a page can become");
        (len <= MAX_PAYLOAD).then(|| &self.output[..len])
    }
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
    use lz4_flex::block::decompress_into;

    use super::*;

    #[test]
    fn compress_page_that_halves_returns_its_block() {
        let mut compressor = Compressor::new();
        for page in [
            PageBuf::zeroed(),
            samples::text(1),
            samples::code(1),
            samples::mixed(1, 1900),
        ] {
            let block = compressor.compress(&page).expect("it halves").to_vec();
            let mut back = PageBuf::zeroed();
            assert_eq!(decompress_into(&block, &mut back.0).unwrap(), PAGE_SIZE);
            assert!(back == page);
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
