//! The digest of a page: one function for all code that compares content which it does not hold.
//!
//! The scanner finds equal pages by their digests, and the swap file verifies by them that a page comes back as
//! it went. The digest protects against accident, not against an adversary: pages are never merged for equal digests,
//! their bytes are compared.
//!
//! Everybody can compute XXH3 without a secret. Then a guest could write pages whose digests all fall into one place
//! of a table, or equal the digests of pages that it knows others to have, and so keep those from being shared. So each
//! process has a secret of its own, and no digest outlives the process. Guests see no digests, and cannot decide by
//! what they write where in a table it goes.
//!
//! The scanner is as fast as its hash. xxhash-rust chooses its instructions at compile time: in a program that is to
//! run everywhere it takes 205 ns for a page. twox-hash computes the same function, chooses at run time, and takes
//! 132 ns (docs/benchmarks.md); it is used for as long as it is that much faster.

use std::sync::LazyLock;

#[cfg(target_arch = "x86_64")]
use twox_hash::XxHash3_64;
use xxhash_rust::xxh3::xxh3_64_with_secret;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::units::PageBuf;

/// The length of XXH3's own secret; any length that XXH3 accepts would do.
const SECRET_LEN: usize = 192;

/// Random, but fixed in tests, so that they get the same digests each time.
static SECRET: LazyLock<[u8; SECRET_LEN]> = LazyLock::new(|| {
    let mut secret = [0; SECRET_LEN];
    if cfg!(test) {
        let mut rng = StdRng::seed_from_u64(1);
        rng.fill(&mut secret[..]);
    } else {
        rand::fill(&mut secret[..]);
    }
    secret
});

/// XXH3-64 of a page with the secret of this process.
#[must_use]
pub fn digest(page: &PageBuf) -> u64 {
    let secret = &SECRET[..];
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2")
        && let Ok(digest) = XxHash3_64::oneshot_with_secret(secret, &page.0)
    {
        return digest;
    }
    xxh3_64_with_secret(&page.0, secret)
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
    fn low_half_is_the_low_half() {
        assert_eq!(low_half(0x1_2345_6789), 0x2345_6789);
    }

    #[test]
    fn digest_is_the_same_on_every_processor() {
        let mut page = PageBuf::zeroed();
        for round in 0..100u64 {
            assert_eq!(
                digest(&page),
                xxh3_64_with_secret(&page.0, &SECRET[..]),
                "round {round}"
            );
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
