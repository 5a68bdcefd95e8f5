//! The claim table as guest and daemon each map it. Either may write any word of the table at any moment.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::claims::Words;

/// Words of 32 bits in shared memory.
#[derive(Debug)]
pub struct SharedTable {
    base: usize,
    count: u64,
}

impl SharedTable {
    /// `count` words from the address `base` on.
    ///
    /// # Safety
    /// The words are aligned, and mapped for reading and writing as long as the result is used. Everybody who uses
    /// them, in this process and in others, does so by atomics.
    #[must_use]
    pub const unsafe fn at(base: usize, count: u64) -> Self {
        Self { base, count }
    }

    /// A word of the table.
    ///
    /// # Panics
    /// When there is no such word.
    #[must_use]
    pub fn word(&self, at: u32) -> &AtomicU32 {
        assert!(u64::from(at) < self.count, "word {at} of {}", self.count);
        let word = (self.base as *mut u32).wrapping_add(at as usize);
        // SAFETY: the word is inside the mapping (checked above). As `at` demands, the words are aligned, stay mapped,
        // and are used by atomics alone.
        unsafe { AtomicU32::from_ptr(word) }
    }
}

impl Words for SharedTable {
    fn load(&self, at: u32) -> u32 {
        // Acquire pairs with the Release by which the other process stores, as `Words` promises.
        self.word(at).load(Ordering::Acquire)
    }

    fn store(&self, at: u32, word: u32) {
        // Release: see `load`.
        self.word(at).store(word, Ordering::Release);
    }

    fn compare_exchange(&self, at: u32, from: u32, to: u32) -> Result<u32, u32> {
        // AcqRel, or Acquire alone when nothing is stored: see `load`.
        self.word(at)
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }
}
