//! Whether this machine has large pages for files in memory, found out by making one.
//!
//! Settings of the kernel do not tell. `MADV_COLLAPSE` (Linux 6.1) makes a large page of a populated range also where
//! `/sys/kernel/mm/transparent_hugepage/shmem_enabled` is `never`, its default, and no fault ever makes one; `deny`
//! forbids it. Other kernels may differ, so one page is made once.

use std::fs;
use std::io;
use std::ptr;
use std::sync::OnceLock;

use nix::errno::Errno;

use super::Memfd;
use crate::units::{PAGE_SIZE, PageBuf};

/// How many pages a large page has; the error says why there is none.
///
/// # Errors
/// What is missing, for people.
pub fn large_pages() -> Result<u32, String> {
    static FOUND: OnceLock<Result<u32, String>> = OnceLock::new();
    FOUND.get_or_init(find).clone()
}

fn find() -> Result<u32, String> {
    let path = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";
    let size = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let size: usize = size
        .trim()
        .parse()
        .map_err(|_| format!("{path}: `{}` is no number", size.trim()))?;
    // The shim aligns RAM to this.
    if size != 2 << 20 {
        return Err(format!(
            "they have {size} bytes here, and only 2 MiB are supported"
        ));
    }
    match make_one(size) {
        Ok(()) => Ok((size / PAGE_SIZE) as u32),
        Err(error) => Err(format!(
            "the kernel makes none of shared memory (madvise(MADV_COLLAPSE): {error})"
        )),
    }
}

fn make_one(size: usize) -> io::Result<()> {
    let pages = (size / PAGE_SIZE) as u32;
    let memfd = Memfd::create("memvisor-large", pages)?;
    (0..pages).try_for_each(|page| memfd.write_page(page, &PageBuf::zeroed()))?;
    // SAFETY: a new mapping in free address space, which only this function knows, and which it unmaps.
    let room = unsafe {
        libc::mmap(
            ptr::null_mut(),
            2 * size,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if room == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let made = map_and_collapse(&memfd, room, size);
    // SAFETY: all of what was mapped above, and nothing of it is in use.
    unsafe { libc::munmap(room, 2 * size) };
    made
}

/// Maps the file at an aligned address of the `2 * size` bytes at `room`, and makes a large page of it.
fn map_and_collapse(memfd: &Memfd, room: *mut libc::c_void, size: usize) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let at = room.map_addr(|address| address.next_multiple_of(size));
    let (access, flags) = (libc::PROT_READ, libc::MAP_SHARED | libc::MAP_FIXED);
    // SAFETY: `size` bytes from the aligned address are inside the reservation, which the caller keeps; the file is
    // open and that long.
    let mapped = unsafe { libc::mmap(at, size, access, flags, memfd.file().as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the range was just mapped, and the advice changes no byte of it.
    let done = unsafe { libc::madvise(mapped, size, libc::MADV_COLLAPSE) };
    Ok(Errno::result(done).map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_page_has_512_pages_or_it_is_said_why_there_is_none() {
        match large_pages() {
            Ok(pages) => assert_eq!(pages, 512),
            Err(why) => assert!(why.contains("kernel") || why.contains("/sys"), "{why}"),
        }
    }
}
