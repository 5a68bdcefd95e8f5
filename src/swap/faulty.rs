//! A storage in memory that fails where a test says so.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard};

use nix::errno::Errno;

use super::Storage;
use crate::units::{PAGE_SIZE, PageBuf};

/// What happens to one call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It fails and does nothing.
    Fail(Errno),
    /// It moves only so many bytes and says so.
    Short(usize),
    /// It moves everything, but this byte of what it moved is wrong.
    Flip(usize),
    /// It says that it wrote everything, but did not.
    Lost,
}

#[derive(Debug, Default)]
struct State {
    faults: HashMap<usize, Fault>,
    bytes: HashMap<u64, u8>,
    calls: usize,
}

/// Counts its calls from 0 and looks each up in its faults. Unwritten bytes are zero.
#[derive(Debug, Default)]
pub(crate) struct FaultyStorage(Mutex<State>);

impl FaultyStorage {
    pub(crate) fn new(faults: impl IntoIterator<Item = (usize, Fault)>) -> Self {
        Self(Mutex::new(State {
            faults: faults.into_iter().collect(),
            ..State::default()
        }))
    }

    /// Adds a fault to the next call.
    pub(crate) fn fail_next(&self, fault: Fault) {
        let mut state = self.state();
        let next = state.calls;
        state.faults.insert(next, fault);
    }

    pub(crate) fn calls(&self) -> usize {
        self.state().calls
    }

    /// What is stored at a page number.
    pub(crate) fn page(&self, number: u64) -> PageBuf {
        let mut page = PageBuf::zeroed();
        self.state()
            .copy_out(&mut page.0, number * PAGE_SIZE as u64);
        page
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn next_fault(&mut self) -> Option<Fault> {
        self.calls += 1;
        self.faults.remove(&(self.calls - 1))
    }

    fn copy_out(&self, into: &mut [u8], offset: u64) {
        for (at, byte) in (offset..).zip(into) {
            *byte = self.bytes.get(&at).copied().unwrap_or(0);
        }
    }
}

impl Storage for FaultyStorage {
    fn write_at(&self, pages: &[PageBuf], offset: u64) -> io::Result<usize> {
        let mut state = self.state();
        let mut bytes: Vec<u8> = pages.iter().flat_map(|page| page.0).collect();
        match state.next_fault() {
            None => {}
            Some(Fault::Fail(errno)) => return Err(errno.into()),
            Some(Fault::Short(len)) => bytes.truncate(len),
            Some(Fault::Flip(at)) => bytes[at] ^= 0x10,
            Some(Fault::Lost) => return Ok(bytes.len()),
        }
        let len = bytes.len();
        state.bytes.extend((offset..).zip(bytes));
        Ok(len)
    }

    fn read_at(&self, page: &mut PageBuf, offset: u64) -> io::Result<usize> {
        let mut state = self.state();
        let mut len = PAGE_SIZE;
        let mut flip = None;
        match state.next_fault() {
            None => {}
            Some(Fault::Fail(errno)) => return Err(errno.into()),
            Some(Fault::Short(short)) => len = short,
            Some(Fault::Flip(at)) => flip = Some(at),
            Some(Fault::Lost) => panic!("a read is not lost"),
        }
        state.copy_out(&mut page.0[..len], offset);
        if let Some(at) = flip {
            page.0[at] ^= 0x10;
        }
        Ok(len)
    }
}
