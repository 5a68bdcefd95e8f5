//! What simulated guests have in their memory: nothing that is kept, and all that compresses as it should.
//!
//! A page is known by its size when compressed. When somebody reads it, it is made: noise of about that length, and
//! zeroes behind it. Its first bytes say how it was made, so the disk keeps only these.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use memvisor_wire::memory::{Ack, Op, Remap};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::engine::{Content, Engine, EngineError, EngineKind};
use crate::swap::Storage;
use crate::units::{Bytes, Gfn, GfnRun, PAGE_SIZE, PageBuf};

/// Bytes in which sizes are counted here.
const UNIT: u32 = 16;
/// The size that stands for a page that does not compress to half.
const DENSE: u8 = u8::MAX;

/// What a page compresses to, in steps of 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Size(pub(super) u8);

impl Size {
    /// A page of zeroes.
    pub(super) const ZERO: Self = Self(0);
    /// A page that does not compress to half.
    pub(super) const DENSE: Self = Self(DENSE);

    /// From the bytes that a page was compressed to.
    pub(super) fn of(bytes: u32) -> Self {
        if bytes as usize > PAGE_SIZE / 2 {
            return Self::DENSE;
        }
        Self(u8::try_from(bytes.div_ceil(UNIT).max(1)).unwrap_or(DENSE))
    }

    /// How many bytes of noise compress to that, with zeroes behind them. A run of literals has a byte more for each
    /// 255; about 32 bytes describe the zeroes.
    fn noise(self) -> usize {
        if self == Self::DENSE {
            return PAGE_SIZE;
        }
        let bytes = u32::from(self.0) * UNIT;
        bytes.saturating_sub(bytes / 255 + 32).max(LABEL as u32) as usize
    }
}

/// The bytes that say how a page was made.
const LABEL: usize = 8;

static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut noise = vec![0; 4 * PAGE_SIZE];
    StdRng::seed_from_u64(0x6e01_5e00).fill(&mut noise[..]);
    noise
});

/// Makes the page of that number and size.
fn make(gfn: Gfn, size: Size, page: &mut PageBuf) {
    page.0.fill(0);
    if size == Size::ZERO {
        return;
    }
    let noise = size.noise();
    // Not the same noise in each page, and always the same in one.
    let at = (gfn.0 as usize).wrapping_mul(89) % (NOISE.len() - PAGE_SIZE);
    page.0[..noise].copy_from_slice(&NOISE[at..at + noise]);
    page.0[..4].copy_from_slice(&gfn.0.to_le_bytes());
    page.0[4..LABEL].copy_from_slice(&u32::from(size.0).to_le_bytes());
}

/// The RAM of a simulated guest: how its pages compress.
#[derive(Debug)]
pub(super) struct Ram(Box<[AtomicU8]>);

impl Ram {
    pub(super) fn new(sizes: impl Iterator<Item = Size>) -> Self {
        Self(sizes.map(|size| AtomicU8::new(size.0)).collect())
    }

    pub(super) fn set(&self, gfn: Gfn, size: Size) {
        // Relaxed: one thread replays.
        self.0[gfn.index()].store(size.0, Ordering::Relaxed);
    }

    fn size(&self, gfn: Gfn) -> Size {
        Size(self.0[gfn.index()].load(Ordering::Relaxed))
    }
}

/// A hand on guest memory that is not there: whatever it is told is done at once.
impl Engine for Arc<Ram> {
    fn kind(&self) -> EngineKind {
        EngineKind::Uffd
    }

    fn command(&self, _: Op, runs: &[Remap]) -> Result<Ack, EngineError> {
        Ok(Ack {
            seq: 0,
            done: u32::try_from(runs.len()).unwrap_or(u32::MAX),
            errno: 0,
        })
    }

    fn set_pool(&self, _: BorrowedFd<'_>) -> Result<(), EngineError> {
        Ok(())
    }

