//! Reclaim: the worker of each VM, which takes pages away from its guest.
//!
//! The policy decides how much has to be freed, and from which VM. This module carries that out, in bounded batches,
//! for as long as less memory is free than the policy aims at (ADR 17). A page leaves RAM for the cheapest home that
//! will take it, in ESX's order: nothing at all (zero), a frame that exists already (share before swap), the
//! compression cache, the host cache of swapped pages, the swap file. Pages move on from each cache to what is behind it
//! (`stash.rs`, `demote.rs`).
//!
//! The steps are always the same: lock, freeze, copy out, store, switch the home, give the memory back, unlock.
//! At every instant one valid copy exists. A page that no home takes stays where it is: its guest
//! does not notice, and the host stays short of memory, which the policy sees.
//!
//! While memory is free, workers can also bring swapped pages back before their guests want them (`unswap.rs`).
//!
//! And they can take pages that their guest has not touched for long, though nobody is short of memory (`cold.rs`).
//!
//! While there is plenty of memory, they make large pages of small ones, and break them when there is not (`large.rs`).
//!
//! Each VM has a worker thread of its own. A guest that does not answer (stopped, swapped out by its
//! own kernel, malicious) keeps only its own worker waiting.
//!
//! So VMs are paged out side by side, but a batch of one VM is not spread over several threads. Punching its
//! holes cannot run in parallel, because the kernel locks the file for each hole. Compressing could, but it is
//! only half of the work, and a batch takes half a millisecond: helper threads would have to be woken for each
//! batch, on processors that the guests use. A page of a batch is read from guest memory once. The zero check,
//! the digest, the comparison with a frame and the compressor all use that copy while it is in the cache.

mod cold;
mod demote;
mod evict;
mod job;
mod large;
mod pace;
mod stash;
mod stores;
mod turn;
mod unswap;
pub mod victims;
mod worker;

pub use cold::Cold;
pub use evict::Evictor;
pub use job::{Job, Routine, WorkerHandle};
pub(crate) use job::{Queue, queue};
pub use large::LargePages;
pub use pace::{ScanSettings, host_ghz};
pub(crate) use turn::Core;
pub use worker::Worker;
