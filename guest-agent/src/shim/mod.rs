//! The guest's virtual hardware: RAM, its memory thread, its fault handler.
//!
//! A hypervisor would do this below the guest; here a few threads of the guest's own process stand in
//! for it. The host does not trust them: whatever the shim says or fails to do, only its own guest
//! suffers. The guest (kernel, agent, workloads) is above [`Memory`] and knows nothing of it.
//!
//! - [`attach()`] shakes hands with the daemon over `memory.sock` and maps RAM as one linear mapping on
//!   which every access waits for the daemon: registered with a userfaultfd, or without access.
//! - The *memory thread* ([`Attached::serve`]) executes the daemon's commands: freeze, map shared
//!   frames, map RAM back.
//! - The *fault handler* asks the daemon over a fault channel when a guest thread may not access a
//!   page: a write to a shared page in both engines, any access to a closed page without userfaultfd.
//! - A guest that was powered on *inline* gets a signal for every fault: its handler brings compressed
//!   pages back and copies shared ones itself, as far as the daemon has offered them, and asks for the rest.
//! - [`map_bare`] makes RAM without a daemon, for a guest that others are compared with.
//!
//! None of them ever touches guest RAM, or it could wait for itself; the one exception is a page that the
//! handler has claimed, which it knows to be readable.
#![allow(
    unsafe_code,
    reason = "this is the room for it; tests/tidy.rs holds it to that"
)]

mod attach;
mod bare;
mod channels;
mod doorbell;
mod fds;
pub mod inline;
mod linear;
pub mod mapping;
mod memory_thread;
pub mod privacy;
mod ram;
mod segv;
mod seqpacket;
pub mod table;
pub mod uffd;

pub use attach::{AttachError, Attached, Ram, attach};
pub use bare::map_bare;
pub use memory_thread::SessionEnd;

use crate::protocol::{Gfn, GfnRun};
pub use doorbell::Doorbell;

pub use seqpacket::{Received, SeqPacket, SeqPacketListener, listen_privately, wait_readable};

/// Guest RAM as the toy kernel sees it: pages it can read and write.
///
/// The shim implements it over the mapped RAM and over memory of the process alone; tests over a plain vector. A call touches the
/// memory with ordinary user-space loads and stores (never a system call into guest RAM: the host
/// may have protected the page, and the kernel would answer EFAULT instead of waiting). A call can
/// block for as long as the host needs to bring the page back.
///
/// Two threads must not write the same bytes at once: the kernel hands a page to one owner.
pub trait Memory: Send + Sync {
    /// How many pages the guest has.
    fn pages(&self) -> u32;

    /// Copies `into.len()` bytes from byte `at` of page `gfn`.
    ///
    /// # Panics
    /// When the range leaves the page or the page the RAM.
    fn read(&self, gfn: Gfn, at: usize, into: &mut [u8]);

    /// Copies `from` to byte `at` of page `gfn`.
    ///
    /// # Panics
    /// When the range leaves the page or the page the RAM.
    fn write(&self, gfn: Gfn, at: usize, from: &[u8]);

    /// Asks the host, if there is one, that `pages`, which hold nothing, get the bytes of as many pages from `source` on, and
    /// share them with other guests; how many of them, from the first on, have these bytes now. A host may
    /// always say none. Until the return nobody may use any of these pages.
    fn attach(&self, _pages: GfnRun, _source: Gfn) -> u32 {
        0
    }
}
