//! The RAM of one VM: a sparse memfd and the daemon's read-only view of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use memvisor_wire::system_error::cannot;

use super::EngineError;
use crate::sys::{Mapping, Memfd};
use crate::units::{Gfn, PageBuf, Pages};

/// Guest RAM. A page that is not resident is a hole.
#[derive(Debug)]
pub struct Ram {
    pub(super) memfd: Memfd,
    pub(super) view: Mapping,
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

    /// Fills a hole.
    ///
    /// # Errors
    /// [`EngineError::Kernel`] when the machine is out of memory.
    pub fn write(&self, gfn: Gfn, content: &PageBuf) -> Result<(), EngineError> {
        let written = self.memfd.write_page(gfn.0, content);
        Ok(written.map_err(cannot("write guest RAM"))?)
    }

    /// The memory that the kernel counts for this RAM.
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
