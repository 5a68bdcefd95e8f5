//! Reclaim: the worker of each VM, which takes pages away from its guest.
//!
//! What has to be freed, and whose, is the policy's decision; here it is carried out, in bounded batches, for as long as
//! less memory is free than the policy aims at (ADR 17). A page leaves RAM for the cheapest home that will take it, in
//! ESX's order: nothing at all (zero), a frame that exists already (share before swap), the compression cache, the swap file.
//!
//! Always in this order: lock, freeze, copy out, store, switch the home, give the memory back, unlock.
//! At every instant one valid copy exists. A page that nothing takes stays where it is: its guest
//! does not notice, and the host stays short of memory, which the policy sees.
//!
//! Each VM has a worker thread of its own. A guest that does not answer (stopped, swapped out by its
//! own kernel, malicious) keeps only its own worker waiting.
//!
//! So VMs are paged out side by side, and a batch of one VM is not spread over more threads. Its holes
//! could not be: the kernel locks the file for each. Only compressing could, half of the work, and
//! a batch is half a millisecond: helpers would need handing over and waking for each, and their
//! processors are those of guests. A page of a batch is read from guest memory once, and the zero check,
//! the digest, the comparison with a frame and the compressor look at that copy while it is in cache.

mod evict;
mod job;
mod pace;
mod stash;
mod stores;
mod turn;
mod victims;
mod worker;

pub use evict::Evictor;
pub use job::{Job, Routine, WorkerHandle};
#[cfg(test)]
pub(crate) use job::{Queue, queue};
pub use pace::{ScanSettings, host_ghz};
#[cfg(test)]
pub(crate) use turn::Core;
pub use worker::Worker;
