//! What both engines do in the same way: commands to the shim, and the RAM file.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use memvisor_guest_agent::protocol::memory::{Op, Remap};

use super::{Content, Engine, EngineError, EngineKind, Link, Provided, Ram, SharedRun};
use crate::units::{Gfn, GfnRun, PageBuf};

/// What the two engines do differently: how a page gets to the guest.
pub trait Provider: Send + Sync + std::fmt::Debug {
    /// Which engine this makes.
    fn kind(&self) -> EngineKind;

    /// As [`Engine::provide`].
    ///
    /// # Errors
    /// [`EngineError`].
    fn provide(&self, ram: &Ram, gfn: Gfn, content: Content<'_>) -> Result<Provided, EngineError>;

    /// As [`Engine::wake`].
    fn wake(&self, run: GfnRun);

    /// As [`Engine::take_written`].
    fn take_written(&self, run: GfnRun, each: &mut dyn FnMut(GfnRun)) -> bool;
}

/// An engine for a real guest: its shim's memory thread does the remapping.
#[derive(Debug)]
pub struct ShimEngine<P> {
    ram: Arc<Ram>,
    link: Arc<Link>,
    provider: P,
}

impl<P: Provider> ShimEngine<P> {
    /// An engine for the guest behind `link`, which maps `ram`.
    #[must_use]
    pub const fn new(ram: Arc<Ram>, link: Arc<Link>, provider: P) -> Self {
        Self {
            ram,
            link,
            provider,
        }
    }
}

fn plain(runs: &[GfnRun]) -> Vec<Remap> {
    runs.iter()
        .map(|run| Remap {
            run: *run,
            frame: 0,
        })
        .collect()
}

impl<P: Provider> Engine for ShimEngine<P> {
    fn kind(&self) -> EngineKind {
        self.provider.kind()
    }

    fn freeze(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        self.link.command(Op::Freeze, &plain(runs))
    }

    fn map_shared(&self, runs: &[SharedRun]) -> Result<usize, EngineError> {
        let remap = |shared: &SharedRun| Remap {
            run: shared.run,
            frame: shared.frame.0,
        };
        let remaps: Vec<Remap> = runs.iter().map(remap).collect();
        match self.link.command(Op::MapShared, &remaps) {
            Ok(()) => Ok(runs.len()),
            Err(EngineError::Refused { run, .. }) => Ok(runs
                .iter()
                .position(|shared| shared.run == run)
                .unwrap_or(0)),
            Err(error) => Err(error),
        }
    }

    fn map_private(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        self.link.command(Op::MapPrivate, &plain(runs))
    }

    fn close(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        self.link.command(Op::Close, &plain(runs))
    }

    fn reveal(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        self.link.command(Op::Reveal, &plain(runs))
    }

    fn thaw(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        match self.kind() {
            // The next access is a minor fault, which costs no mapping.
            EngineKind::Uffd => Ok(()),
            EngineKind::Mprotect => self.link.command(Op::Open, &plain(runs)),
        }
    }

    fn set_pool(&self, pool: BorrowedFd<'_>) -> Result<(), EngineError> {
        self.link.set_pool(pool)
    }

    fn read(&self, gfn: Gfn, into: &mut PageBuf) {
        self.ram.read(gfn, into);
    }

    fn read_out(&self, run: GfnRun, into: &mut [PageBuf]) -> Result<(), EngineError> {
        self.ram.read_out(run, into)
    }

    fn prefetch(&self, gfn: Gfn) {
        self.ram.prefetch(gfn);
    }

    fn punch(&self, run: GfnRun) -> Result<(), EngineError> {
        self.ram.punch(run)
    }

    fn provide(&self, gfn: Gfn, content: Content<'_>) -> Result<Provided, EngineError> {
        self.provider.provide(&self.ram, gfn, content)
    }

    fn write_back(&self, gfn: Gfn, content: &PageBuf) -> Result<(), EngineError> {
        self.ram.write(gfn, content)
    }

    fn wake(&self, run: GfnRun) {
        self.provider.wake(run);
    }

    fn take_written(&self, run: GfnRun, each: &mut dyn FnMut(GfnRun)) -> bool {
        self.provider.take_written(run, each)
    }
}
