//! The engine where userfaultfd is allowed.

use std::io::ErrorKind;
use std::sync::Arc;

use memvisor_wire::system_error::cannot;

use super::shim::Provider;
use super::{Content, EngineError, EngineKind, Ram};
use crate::sys::{Filled, Pagemap, Uffd};
use crate::units::{Gfn, GfnRun};

/// Faults come over the guest's userfaultfd and are resolved in its address space by ioctl. Only
/// writes to shared pages need the help of the faulting thread.
#[derive(Debug)]
pub struct UffdProvider {
    uffd: Arc<Uffd>,
    base: u64,
    /// Tells which pages were written, where the kernel tracks that.
    pagemap: Option<Pagemap>,
}

impl UffdProvider {
    /// A provider for a guest that maps its RAM at `base`. Its `pagemap`, if there is one, tells which pages were
    /// written.
    #[must_use]
    pub const fn new(uffd: Arc<Uffd>, base: u64, pagemap: Option<Pagemap>) -> Self {
        Self {
            uffd,
            base,
            pagemap,
        }
    }

    const fn address(&self, gfn: Gfn) -> u64 {
        // Wrapping, although the handshake has checked the base: it comes from the guest, and must not end the daemon.
        self.base.wrapping_add(gfn.offset())
    }
}

impl Provider for UffdProvider {
    fn kind(&self) -> EngineKind {
        EngineKind::Uffd
    }

    fn provide(&self, _ram: &Ram, gfn: Gfn, content: Content<'_>) -> Result<(), EngineError> {
        let address = self.address(gfn);
        let (what, filled) = match content {
            Content::Zero => ("give the guest a zero page", self.uffd.zero(address)),
            Content::Bytes(page) => ("copy a page into the guest", self.uffd.copy(address, page)),
            Content::Present => (
                "map a present page in the guest",
                self.uffd.map_present(address),
            ),
        };
        match filled.map_err(cannot(what))? {
            Filled::Done => Ok(()),
            // Several threads faulted on one page, or it was mapped meanwhile, or the ioctl must be tried
            // once more: in each case the threads that wait access the page again.
            Filled::Present if matches!(content, Content::Present) => {
                self.wake(GfnRun::single(gfn));
                Ok(())
            }
            // A hole was expected. To map what is there instead would give the guest bytes that it did not write.
            Filled::Present => Err(cannot(what)(ErrorKind::AlreadyExists).into()),
            Filled::Gone => Err(EngineError::Gone),
        }
    }

    fn wake(&self, run: GfnRun) {
        // It fails only for a range outside the address space, that is for a shim that lied about its base.
        // Then the threads that wait are elsewhere.
        let _ = self.uffd.wake(self.address(run.start), run.count);
    }

    fn take_written(&self, run: GfnRun, each: &mut dyn FnMut(GfnRun)) -> bool {
        // It fails when the guest is gone, or when its shim has mapped RAM anew and not registered it.
        // Then pages are hashed again and again, as where the kernel cannot tell.
        let told = self
            .pagemap
            .as_ref()
            .map(|pagemap| pagemap.take_written(run, each));
        matches!(told, Some(Ok(())))
    }
}
