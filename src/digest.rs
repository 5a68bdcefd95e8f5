//! The digest of a page: one function for everybody who compares content without holding it.
//!
//! The scanner looks for equal pages by it, the swap file and the compression cache verify with it
//! that a page comes back as it went. It protects against accident, not against an adversary: a
//! guest can construct two pages of one digest. So equal digests never merge pages (bytes are
//! compared), and no table is indexed by a digest without a hash of its own.
//!
//! The scanner is as fast as its hash. xxhash-rust chooses its instructions when it is compiled, so a
//! program that runs everywhere would hash at half the speed of the processor; twox-hash computes the same
//! function and chooses when it runs, and is taken where that is worth it.

#[cfg(target_arch = "x86_64")]
use twox_hash::XxHash3_64;
use xxhash_rust::xxh3::xxh3_64;

use crate::units::PageBuf;

/// XXH3-64 of a page.
#[must_use]
pub fn digest(page: &PageBuf) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return XxHash3_64::oneshot(&page.0);
    }
    xxh3_64(&page.0)
}

/// The low half of a [`digest`], for stores that keep one for each page and count every byte.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is meant"
)]
pub const fn low_half(digest: u64) -> u32 {
    digest as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_xxh3_64_as_published() {
        // Reference value of `XXH3_64bits` for the empty input.
        assert_eq!(xxh3_64(&[]), 0x2d06_8005_38d3_94c2);
        assert_eq!(low_half(0x1_2345_6789), 0x2345_6789);
    }

    #[test]
    fn digest_is_the_same_on_every_processor() {
        let mut page = PageBuf::zeroed();
        for round in 0..100u64 {
            assert_eq!(digest(&page), xxh3_64(&page.0), "round {round}");
            let (words, _) = page.0.as_chunks_mut::<8>();
            for (word, at) in words.iter_mut().zip(1..) {
                let mixed = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(at * (round + 1));
                *word = mixed.wrapping_pow(3).to_le_bytes();
            }
        }
    }

    #[test]
    fn digest_sees_every_byte() {
        let mut page = PageBuf::zeroed();
        let zero = digest(&page);
        for at in 0..page.0.len() {
            page.0[at] = 1;
            assert_ne!(digest(&page), zero, "byte {at}");
            page.0[at] = 0;
        }
    }
}
