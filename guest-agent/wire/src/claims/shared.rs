//! Words that have several owners.

use std::sync::Arc;

use super::Words;

impl<W: Words + ?Sized> Words for Arc<W> {
    fn load(&self, at: u32) -> u32 {
        (**self).load(at)
    }

    fn store(&self, at: u32, word: u32) {
        (**self).store(at, word);
    }

    fn compare_exchange(&self, at: u32, from: u32, to: u32) -> Result<u32, u32> {
        (**self).compare_exchange(at, from, to)
    }
}
