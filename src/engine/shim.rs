//! What both engines do in the same way: commands to the shim, and work on the RAM file.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use memvisor_wire::memory::{Ack, Op, Remap};
use memvisor_wire::system_error::cannot;

use super::{Content, Engine, EngineError, EngineKind, Link, Ram};
use crate::sys::large_pages;
use crate::units::{Gfn, GfnRun, PageBuf};

/// What the two engines do differently: how a page gets to the guest.
pub trait Provider: Send + Sync + std::fmt::Debug {
    /// Which engine it belongs to.
    fn kind(&self) -> EngineKind;

    /// As [`Engine::provide`].
    ///
    /// # Errors
    /// [`EngineError`].
    fn provide(&self, ram: &Ram, gfn: Gfn, content: Content<'_>) -> Result<(), EngineError>;

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

impl<P: Provider> Engine for ShimEngine<P> {
    fn kind(&self) -> EngineKind {
        self.provider.kind()
    }

    fn command(&self, op: Op, runs: &[Remap]) -> Result<Ack, EngineError> {
        self.link.command(op, runs)
    }

    fn set_pool(&self, pool: BorrowedFd<'_>) -> Result<(), EngineError> {
        self.link.set_pool(pool)
    }

    fn large_page(&self) -> Option<u32> {
        large_pages().ok()
    }

    fn dissolve(&self, run: GfnRun) -> Result<(), EngineError> {
        let mut content = vec![PageBuf::zeroed(); run.count as usize];
        self.read_out(run, &mut content)?;
        self.punch(run)?;
        // Page by page: what is written at once, the kernel may put into one large page again.
        run.iter()
            .zip(&content)
            .try_for_each(|(gfn, page)| self.ram.write(gfn, page))
    }

    fn read(&self, gfn: Gfn, into: &mut PageBuf) {
        self.ram.view.read(gfn.0, into);
    }

    fn read_out(&self, run: GfnRun, into: &mut [PageBuf]) -> Result<(), EngineError> {
        assert_eq!(run.count as usize, into.len(), "a buffer a page");
        let read = self.ram.memfd.read_pages(run.start.0, into);
        Ok(read.map_err(cannot("read guest RAM"))?)
    }

    fn prefetch(&self, gfn: Gfn) {
        self.ram.view.prefetch(gfn.0);
    }

    fn forget(&self) {
        self.ram.view.forget();
    }

    fn punch(&self, run: GfnRun) -> Result<(), EngineError> {
        let punched = self.ram.memfd.punch(run.start.0, run.count);
        Ok(punched.map_err(cannot("punch a hole into guest RAM"))?)
    }

    fn revoke(&self) -> Result<(), EngineError> {
        let revoked = self.ram.memfd.revoke();
        Ok(revoked.map_err(cannot("take guest RAM away"))?)
    }

    fn provide(&self, gfn: Gfn, content: Content<'_>) -> Result<(), EngineError> {
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
