//! Single words that a guest's process reads and writes at the same time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use memmap2::{MmapOptions, MmapRaw};
use memvisor_wire::claims::Words;
use memvisor_wire::sys::SharedTable;

use super::Memfd;
use super::guard::Guard;
use crate::units::{Bytes, PAGE_SIZE};

/// A memfd of 32-bit words, mapped. All are zero at first.
#[derive(Debug)]
pub struct SharedWords {
    /// Declared before `_raw`, so that it is dropped first: the handler must not replace what is unmapped.
    _guard: Guard,
    memfd: Memfd,
    _raw: MmapRaw,
    words: SharedTable,
}

impl SharedWords {
    /// At least `count` words. `name` is what `/proc/PID/maps` shows. Dropping it takes the words away from everybody.
    ///
    /// # Errors
    /// When the memfd cannot be created or mapped.
    pub fn new(name: &str, count: u64) -> io::Result<Self> {
        Self::map(Memfd::lend(name, pages_for(count)?)?, count)
    }

    /// The same, but whoever maps the words keeps them when this is dropped.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn kept(name: &str, count: u64) -> io::Result<Self> {
        Self::map(Memfd::create(name, pages_for(count)?)?, count)
    }

    /// `count` words of a file that another side has made.
    ///
    /// # Errors
    /// When the file is shorter, or cannot be mapped for reading and writing.
    pub fn of(fd: OwnedFd, count: u64) -> io::Result<Self> {
        Self::map(Memfd::of(fd, pages_for(count)?)?, count)
    }

    fn map(memfd: Memfd, count: u64) -> io::Result<Self> {
        let pages = memfd.pages();
        let mut options = MmapOptions::new();
        options.len(pages as usize * PAGE_SIZE);
        let raw = options.map_raw(memfd.file())?;
        Ok(Self {
            _guard: Guard::new(raw.as_ptr(), raw.len(), true)?,
            memfd,
            // SAFETY: the mapping has room for `count` words, is page aligned, and lives as long as this. Nobody else
            // in this process knows its address.
            words: unsafe { SharedTable::at(raw.as_mut_ptr() as usize, count) },
            _raw: raw,
        })
    }
}

/// Pages that hold so many words.
fn pages_for(count: u64) -> io::Result<u32> {
    let pages = Bytes(count * 4 + PAGE_SIZE as u64 - 1).pages().0;
    u32::try_from(pages).map_err(io::Error::other)
}

impl Words for SharedWords {
    fn load(&self, at: u32) -> u32 {
        self.words.load(at)
    }

    fn store(&self, at: u32, word: u32) {
        self.words.store(at, word);
    }

    fn compare_exchange(&self, at: u32, from: u32, to: u32) -> Result<u32, u32> {
        self.words.compare_exchange(at, from, to)
    }
}

impl AsFd for SharedWords {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_zero_and_seen_through_the_file() {
        let words = SharedWords::new("words-test", 1025).expect("a small memfd");
        assert_eq!(words.load(1024), 0);
        words.store(1024, 7);
        assert_eq!(words.compare_exchange(1024, 6, 8), Err(7));
        assert_eq!(words.compare_exchange(1024, 7, 8), Ok(7));
        let mut bytes = [0; 4];
        let file = std::fs::File::from(words.as_fd().try_clone_to_owned().expect("a descriptor"));
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 4096).expect("two pages");
        assert_eq!(u32::from_ne_bytes(bytes), 8);
    }

    #[test]
    fn words_of_another_side_are_the_same_words() {
        let ours = SharedWords::kept("words-test", 1025).expect("a small memfd");
        let fd = || ours.as_fd().try_clone_to_owned().expect("a descriptor");
        let theirs = SharedWords::of(fd(), 1025).expect("as long");
        theirs.store(3, 7);
        assert_eq!(ours.load(3), 7);
        let error = SharedWords::of(fd(), 5000).expect_err("longer").to_string();
        assert!(error.contains("8192 bytes and not 20480"), "{error}");
    }

    #[test]
    #[should_panic(expected = "word 1025 of 1025")]
    fn word_behind_the_end_is_a_bug() {
        let words = SharedWords::new("words-test", 1025).expect("a small memfd");
        words.load(1025);
    }
}
