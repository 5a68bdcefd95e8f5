//! Mappings of files that another process may cut short.
//!
//! A guest can write its RAM and its claim table, so it can cut the files short as well; and the daemon does
//! that itself at the end of a VM ([`Memfd::revoke`](super::Memfd::revoke)). A thread that then reads such
//! a page gets SIGBUS, which would end the daemon and with it all guests. A guarded mapping becomes private
//! memory of zeroes instead, as a whole, at the first such access: the guest has lost what it took away, and
//! nobody else notices.
//!
//! The handler finds the mapping in a list of slots. A handler must not wait for a lock, so the list never shrinks:
//! a slot is never freed while the handler may look at it, but used again once its mapping is gone.

use std::io;
use std::num::NonZeroUsize;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// A mapping that the handler knows until this is dropped.
#[derive(Debug)]
pub(super) struct Guard(&'static Slot);

/// The addresses of one mapping. `start` is 0 while the slot is free, and while `end` changes.
#[derive(Debug, Default)]
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    writable: AtomicBool,
    next: AtomicPtr<Slot>,
}

static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());
static FREE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());

impl Guard {
    /// Guards `len` bytes from `start` on, which are mapped.
    ///
    /// # Errors
    /// What `sigaction(2)` says, at the first call.
    pub(super) fn new(start: *const u8, len: usize, writable: bool) -> io::Result<Self> {
        static INSTALLED: OnceLock<Result<(), Errno>> = OnceLock::new();
        (*INSTALLED.get_or_init(install))?;
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = free.pop().unwrap_or_else(|| {
            let slot: &'static mut Slot = Box::leak(Box::default());
            slot.next = AtomicPtr::new(SLOTS.load(Ordering::Relaxed));
            // Release pairs with the Acquire of the handler: it sees a slot that is whole. The lock keeps others out.
            SLOTS.store(slot, Ordering::Release);
            slot
        });
        // Release pairs with the Acquire of `range_with` and `replace`: a start that is not 0 comes with its end.
        slot.writable.store(writable, Ordering::Release);
        slot.end.store(start as usize + len, Ordering::Release);
        slot.start.store(start as usize, Ordering::Release);
        Ok(Self(slot))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Release pairs with the Acquire of `range_with`.
        self.0.start.store(0, Ordering::Release);
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(self.0);
    }
}

impl Slot {
    /// Its mapping, if `address` is in it.
    fn range_with(&self, address: usize) -> Option<(usize, usize)> {
        // Acquire pairs with the Release of `Guard::new`.
        let start = self.start.load(Ordering::Acquire);
        let end = self.end.load(Ordering::Acquire);
        // Acquire as above. If the start has changed, the slot has another mapping, and the end may be that one's.
        let is_same = self.start.load(Ordering::Acquire) == start;
        (start != 0 && is_same && (start..end).contains(&address)).then_some((start, end))
    }

    /// Puts zeroes in the place of the slot's mapping; `false` when `address` is not in it.
    fn replace(&self, address: usize) -> bool {
        let Some((start, end)) = self.range_with(address) else {
            return false;
        };
        // Acquire pairs with the Release of `Guard::new`.
        let write = if self.writable.load(Ordering::Acquire) {
            ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_NONE
        };
        let access = ProtFlags::PROT_READ | write;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
        let (start, len) = (NonZeroUsize::new(start), NonZeroUsize::new(end - start));
        let (Some(_), Some(len)) = (start, len) else {
            return false;
        };
        // SAFETY: the range is one whole mapping of a guarded file. It cannot go away meanwhile: its owner
        // drops the guard before the mapping, and the thread in this handler is using the owner. All readers of
        // the mapping copy bytes or load atomics, which may change at any moment anyway.
        unsafe { mmap_anonymous(start, len, access, flags) }.is_ok()
    }
}

fn install() -> Result<(), Errno> {
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK | SaFlags::SA_RESTART;
    let action = SigAction::new(SigHandler::SigAction(on_fault), flags, SigSet::empty());
    // SAFETY: the handler uses atomics and system calls only. The handler that it replaces is the standard
    // library's report of a stack overflow, which is not lost: Linux raises SIGSEGV for that.
    unsafe { sigaction(Signal::SIGBUS, &action) }.map(drop)
}

extern "C" fn on_fault(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler installed with SA_SIGINFO a siginfo that lives as long as it runs.
    let info = unsafe { &*info };
    // SAFETY: a siginfo of SIGBUS that the kernel raised holds an address; that of any other SIGBUS is not used.
    let address = unsafe { info.si_addr() } as usize;
    let is_raised = info.si_code > 0;
    // Acquire pairs with the Release of `Guard::new`: a slot that is seen is whole.
    let mut next = SLOTS.load(Ordering::Acquire);
    // SAFETY: slots are leaked, never freed, and changed through atomics only.
    while let Some(slot) = unsafe { next.as_ref() } {
        if is_raised && slot.replace(address) {
            return;
        }
        // Relaxed: a slot's successor never changes once the slot can be seen.
        next = slot.next.load(Ordering::Relaxed);
    }
    // No guarded mapping: the access is made again, and ends the process as it would have without this handler.
    // SAFETY: the default action has no preconditions.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGBUS, SigHandler::SigDfl) };
}

#[cfg(test)]
mod tests {
    use memvisor_wire::claims::Words;

    use super::super::{Mapping, Memfd, SharedWords};
    use crate::units::PageBuf;

    #[test]
    fn pages_that_were_cut_off_read_as_zeroes_and_others_are_as_before() {
        let (cut, kept) = ["cut", "kept"]
            .map(|name| Memfd::lend(name, 3).expect("a memfd"))
            .into();
        let full = PageBuf([7; 4096]);
        for memfd in [&cut, &kept] {
            memfd.write_page(2, &full).expect("a page");
        }
        let views = [&cut, &kept].map(|memfd| Mapping::read_only(memfd).expect("mapped"));
        cut.revoke().expect("an own file");
        let mut found = PageBuf([1; 4096]);
        views[0].read(2, &mut found);
        assert!(found == PageBuf::zeroed());
        views[1].read(2, &mut found);
        assert!(found == full);
        // The slot is free: the next mapping is guarded as well.
        drop(views);
        let next = Memfd::lend("next", 1).expect("a memfd");
        let view = Mapping::read_only(&next).expect("mapped");
        next.revoke().expect("an own file");
        view.read(0, &mut found);
        assert!(found == PageBuf::zeroed());
    }

    #[test]
    fn words_that_were_cut_off_are_zero_and_can_be_stored() {
        let words = SharedWords::new("cut-words", 8).expect("a memfd");
        words.store(3, 9);
        let file = std::fs::File::from(
            std::os::fd::AsFd::as_fd(&words)
                .try_clone_to_owned()
                .expect("a descriptor"),
        );
        file.set_len(0).expect("it can be cut short");
        assert_eq!(words.load(3), 0);
        words.store(3, 5);
        assert_eq!(words.load(3), 5);
    }
}
