//! A file that others read and that one owner here writes.
//!
//! What a guest can write is copied before anything looks at it, because it could change between two looks.
//! A published file is different. Where this process may mount
//! ([`readers_cannot_write`](super::readers_cannot_write)), no other process can write it, and in this process only
//! the holder of a `&mut` can. So its bytes are read where they are.

use std::borrow::Cow;
use std::io;
use std::os::fd::OwnedFd;

use super::{Mapping, Memfd};
use crate::units::Pages;

/// See the module text.
#[derive(Debug)]
pub struct Published {
    memfd: Memfd,
    mapping: Mapping,
}

impl Published {
    /// A file of `pages` holes. `name` is what `/proc/PID/maps` shows.
    ///
    /// # Errors
    /// As for [`Memfd::publish`], and what `mmap(2)` says.
    pub fn new(name: &str, pages: u32) -> io::Result<Self> {
        let memfd = Memfd::publish(name, pages)?;
        let mapping = Mapping::read_write(&memfd)?;
        Ok(Self { memfd, mapping })
    }

    /// `len` bytes from byte `at` of a page on, perhaps going on in the next one. A copy where a guest may be able to
    /// write them.
    ///
    /// # Panics
    /// When the range leaves the file.
    #[must_use]
    pub fn bytes(&self, page: u32, at: usize, len: usize) -> Cow<'_, [u8]> {
        if self.memfd.readers_can_write() {
            let mut copy = vec![0; len];
            self.mapping.read_part(page, at, &mut copy);
            return Cow::Owned(copy);
        }
        // SAFETY: no other process has a descriptor through which the file can be written (checked above). This
        // process writes and punches the file, by the descriptor or the mapping, only in methods that take `&mut self`:
        // both are private to `self`, and what is handed out cannot be written through. So the bytes stay as they are
        // while `self` is borrowed. `revoke` is called when `self` is dropped and not before.
        Cow::Borrowed(unsafe { self.mapping.slice(page, at, len) })
    }

    /// Writes bytes from byte `at` of a page on, perhaps into the next one. Fills holes.
    ///
    /// # Panics
    /// When the range leaves the file.
    pub fn write(&mut self, page: u32, at: usize, bytes: &[u8]) {
        self.mapping.write_part(page, at, bytes);
    }

    /// As [`Memfd::punch`].
    ///
    /// # Errors
    /// What `fallocate(2)` says.
    pub fn punch(&mut self, start: u32, count: u32) -> io::Result<()> {
        self.memfd.punch(start, count)
    }

    /// As [`Mapping::forget`].
    pub fn forget(&mut self) {
        self.mapping.forget();
    }

    /// As [`Memfd::read_only`].
    ///
    /// # Errors
    /// What opening it again says.
    pub fn read_only(&self) -> io::Result<OwnedFd> {
        self.memfd.read_only()
    }

    /// The length of the file in pages, holes included.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.memfd.pages()
    }

    /// As [`Memfd::allocated`].
    ///
    /// # Errors
    /// What `fstat(2)` says.
    pub fn allocated(&self) -> io::Result<Pages> {
        self.memfd.allocated()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::readers_cannot_write;

    #[test]
    fn bytes_across_pages_are_those_written_and_copied_only_where_readers_may_write() {
        let mut file = Published::new("memvisor-published", 2).expect("a file");
        file.write(0, 4000, &[7; 200]);
        let bytes = file.bytes(0, 4000, 200);
        assert_eq!(*bytes, [7; 200]);
        let is_copy = matches!(bytes, Cow::Owned(_));
        assert_eq!(is_copy, readers_cannot_write().is_err());
        // A file that its readers may write.
        let memfd = Memfd::lend("memvisor-lent", 2).expect("a file");
        let mapping = Mapping::read_write(&memfd).expect("a mapping");
        let mut lent = Published { memfd, mapping };
        lent.write(0, 4000, &[8; 200]);
        let bytes = lent.bytes(0, 4000, 200);
        assert!(matches!(&bytes, Cow::Owned(bytes) if **bytes == [8; 200]));
    }

    #[test]
    #[should_panic(expected = "leave a mapping of 2 pages")]
    fn bytes_behind_the_end_are_not_given() {
        let file = Published::new("memvisor-published", 2).expect("a file");
        let _ = file.bytes(1, 4000, 97);
    }
}
