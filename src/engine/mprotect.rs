//! The engine of any Linux: page protection and SIGSEGV, no privilege, no userfaultfd.

use std::sync::Arc;

use memvisor_guest_agent::protocol::memory::Op;

use super::uffd::{map_shared, plain};
use super::{Content, Engine, EngineError, EngineKind, Link, Provided, Ram, Reply, SharedRun};
use crate::units::{Gfn, GfnRun, PageBuf};

/// A page that is not open raises SIGSEGV; the handler asks the daemon and opens it when told to.
#[derive(Debug)]
pub struct MprotectEngine {
    ram: Arc<Ram>,
    link: Arc<Link>,
}

impl MprotectEngine {
    /// An engine for a guest whose RAM is mapped without access.
    #[must_use]
    pub const fn new(ram: Arc<Ram>, link: Arc<Link>) -> Self {
        Self { ram, link }
    }
}

impl Engine for MprotectEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Mprotect
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
        match content {
            // The access that follows fills the hole with zeroes.
            Content::Zero | Content::Present => {}
            Content::Bytes(page) => self.ram.write(gfn, page)?,
        }
        Ok(Provided::Ask(Reply::Open(GfnRun::single(gfn))))
    }

    fn write_back(&self, gfn: Gfn, content: &PageBuf) -> Result<(), EngineError> {
        self.ram.write(gfn, content)
    }

    fn wake(&self, _gfn: Gfn) {
        // Nobody waits in the kernel: every waiting thread has a fault channel.
    }
}
