//! The claim table as the guest maps it, and the threads that sleep at its words.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use memvisor_wire::claims::words;
use memvisor_wire::sys::SharedTable;

use super::channels::futex_wake;
use super::inline::Table;
use super::ram::{READ_WRITE, map_file};

/// Maps the table of a guest of `pages` pages from the daemon's descriptor, for the life of this process.
pub(super) fn map_table(pages: u32, claims: &OwnedFd) -> io::Result<SharedTable> {
    map_shared_words(claims, words(pages))
}

/// Maps `count` words of a file that the daemon shares with this guest, for the life of this process.
///
/// # Errors
/// What `mmap(2)` says.
pub fn map_shared_words(file: &OwnedFd, count: u64) -> io::Result<SharedTable> {
    let len = usize::try_from(count * 4).map_err(io::Error::other)?;
    let base = map_file(file.as_fd(), len, READ_WRITE)?;
    // SAFETY: just mapped, page aligned, with room for `count` words, and never unmapped. It is shared memory whose
    // words the protocols let both sides use by atomics alone, and nobody else in this process knows its address.
    Ok(unsafe { SharedTable::at(base, count) })
}

impl Table for SharedTable {
    fn wake(&self, at: u32) {
        futex_wake(self.word(at));
    }
}
