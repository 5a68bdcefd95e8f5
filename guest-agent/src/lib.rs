//! What runs inside a memvisor guest. What it says to its host is in [`memvisor_wire`].
//!
//! - [`balloon`]: the agent: gives pages of the guest to its host and takes them back.
//! - [`shim`]: the virtual hardware: RAM mapping, memory thread, fault handler. The guest's operator
//!   trusts it. It is the only part with `unsafe`.
//! - [`kernel`]: the toy guest OS: pages, mappings, page cache, reclaim, its own swap disk.
//! - [`guest`]: all of these put together.
//! - [`command`]: the command line of a guest, and how it ends; [`log`]: what is logged, one line an event.
//! - [`outside`]: a balloon agent that is a program of its own.
//! - [`workload`]: what guests run; each workload verifies every byte that it reads.

pub mod balloon;
pub mod command;
pub mod guest;
pub mod kernel;
pub mod log;
pub mod outside;
pub mod shim;
pub mod workload;
