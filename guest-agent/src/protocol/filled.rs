//! Pages of one word again and again: that word says all of it.
//!
//! Programs fill memory with patterns more often than one would think: freed heaps, guard bytes, pictures
//! of one colour. A compressor takes microseconds to find that out and to undo it, and a store keeps what
//! it wrote. Eight bytes are enough, they are found by one comparison that ends at the first byte that
//! differs, and filling a page with them takes as long as clearing it.

use super::PAGE_SIZE;

/// Bytes of the word.
pub const WORD_BYTES: usize = 8;

/// The word of which `page` consists, as a little-endian number; zero for a page of zeroes. `None`: it holds
/// something else.
#[must_use]
pub fn word_of(page: &[u8; PAGE_SIZE]) -> Option<u64> {
    let (first, rest) = page.split_first_chunk::<WORD_BYTES>()?;
    // Every word equals the one before it.
    (*rest == page[..PAGE_SIZE - WORD_BYTES]).then(|| u64::from_le_bytes(*first))
}

/// Makes `page` consist of `word`: undoes [`word_of`].
pub fn fill(word: u64, page: &mut [u8; PAGE_SIZE]) {
    let (words, _) = page.as_chunks_mut::<WORD_BYTES>();
    words.fill(word.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn page_of_one_byte_or_of_zeroes_has_a_word() {
        assert_eq!(word_of(&[0; PAGE_SIZE]), Some(0));
        assert_eq!(word_of(&[0xa5; PAGE_SIZE]), Some(0xa5a5_a5a5_a5a5_a5a5));
    }

    proptest! {
        #[test]
        fn any_word_comes_back_and_any_other_byte_is_seen(
            word: u64,
            at in 0..PAGE_SIZE,
            bit in 0..8u32,
        ) {
            let mut page = [0xee; PAGE_SIZE];
            fill(word, &mut page);
            for (byte, at) in page.iter().zip(0..) {
                prop_assert_eq!(*byte, word.to_le_bytes()[at % WORD_BYTES]);
            }
            prop_assert_eq!(word_of(&page), Some(word));
            page[at] ^= 1 << bit;
            prop_assert_eq!(word_of(&page), None);
        }
    }
}
