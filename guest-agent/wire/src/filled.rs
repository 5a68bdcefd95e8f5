//! Pages that repeat one word: the word alone describes the page.
//!
//! Programs fill memory with patterns more often than one would think: freed heaps, guard bytes, pictures
//! of one colour. A compressor takes microseconds to find a pattern and to undo it, and its output takes
//! room in the store. Eight bytes are enough. One comparison, which ends at the first byte that differs,
//! finds them, and filling a page with them takes as long as clearing it.

use crate::PAGE_SIZE;

/// Bytes of the word.
pub const WORD_BYTES: usize = 8;

/// The word that `page` repeats, as a little-endian number; zero for a page of zeroes. `None` if the page is not one
/// repeated word.
#[must_use]
pub fn word_of(page: &[u8; PAGE_SIZE]) -> Option<u64> {
    let (first, rest) = page.split_first_chunk::<WORD_BYTES>()?;
    // Every word equals the one before it.
    (*rest == page[..PAGE_SIZE - WORD_BYTES]).then(|| u64::from_le_bytes(*first))
}

/// Fills `page` with `word`: the inverse of [`word_of`].
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
