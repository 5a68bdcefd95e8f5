//! The digest of a page: one function for everybody who compares content without holding it.
//!
//! The scanner looks for equal pages by it, the swap file and the compression cache verify with it
//! that a page comes back as it went. It protects against accident, not against an adversary: a
//! guest can construct two pages of one digest. So equal digests never merge pages (bytes are
//! compared), and no table is indexed by a digest without a hash of its own.

use xxhash_rust::xxh3::xxh3_64;

use crate::units::PageBuf;

/// XXH3-64 of a page.
#[must_use]
pub fn digest(page: &PageBuf) -> u64 {
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
