//! The RAM of one VM: a sparse memfd and the daemon's read-only view of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::EngineError;
use crate::sys::{Mapping, Memfd};
use crate::units::{Gfn, GfnRun, PageBuf, Pages};

/// Guest RAM. A page that is not resident is a hole.
#[derive(Debug)]
pub struct Ram {
    memfd: Memfd,
    view: Mapping,
}

impl Ram {
    /// RAM of `pages` holes for the VM called `name`.
    ///
    /// # Errors
    /// What the kernel says: no address space, no descriptors.
    pub fn new(name: &str, pages: u32) -> io::Result<Self> {
        let memfd = Memfd::lend(&format!("memvisor-ram:{name}"), pages)?;
        let view = Mapping::read_only(&memfd)?;
        Ok(Self { memfd, view })
    }

    /// Copies a page out; it must be resident.
    pub fn read(&self, gfn: Gfn, into: &mut PageBuf) {
        self.view.read(gfn.0, into);
    }

    /// Copies a run of pages out without mapping them; they must be resident.
    ///
    /// # Errors
    /// [`EngineError::Kernel`].
    ///
    /// # Panics
    /// When the run and `into` are not equally many pages.
    pub fn read_out(&self, run: GfnRun, into: &mut [PageBuf]) -> Result<(), EngineError> {
        assert_eq!(run.count as usize, into.len(), "a buffer a page");
        let read = self.memfd.read_pages(run.start.0, into);
        read.map_err(EngineError::kernel("read guest RAM"))
    }

    /// Begins to fetch a page that is to be read next.
    pub fn prefetch(&self, gfn: Gfn) {
        self.view.prefetch(gfn.0);
    }

    /// Fills a hole.
    ///
    /// # Errors
    /// [`EngineError::Kernel`] when the machine is out of memory.
    pub fn write(&self, gfn: Gfn, content: &PageBuf) -> Result<(), EngineError> {
        self.memfd
            .write_page(gfn.0, content)
            .map_err(EngineError::kernel("write guest RAM"))
    }

    /// Punches holes.
    ///
    /// # Errors
    /// [`EngineError::Kernel`].
    pub fn punch(&self, run: GfnRun) -> Result<(), EngineError> {
        let punched = self.memfd.punch(run.start.0, run.count);
        punched.map_err(EngineError::kernel("punch a hole into guest RAM"))
    }

    /// Takes all of it from whoever still maps it, for good.
    ///
    /// # Errors
    /// [`EngineError::Kernel`].
    pub fn revoke(&self) -> Result<(), EngineError> {
        let revoked = self.memfd.revoke();
        revoked.map_err(EngineError::kernel("take guest RAM away"))
    }

    /// What the kernel counts for this RAM.
    ///
    /// # Errors
    /// What `fstat(2)` says.
    pub fn allocated(&self) -> io::Result<Pages> {
        self.memfd.allocated()
    }
}

impl AsFd for Ram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}
