//! The guest's virtual hardware: RAM, its memory thread, its fault handler.
#![allow(
    unsafe_code,
    reason = "this is the room for it; tests/tidy.rs holds it to that"
)]

mod doorbell;
mod seqpacket;

use crate::protocol::Gfn;

pub use doorbell::Doorbell;
pub use seqpacket::{PeerCredentials, Received, SeqPacket, SeqPacketListener, wait_readable};

/// Guest RAM as the toy kernel sees it: pages it can read and write.
///
/// The shim implements it over the mapped RAM; tests over a plain vector. A call touches the
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
}
