//! Which pages of a guest were written: `PAGEMAP_SCAN`, since Linux 6.7.
//!
//! Where the guest's userfaultfd tracks writes, the kernel keeps a bit for each page, write-protected or
//! not. A write to a protected page clears the bit and goes on, without a message to anybody. One ioctl
//! finds the pages that are not protected and protects them, so that each written page is reported exactly
//! once. A page that has been mapped anew, or dropped, since the last question counts as written.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::Process;
use crate::units::{Gfn, GfnRun, PAGE_SIZE};

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    _categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 =
    (3 << 30) | ((size_of::<Scan>() as u64) << 16) | ((b'f' as u64) << 8) | 16;
const _: () = assert!(PAGEMAP_SCAN == 0xc060_6610);
const _: () = assert!(size_of::<Region>() == 24);

/// Protects the pages that are reported.
const WP_MATCHING: u64 = 1 << 0;
/// Refuses ranges whose writes are not tracked; without this flag they are skipped.
const CHECK_WPASYNC: u64 = 1 << 1;
/// The only category asked for: this is the one question that the kernel answers fast.
const IS_WRITTEN: u64 = 1 << 1;

/// Regions reported by one system call. More would only make its buffer larger.
const REGIONS: usize = 512;

/// The page map of a guest that maps RAM in one piece.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    base: u64,
}

impl Pagemap {
    /// The page map of `process`, which maps `pages` pages of RAM at `base`.
    ///
    /// # Errors
    /// What the kernel says: `EPERM` when writes to this range are not tracked, `ENOTTY` before Linux 6.7,
    /// other errors when the process is gone, belongs to another user, or `/proc` is not there.
    pub fn open(process: &Process, base: u64, pages: u32) -> io::Result<Self> {
        let file = process.pagemap()?;
        let pagemap = Self { file, base };
        pagemap.scan(
            GfnRun::new(Gfn(0), pages),
            CHECK_WPASYNC,
            &mut [Region::default()],
        )?;
        Ok(pagemap)
    }

    /// Calls `each` with the pages of `run` that may have been written since the last call for them, in
    /// ascending runs. Pages that are mapped from elsewhere are left out.
    ///
    /// # Errors
    /// What the kernel says; the guest may be gone.
    pub fn take_written(&self, run: GfnRun, each: &mut dyn FnMut(GfnRun)) -> io::Result<()> {
        let mut regions = [Region::default(); REGIONS];
        let mut rest = run;
        while rest.count > 0 {
            let (told, walked) = self.scan(rest, WP_MATCHING, &mut regions)?;
            for region in regions.iter().take(told) {
                let (start, end) = (self.page(region.start), self.page(region.end));
                each(GfnRun::new(Gfn(start), end - start));
            }
            // A kernel that makes no progress must not keep this thread here for ever.
            let next = self.page(walked).max(rest.start.0 + 1);
            let end = rest.start.0 + rest.count;
            rest = GfnRun::new(Gfn(next.min(end)), end.saturating_sub(next));
        }
        Ok(())
    }

    fn page(&self, address: u64) -> u32 {
        let page = address.saturating_sub(self.base) / PAGE_SIZE as u64;
        u32::try_from(page).unwrap_or(u32::MAX)
    }

    /// Returns how many regions the kernel reported, and the address up to which it came.
    fn scan(&self, run: GfnRun, flags: u64, regions: &mut [Region]) -> io::Result<(usize, u64)> {
        let start = self.base.wrapping_add(run.start.offset());
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            flags,
            start,
            end: start.wrapping_add(run.bytes()),
            walk_end: 0,
            regions: regions.as_mut_ptr() as u64,
            regions_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: IS_WRITTEN,
            category_anyof_mask: 0,
            return_mask: IS_WRITTEN,
        };
        let fd = self.file.as_raw_fd();
        loop {
            // SAFETY: PAGEMAP_SCAN reads and writes one `Scan` (size asserted above) and writes at most
            // `regions_len` regions of 24 bytes (asserted) behind `regions`: both outlive the call and
            // nothing else uses them. In the guest it changes only whether writes are noted.
            let told = unsafe { libc::ioctl(fd, PAGEMAP_SCAN as libc::Ioctl, &raw mut scan) };
            match usize::try_from(told) {
                Ok(told) => return Ok((told, scan.walk_end)),
                Err(_) if Errno::last() == Errno::EINTR => {}
                Err(_) => return Err(io::Error::last_os_error()),
            }
        }
    }
}