    /// What large pages save a guest is no time that a replay counts.
    fn large_page(&self) -> Option<u32> {
        None
    }

    fn dissolve(&self, _: GfnRun) -> Result<(), EngineError> {
        Ok(())
    }

    fn read(&self, gfn: Gfn, into: &mut PageBuf) {
        make(gfn, self.size(gfn), into);
    }

    fn read_out(&self, run: GfnRun, into: &mut [PageBuf]) -> Result<(), EngineError> {
        for (gfn, page) in run.iter().zip(into) {
            self.read(gfn, page);
        }
        Ok(())
    }

    fn prefetch(&self, _: Gfn) {}

    fn forget(&self) {}

    fn punch(&self, _: GfnRun) -> Result<(), EngineError> {
        Ok(())
    }

    fn revoke(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn provide(&self, _: Gfn, _: Content<'_>) -> Result<(), EngineError> {
        Ok(())
    }

    fn write_back(&self, _: Gfn, _: &PageBuf) -> Result<(), EngineError> {
        Ok(())
    }

    fn wake(&self, _: GfnRun) {}

    fn take_written(&self, _: GfnRun, _: &mut dyn FnMut(GfnRun)) -> bool {
        false
    }
}

/// A disk that keeps of each page how it was made.
#[derive(Debug, Default)]
pub(super) struct Disk(Mutex<Vec<[u8; LABEL]>>);

impl Disk {
    fn labels(&self) -> std::sync::MutexGuard<'_, Vec<[u8; LABEL]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn slot(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX) / PAGE_SIZE
}

impl Storage for Disk {
    fn write_at(&self, pages: &[PageBuf], offset: u64) -> io::Result<usize> {
        let mut labels = self.labels();
        let first = slot(offset);
        if labels.len() < first + pages.len() {
            labels.resize(first + pages.len(), [0; LABEL]);
        }
        for (label, page) in labels[first..].iter_mut().zip(pages) {
            label.copy_from_slice(&page.0[..LABEL]);
        }
        Ok(pages.len() * PAGE_SIZE)
    }

    fn read_at(&self, pages: &mut [PageBuf], offset: u64) -> io::Result<usize> {
        let labels = self.labels();
        let known = labels.iter().skip(slot(offset));
        let mut read = 0;
        for (page, label) in pages.iter_mut().zip(known) {
            let [a, b, c, d, size, ..] = *label;
            make(Gfn(u32::from_le_bytes([a, b, c, d])), Size(size), page);
            read += PAGE_SIZE;
        }
        Ok(read)
    }

    fn read_only(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn available(&self) -> io::Result<Bytes> {
        Ok(Bytes(u64::MAX))
    }

    fn extend(&self, _: Bytes, _: Bytes) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, _: Bytes) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::Compressor;

    #[test]
    fn pages_compress_to_their_size_and_come_back_from_the_disk() {
        let mut compressor = Compressor::new();
        let disk = Disk::default();
        for bytes in (64..=2048).step_by(31).chain([4096]) {
            let gfn = Gfn(bytes * 7);
            let mut page = PageBuf::zeroed();
            make(gfn, Size::of(bytes), &mut page);
            match compressor.compress(&page) {
                Some(payload) => {
                    let off = payload.len().abs_diff(bytes as usize);
                    assert!(bytes <= 2048 && off <= 32, "{bytes}: {}", payload.len());
                }
                None => assert_eq!(bytes, 4096),
            }
            let offset = u64::from(bytes) * PAGE_SIZE as u64;
            disk.write_at(&[page.clone()], offset)
                .expect("it takes all");
            let mut back = [PageBuf::zeroed()];
            disk.read_at(&mut back, offset).expect("it is there");
            assert!(back[0] == page, "{bytes}");
        }
        let mut zero = PageBuf::zeroed();
        make(Gfn(1), Size::ZERO, &mut zero);
        assert!(zero.is_zero());
    }
}
