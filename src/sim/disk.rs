//! The disk under a simulated swap file.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use nix::errno::Errno;

use crate::swap::Storage;
use crate::sync::{AtomicU32, Mutex, Ordering};
use crate::units::{Bytes, PAGE_SIZE, PageBuf, SlotId};

/// Which writes fail, counted from when that was said.
#[derive(Debug, Default)]
struct Failing {
    seen: u32,
    these: Range<u32>,
    errno: Option<Errno>,
}

/// Whole pages in memory. Writes fail while a test says so, and pages can be damaged.
#[derive(Debug, Default)]
pub(super) struct SimDisk {
    pages: Mutex<HashMap<u64, PageBuf>>,
    failing: Mutex<Failing>,
    /// How often it was read, however much at once.
    reads: AtomicU32,
}

impl SimDisk {
    /// Makes every write fail from now on, or work again.
    pub(super) fn set_failing(&self, errno: Option<Errno>) {
        self.fail_after(0, u32::MAX, errno);
    }

    /// Lets the next `after` writes go well, and the `count` behind them fail.
    pub(super) fn fail_after(&self, after: u32, count: u32, errno: Option<Errno>) {
        let these = after..after.saturating_add(count);
        *self.failing.lock() = Failing {
            seen: 0,
            these,
            errno,
        };
    }

    /// How often it was read so far.
    pub(super) fn reads(&self) -> u32 {
        self.reads.load(Ordering::SeqCst)
    }

    /// Flips a bit of what a slot holds; a second time it is whole again.
    pub(super) fn damage(&self, slot: SlotId) {
        let mut pages = self.pages.lock();
        let page = pages.get_mut(&u64::from(slot.0));
        page.expect("the slot was written").0[1000] ^= 4;
    }
}

impl Storage for SimDisk {
    fn write_at(&self, pages: &[PageBuf], offset: u64) -> io::Result<usize> {
        let mut failing = self.failing.lock();
        let number = failing.seen;
        failing.seen += 1;
        if let Some(errno) = failing.errno.filter(|_| failing.these.contains(&number)) {
            return Err(errno.into());
        }
        for (number, page) in (offset / PAGE_SIZE as u64..).zip(pages) {
            self.pages.lock().insert(number, page.clone());
        }
        Ok(pages.len() * PAGE_SIZE)
    }

    fn read_at(&self, pages: &mut [PageBuf], offset: u64) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let stored = self.pages.lock();
        for (number, page) in (offset / PAGE_SIZE as u64..).zip(pages.iter_mut()) {
            *page = stored.get(&number).cloned().unwrap_or_else(PageBuf::zeroed);
        }
        Ok(pages.len() * PAGE_SIZE)
    }

    fn available(&self) -> io::Result<Bytes> {
        Ok(Bytes(u64::MAX))
    }

    fn extend(&self, _from: Bytes, _to: Bytes) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, len: Bytes) -> io::Result<()> {
        let end = len.0 / PAGE_SIZE as u64;
        self.pages.lock().retain(|number, _| *number < end);
        Ok(())
    }
}
