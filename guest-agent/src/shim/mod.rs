//! The guest's virtual hardware: RAM, its memory thread, its fault handler.
//!
//! A hypervisor would do this below the guest; here a few threads of the guest's own process stand in
//! for it. The host does not trust them: whatever the shim says or fails to do, only its own guest
//! suffers. The guest (kernel, agent, workloads) is above [`Memory`] and knows nothing of the shim.
//!
//! - [`power_on()`] shakes hands with the daemon over `memory.sock` and maps RAM as one linear mapping on
//!   which every access waits for the daemon: the mapping is registered with a userfaultfd or allows no
//!   access.
//! - The *memory thread* ([`PoweredOn::serve`]) executes the daemon's commands: freeze, map shared
//!   frames, map RAM back.
//! - The *fault handler* asks the daemon over a fault channel when a guest thread may not access a
//!   page: a write to a shared page in both engines, any access to a closed page without userfaultfd.
//! - A guest that was powered on *inline* gets a signal for every fault. Its handler serves the pages that
//!   the daemon has offered, for example compressed and shared ones, and asks the daemon for the rest.
//! - [`map_bare`] makes RAM without a daemon, for a guest with which others are compared.
//!
//! Neither the memory thread nor the handler touches guest RAM, because it might then wait for itself. The
//! one exception is a shared page that the handler has claimed, which it knows to be readable.
#![allow(
    unsafe_code,
    reason = "this is the room for it; tests/tidy.rs holds it to that"
)]

mod bare;
mod channels;
pub mod inline;
mod linear;
pub mod mapping;
mod memory_thread;
mod power_on;
mod ram;
mod segv;
mod table;

pub use bare::map_bare;
pub use memory_thread::SessionEnd;
pub use power_on::{PowerOnError, PoweredOn, Ram, power_on};
pub use table::map_shared_words;

use memvisor_wire::{Gfn, GfnRun};

/// Guest RAM as the toy kernel sees it: pages it can read and write.
///
/// The shim implements it over RAM that the host backs and over private memory of the process; tests
/// implement it over a plain vector. A call touches the memory with ordinary user-space loads and
/// stores, never with a system call into guest RAM: the host may have protected the page, and the
/// kernel would answer EFAULT instead of waiting. A call can block for as long as the host needs to
/// bring the page back.
///
/// Two threads must not write the same bytes at once. The toy kernel ensures this by giving each page one owner.
pub trait Memory: Send + Sync {
    /// How many pages the guest has.
    fn pages(&self) -> u32;

    /// Copies `into.len()` bytes from byte `at` of page `gfn`.
    ///
    /// # Panics
    /// When the range leaves the page, or the page lies outside RAM.
    fn read(&self, gfn: Gfn, at: usize, into: &mut [u8]);

    /// Copies `from` to byte `at` of page `gfn`.
    ///
    /// # Panics
    /// When the range leaves the page, or the page lies outside RAM.
    fn write(&self, gfn: Gfn, at: usize, from: &[u8]);

    /// Asks the host, if there is one, to give `pages`, which hold nothing, the bytes of an equally long run from
    /// `source` on, and to share them with other guests. Returns how many of `pages`, counted from the first, have
    /// these bytes now; a host may always refuse all of them. Nobody may use a page of either run until the call
    /// returns.
    fn attach(&self, _pages: GfnRun, _source: Gfn) -> u32 {
        0
    }
}
