//! The messages of both sockets: types, limits, versions, codec.
//!
//! Nothing here does I/O and nothing here depends on the rest of memvisor, so that another guest
//! agent, a test or a fuzzer can use it alone. Everything is little endian. Each message is one
//! datagram of a `SOCK_SEQPACKET` socket, so the kernel keeps the boundaries.
//!
//! The shim and the daemon speak [`memory`]; the balloon agent and the daemon speak [`balloon`].
//! [`claims`] is no message but memory that a guest may share with the daemon; its words have the
//! machine's byte order. [`payload`] and [`filled`] define what a compressed page consists of.

pub mod balloon;
pub mod claims;
mod codec;
pub mod filled;
mod gfn;
pub mod memory;
pub mod payload;

pub use codec::{DecodeError, Reader, Writer};
pub use gfn::{Gfn, GfnRun, PAGE_SIZE, RunsExt, runs_of};
