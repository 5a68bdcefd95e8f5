//! What a compressed page is: a word ([`filled`](crate::filled)) or an LZ4 block, and a checksum of the page.
//!
//! Only the daemon compresses pages, but both sides decompress them: the daemon for a fault that it serves, a
//! thread of an inline guest for its own fault ([`claims`](crate::claims)).

use lz4_flex::block::decompress_into;
#[cfg(target_arch = "x86_64")]
use twox_hash::XxHash3_64;
use xxhash_rust::xxh3::xxh3_64;

use crate::PAGE_SIZE;
use crate::filled::{WORD_BYTES, fill};

/// The shortest LZ4 block of a page is one match over nearly all of the page, and the length of a match takes a byte
/// for each 255 bytes. Since a word is shorter than that, the length of a payload tells a word from a block.
const SHORTEST_BLOCK: usize = PAGE_SIZE / 255;
const _: () = assert!(WORD_BYTES < SHORTEST_BLOCK);

/// Decompresses a page. Returns `false` when `payload` is nothing that the compressor makes; `into` may hold anything
/// then. Async-signal-safe.
#[must_use]
pub fn decompress(payload: &[u8], into: &mut [u8; PAGE_SIZE]) -> bool {
    // By its length alone: no LZ4 block of a page is as short as a word.
    if let Ok(word) = payload.try_into() {
        fill(u64::from_le_bytes(word), into);
        return true;
    }
    decompress_into(payload, into).is_ok_and(|len| len == PAGE_SIZE)
}

/// The low half of the XXH3-64 of a page, which shows that a page comes back as it was. Async-signal-safe.
///
/// xxhash-rust chooses its instructions when it is compiled, and for a portable program it chooses slow ones.
/// twox-hash computes the same hash and chooses its instructions when it runs.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is kept"
)]
pub fn checksum(page: &[u8; PAGE_SIZE]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return XxHash3_64::oneshot(page) as u32;
    }
    xxh3_64(page) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decompress_of_what_is_no_payload_is_refused() {
        let mut page = [0; PAGE_SIZE];
        for garbage in [&[0xff; 7][..], &[0; 9], &[0; 100], &[]] {
            assert!(!decompress(garbage, &mut page), "{garbage:?}");
        }
    }

    #[test]
    fn checksum_is_the_same_on_every_processor() {
        let mut page = [0; PAGE_SIZE];
        for round in 0..200usize {
            assert_eq!(checksum(&page), xxh3_64(&page) as u32, "round {round}");
            page[round * 19 % PAGE_SIZE] ^= round as u8 | 1;
        }
    }
}
