//! The engine for any Linux: page protection and SIGSEGV, without privileges and without userfaultfd.

use super::shim::Provider;
use super::{Content, EngineError, EngineKind, Ram};
use crate::units::{Gfn, GfnRun};

/// An access to a page that is not open raises SIGSEGV. The handler asks the daemon, and opens the page when told to.
#[derive(Clone, Copy, Debug)]
pub struct MprotectProvider;

impl Provider for MprotectProvider {
    fn kind(&self) -> EngineKind {
        EngineKind::Mprotect
    }

    fn provide(&self, ram: &Ram, gfn: Gfn, content: Content<'_>) -> Result<(), EngineError> {
        match content {
            // The access that follows fills the hole with zeroes.
            Content::Zero | Content::Present => Ok(()),
            Content::Bytes(page) => ram.write(gfn, page),
        }
    }

    fn wake(&self, _run: GfnRun) {
        // Nobody waits in the kernel: every waiting thread has a fault channel.
    }

    fn take_written(&self, _run: GfnRun, _each: &mut dyn FnMut(GfnRun)) -> bool {
        false
    }
}
