//! What a memvisor host and its guests say to each other, and how it travels.
//!
//! Nothing here depends on the rest of memvisor, so that another guest agent, a test or a fuzzer can use it
//! alone. Everything is little endian. Each message is one datagram of a `SOCK_SEQPACKET` socket, so the
//! kernel keeps the boundaries.
//!
//! - What is said. The shim and the daemon speak [`memory`]; the balloon agent and the daemon speak
//!   [`balloon`]. [`claims`] is no message but memory that a guest may share with the daemon; its words have
//!   the machine's byte order. [`payload`] and [`filled`] define what a compressed page consists of. [`streams`]
//!   is the rule by which either side brings pages before they are asked for. None of these does I/O.
//! - How it travels: [`SeqPacket`] with messages and descriptors, [`Doorbell`], [`runtime_dir()`], and [`sys`]: userfaultfd and the
//!   mapped claim table. `sys` is the only part with `unsafe`.
//! - What either end owes the other as a process: [`privacy`], [`signals`] by which it is told to end, and
//!   [`system_error`], the error for a system call that failed, [`units`], sizes and times as people write
//!   them, and [`vm_name`].

pub mod balloon;
pub mod claims;
mod codec;
mod doorbell;
mod fds;
pub mod filled;
mod gfn;
pub mod memory;
pub mod payload;
pub mod privacy;
mod runtime_dir;
mod seqpacket;
pub mod signals;
pub mod streams;
pub mod sys;
pub mod system_error;
pub mod units;
pub mod vm_name;

pub use codec::{DecodeError, Reader, Writer};
pub use doorbell::Doorbell;
pub use gfn::{Gfn, GfnRun, PAGE_SIZE, RunsExt, runs_of};
pub use runtime_dir::runtime_dir;
pub use seqpacket::{Received, SeqPacket, SeqPacketListener, listen_privately, wait_readable};
