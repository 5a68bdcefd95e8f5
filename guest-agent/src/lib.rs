//! What runs inside a memvisor guest, and the messages that it exchanges with its host.
//!
//! - [`protocol`]: the messages of both sockets: types, limits, versions, codec. No I/O.
//! - [`balloon`]: the agent: gives pages of the guest to its host and takes them back.
//! - [`shim`]: the virtual hardware: RAM mapping, memory thread, fault handler. The guest's operator
//!   trusts it. It is the only part with `unsafe`, except for the signal handler of [`signals`].
//! - [`kernel`]: the toy guest OS: pages, mappings, page cache, reclaim, its own swap disk.
//! - [`guest`]: all of these put together; [`signals`]: how a guest is told to end.
//! - [`rows`]: which pages a guest is going to touch next.
//! - [`system_error`]: the error for a system call that failed.
//! - [`units`]: sizes and times as people write them.
//! - [`workload`]: what guests run; each workload verifies every byte that it reads.

pub mod balloon;
pub mod guest;
pub mod kernel;
pub mod protocol;
pub mod rows;
pub mod shim;
pub mod signals;
mod sys;
pub mod system_error;
pub mod units;
pub mod workload;
