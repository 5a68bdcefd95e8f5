//! The engine where userfaultfd is allowed.

use std::io::ErrorKind;
use std::sync::Arc;

use memvisor_guest_agent::protocol::memory::{Op, Remap};

use super::link::done_before_refusal;
use super::{Content, Engine, EngineError, EngineKind, Link, Provided, Ram, SharedRun};
use crate::sys::{Filled, Uffd};
use crate::units::{Gfn, GfnRun, PageBuf};

/// Faults come over the guest's userfaultfd and are resolved in its address space by ioctl; only
/// writes to shared pages need the faulting thread's hands.
#[derive(Debug)]
pub struct UffdEngine {
    ram: Arc<Ram>,
    link: Arc<Link>,
    uffd: Arc<Uffd>,
    base: u64,
}

impl UffdEngine {
    /// An engine for a guest that maps its RAM at `base`.
    #[must_use]
    pub const fn new(ram: Arc<Ram>, link: Arc<Link>, uffd: Arc<Uffd>, base: u64) -> Self {
        Self {
            ram,
            link,
            uffd,
            base,
        }
    }

    const fn address(&self, gfn: Gfn) -> u64 {
        self.base.wrapping_add(gfn.offset())
    }
}

pub(super) fn plain(runs: &[GfnRun]) -> Vec<Remap> {
    runs.iter()
        .map(|run| Remap {
            run: *run,
            frame: 0,
        })
        .collect()
}

pub(super) fn map_shared(link: &Link, runs: &[SharedRun]) -> Result<usize, EngineError> {
    let remaps: Vec<Remap> = runs
        .iter()
        .map(|shared| Remap {
            run: shared.run,
            frame: shared.frame.0,
        })
        .collect();
    done_before_refusal(
        &remaps,
        |remap| remap.run,
        link.command(Op::MapShared, &remaps),
    )
}

impl Engine for UffdEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Uffd
    }

    fn freeze(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        self.link.command(Op::Freeze, &plain(runs))
    }

    fn map_shared(&self, runs: &[SharedRun]) -> Result<usize, EngineError> {
        map_shared(&self.link, runs)
    }

    fn map_private(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        self.link.command(Op::MapPrivate, &plain(runs))
    }

    fn read(&self, gfn: Gfn, into: &mut PageBuf) {
        self.ram.read(gfn, into);
    }

    fn punch(&self, run: GfnRun) -> Result<(), EngineError> {
        self.ram.punch(run)
    }

    fn provide(&self, gfn: Gfn, content: Content<'_>) -> Result<Provided, EngineError> {
        let address = self.address(gfn);
        let (what, filled) = match content {
            Content::Zero => ("give the guest a zero page", self.uffd.zero(address)),
            Content::Bytes(page) => ("copy a page into the guest", self.uffd.copy(address, page)),
            Content::Present => (
                "map a present page in the guest",
                self.uffd.map_present(address),
            ),
        };
        match filled.map_err(EngineError::kernel(what))? {
            Filled::Done => Ok(Provided::Done),
            // Several threads faulted on one page, or it was mapped meanwhile, or it must be tried
            // once more: whoever waits accesses it again.
            Filled::Present if matches!(content, Content::Present) => {
                self.wake(gfn);
                Ok(Provided::Done)
            }
            // Mapping what is there would give the guest bytes that it did not write.
            Filled::Present => Err(EngineError::Kernel {
                what,
                source: ErrorKind::AlreadyExists.into(),
            }),
            Filled::Gone => Err(EngineError::Gone),
        }
    }

    fn write_back(&self, gfn: Gfn, content: &PageBuf) -> Result<(), EngineError> {
        self.ram.write(gfn, content)
    }

    fn wake(&self, gfn: Gfn) {
        // It can fail only for a range outside the address space, that is for a shim that lied
        // about its base and whose threads wait elsewhere.
        let _ = self.uffd.wake(self.address(gfn), 1);
    }
}
