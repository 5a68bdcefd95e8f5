//! Memory whose faults are signals, with a handler that does the least that lets the thread go on: it asks nobody
//! and notes nothing. Benchmarks compare it with faults that a guest's own thread serves.
//!
//! The handler belongs to the whole process, so a benchmark makes one such memory, in a process of its own.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::OnceLock;

use memvisor_wire::sys::uffd::{self, Userfault};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mprotect};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::{Memfd, PlainMemory};
use crate::units::{PAGE_SIZE, PageBuf};

/// Memory whose pages the faulting threads bring themselves. See the module text.
#[derive(Debug)]
pub struct SelfServed {
    memory: PlainMemory,
    remedy: Remedy,
}

/// What the handler does about a page.
#[derive(Debug)]
enum Remedy {
    /// It fills the hole with a copy of one page.
    Copy { uffd: Userfault, page: Box<PageBuf> },
    /// It maps the same page of this file there.
    Map(Memfd),
}

static SERVED: OnceLock<SelfServed> = OnceLock::new();

impl SelfServed {
    /// Shared memory of holes: an access to a page fills it with a copy of `page`.
    ///
    /// # Errors
    /// What the kernel says; `AlreadyExists` when this process has such memory.
    pub fn of_copies(pages: u32, page: Box<PageBuf>) -> io::Result<&'static Self> {
        let memory = PlainMemory::shared(&Memfd::create("memvisor-bench-holes", pages)?)?;
        let uffd = uffd::open_for_signals()?;
        uffd.register(memory.word(0) as usize, memory.pages() as usize * PAGE_SIZE)?;
        let remedy = Remedy::Copy { uffd, page };
        Self { memory, remedy }.install(Signal::SIGBUS)
    }

    /// Shared memory that can only be read: a write to a page maps the same page of `file` there.
    ///
    /// # Errors
    /// What the kernel says; `AlreadyExists` when this process has such memory.
    pub fn of_mappings(file: Memfd) -> io::Result<&'static Self> {
        let memory = PlainMemory::shared(&Memfd::create("memvisor-bench-frames", file.pages())?)?;
        let start = NonNull::new(memory.word(0).cast()).ok_or(Errno::EINVAL)?;
        let len = file.pages() as usize * PAGE_SIZE;
        // SAFETY: the range is exactly the mapping, which is `memory`'s. From here on only `poke` writes it,
        // by the handler that is installed below.
        unsafe { mprotect(start, len, ProtFlags::PROT_READ) }?;
        let remedy = Remedy::Map(file);
        Self { memory, remedy }.install(Signal::SIGSEGV)
    }

    fn install(self, signal: Signal) -> io::Result<&'static Self> {
        let exists = |_| io::Error::from(io::ErrorKind::AlreadyExists);
        SERVED.set(self).map_err(exists)?;
        let handler = SigHandler::SigAction(on_fault);
        let action = SigAction::new(handler, SaFlags::SA_SIGINFO, SigSet::empty());
        // SAFETY: the handler makes system calls only and allocates nothing; what it looks at was set above
        // and does not change.
        unsafe { sigaction(signal, &action) }?;
        SERVED
            .get()
            .ok_or_else(|| io::Error::other("set just above"))
    }

    /// Gives a thread that may not access `address` what it needs; returns whether it can go on now.
    fn serve(&self, address: usize) -> bool {
        let start = self.memory.word(0) as usize;
        let Some(page) = address.checked_sub(start).map(|at| at / PAGE_SIZE) else {
            return false;
        };
        if page >= self.memory.pages() as usize {
            return false;
        }
        let address = start + page * PAGE_SIZE;
        match &self.remedy {
            Remedy::Copy { uffd, page } => {
                uffd::copy(uffd.as_fd(), address as u64, &page.0).is_ok()
            }
            Remedy::Map(file) => map(file, address, page * PAGE_SIZE),
        }
    }

    /// Reads the first word of a page.
    ///
    /// # Panics
    /// When there is no such page.
    #[must_use]
    pub fn touch(&self, page: u32) -> u64 {
        self.memory.touch(page)
    }

    /// Writes the first word of a page.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn poke(&self, page: u32, word: u64) {
        self.memory.poke(page, word);
    }

    /// Copies a page out.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn read(&self, page: u32, into: &mut PageBuf) {
        self.memory.read(page, into);
    }
}

/// Maps one page of `file` at `address`, a page of the memory that lives as long as the process.
fn map(file: &Memfd, address: usize, offset: usize) -> bool {
    const PAGE: NonZeroUsize = NonZeroUsize::new(PAGE_SIZE).expect("a page has bytes");
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
    let Some(address) = NonZeroUsize::new(address) else {
        return false;
    };
    // SAFETY: the address is that of a page of `SelfServed::memory`, which is never unmapped and of which
    // nobody holds a reference, so MAP_FIXED replaces nothing else; the file is open and has the page.
    unsafe { mmap(Some(address), PAGE, access, flags, file, offset as i64) }.is_ok()
}

extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    let errno = Errno::last_raw();
    // SAFETY: the kernel passes an SA_SIGINFO handler a siginfo that is valid until it returns.
    let info = unsafe { &*info };
    // SAFETY: a siginfo of a SIGSEGV or SIGBUS that the kernel raised holds an address.
    let address = unsafe { info.si_addr() } as usize;
    if !SERVED.get().is_some_and(|memory| memory.serve(address)) {
        // The access is tried again, and ends the process.
        // SAFETY: signal(2) is async-signal-safe and the default needs no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    Errno::set_raw(errno);
}
