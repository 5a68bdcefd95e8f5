//! A storage in memory that fails where a test says so. Tests of swap files and the simulated machine use it as disk.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::Storage;
use crate::sync::{Mutex, MutexGuard};
use crate::units::{Bytes, PAGE_SIZE, PageBuf, SlotId};

/// What happens to one call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It fails and does nothing.
    Fail(Errno),
    /// It moves only this many bytes and says so.
    Short(usize),
    /// It moves everything, but this byte of what it moved is wrong.
    Flip(usize),
    /// It says that it wrote everything, but did not.
    Lost,
}

#[derive(Debug)]
struct State {
    faults: HashMap<usize, Fault>,
    /// Which writes fail, and how.
    failing: Option<(Range<u32>, Errno)>,
    writes: u32,
    bytes: Vec<u8>,
    calls: usize,
    reads: u32,
    len: u64,
    available: u64,
}

/// Counts its calls from 0 and looks up each call in its faults. Unwritten bytes are zero. It panics at a
/// read or write behind its end.
#[derive(Debug)]
pub(crate) struct FaultyStorage(Mutex<State>);

impl FaultyStorage {
    /// A storage without an end.
    pub(crate) fn new(faults: impl IntoIterator<Item = (usize, Fault)>) -> Self {
        Self(Mutex::new(State {
            faults: faults.into_iter().collect(),
            failing: None,
            writes: 0,
            bytes: Vec::new(),
            calls: 0,
            reads: 0,
            len: u64::MAX,
            available: 0,
        }))
    }

    /// A storage of `pages` pages that can grow by `available` pages.
    pub(crate) fn of(pages: u32, available: u32) -> Self {
        let storage = Self::new([]);
        storage.state().len = u64::from(pages) * PAGE_SIZE as u64;
        storage.state().available = u64::from(available) * PAGE_SIZE as u64;
        storage
    }

    /// Makes every write fail from now on, or work again.
    pub(crate) fn set_failing(&self, errno: Option<Errno>) {
        self.fail_after(0, u32::MAX, errno);
    }

    /// Lets the next `after` writes succeed and the `count` writes after them fail.
    pub(crate) fn fail_after(&self, after: u32, count: u32, errno: Option<Errno>) {
        let mut state = self.state();
        let first = state.writes + after;
        state.failing = errno.map(|errno| (first..first.saturating_add(count), errno));
    }

    /// How many reads there were so far, of any length.
    pub(crate) fn reads(&self) -> u32 {
        self.state().reads
    }

    /// Flips a bit of what a slot holds. A second call repairs it.
    pub(crate) fn damage(&self, slot: SlotId) {
        self.state().bytes[slot.0 as usize * PAGE_SIZE + 1000] ^= 4;
    }

    /// Adds a fault to the next call.
    pub(crate) fn fail_next(&self, fault: Fault) {
        let mut state = self.state();
        let next = state.calls;
        state.faults.insert(next, fault);
    }

    /// Adds a fault to a later call.
    pub(crate) fn fail_at(&self, call: usize, fault: Fault) {
        self.state().faults.insert(call, fault);
    }

    /// Forgets all faults that have not happened yet.
    pub(crate) fn heal(&self) {
        self.state().faults.clear();
    }

    pub(crate) fn calls(&self) -> usize {
        self.state().calls
    }

    /// Its length in pages.
    pub(crate) fn pages(&self) -> u32 {
        u32::try_from(self.state().len / PAGE_SIZE as u64).unwrap()
    }

    /// What is stored at a page number.
    pub(crate) fn page(&self, number: u64) -> PageBuf {
        let mut page = PageBuf::zeroed();
        self.state()
            .copy_out(&mut page.0, number * PAGE_SIZE as u64);
        page
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    fn next_fault(&mut self) -> Option<Fault> {
        self.calls += 1;
        self.faults.remove(&(self.calls - 1))
    }

    fn copy_out(&self, into: &mut [u8], offset: u64) {
        let stored = self.bytes.get(offset as usize..).unwrap_or_default();
        let (there, hole) = into.split_at_mut(stored.len().min(into.len()));
        there.copy_from_slice(&stored[..there.len()]);
        hole.fill(0);
    }

    fn check_inside(&self, offset: u64, len: usize) {
        let end = offset + len as u64;
        assert!(end <= self.len, "byte {end} of {}", self.len);
    }
}

impl Storage for Arc<FaultyStorage> {
    fn write_at(&self, pages: &[PageBuf], offset: u64) -> io::Result<usize> {
        let mut state = self.state();
        let mut bytes: Vec<u8> = pages.iter().flat_map(|page| page.0).collect();
        state.check_inside(offset, bytes.len());
        let number = state.writes;
        state.writes += 1;
        if let Some((these, errno)) = &state.failing
            && these.contains(&number)
        {
            return Err((*errno).into());
        }
        match state.next_fault() {
            None => {}
            Some(Fault::Fail(errno)) => return Err(errno.into()),
            Some(Fault::Short(len)) => bytes.truncate(len),
            Some(Fault::Flip(at)) => {
                let at = at % bytes.len();
                bytes[at] ^= 0x10;
            }
            Some(Fault::Lost) => return Ok(bytes.len()),
        }
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if state.bytes.len() < end {
            state.bytes.resize(end, 0);
        }
        state.bytes[start..end].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn read_at(&self, pages: &mut [PageBuf], offset: u64) -> io::Result<usize> {
        let mut state = self.state();
        state.reads += 1;
        let all = pages.len() * PAGE_SIZE;
        state.check_inside(offset, all);
        let mut len = all;
        let mut flip = None;
        match state.next_fault() {
            // `Lost` is a fault of writes only.
            None | Some(Fault::Lost) => {}
            Some(Fault::Fail(errno)) => return Err(errno.into()),
            Some(Fault::Short(short)) => len = short.min(all),
            Some(Fault::Flip(at)) => flip = Some(at % all),
        }
        let mut read = vec![0; len];
        state.copy_out(&mut read, offset);
        if let Some(at) = flip {
            read[at] ^= 0x10;
        }
        for (page, read) in pages.iter_mut().zip(read.chunks(PAGE_SIZE)) {
            page.0[..read.len()].copy_from_slice(read);
        }
        Ok(len)
    }

    fn read_only(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn available(&self) -> io::Result<Bytes> {
        Ok(Bytes(self.state().available))
    }

    fn extend(&self, from: Bytes, to: Bytes) -> io::Result<()> {
        let mut state = self.state();
        assert_eq!(from.0, state.len, "the length it is thought to have");
        if let Some(Fault::Fail(errno)) = state.next_fault() {
            return Err(errno.into());
        }
        let more = to.0 - from.0;
        let left = state.available.checked_sub(more);
        state.available = left.ok_or(io::ErrorKind::StorageFull)?;
        state.len = to.0;
        Ok(())
    }

    fn truncate(&self, len: Bytes) -> io::Result<()> {
        let mut state = self.state();
        assert!(len.0 <= state.len, "{len} is longer than {}", state.len);
        if let Some(Fault::Fail(errno)) = state.next_fault() {
            return Err(errno.into());
        }
        state.available += state.len - len.0;
        state.len = len.0;
        state.bytes.truncate(len.0 as usize);
        Ok(())
    }
}
