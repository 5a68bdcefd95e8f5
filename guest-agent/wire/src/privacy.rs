//! Hides this process from other processes of the same user.
//!
//! The kernel lets processes of one user attach to each other, read each other's memory, and open each other's
//! descriptors, by `/proc` and otherwise. The daemon's descriptors give access to the memory of all its guests.
//! If a process is not *dumpable* (prctl(2)), only root can do any of this to it, and it writes no core dump.
//!
//! This also keeps out an ordinary user's debuggers and profilers, and the tests that compare what the daemon
//! says with what the kernel counts. An environment variable lets them in.

use std::fs;
use std::io;

use nix::sys::prctl;

/// The environment variable that, if set and not empty, leaves this process open to others of the same user.
pub const INSPECTABLE: &str = "MEMVISOR_INSPECTABLE";

/// Only private anonymous memory (core(5)). Guest RAM, share pools and caches are shared memory, and dumping them
/// would also fill every hole in them.
const DUMPED: &str = "0x1";

/// Keeps the memory of guests out of core dumps of this process and of those it starts, whoever asks for a dump. An
/// ordinary user must call this before [`close_to_others`], after which the files in `/proc/self` belong to root.
///
/// # Errors
/// What writing `/proc/self/coredump_filter` says.
pub fn keep_out_of_dumps() -> io::Result<()> {
    fs::write("/proc/self/coredump_filter", DUMPED)
}

/// Whether this process was asked to stay open.
#[must_use]
pub fn is_inspectable() -> bool {
    std::env::var_os(INSPECTABLE).is_some_and(|value| !value.is_empty())
}

/// Closes this process to all others of its user, unless it was [asked](is_inspectable) to stay open.
///
/// # Errors
/// What `prctl(2)` says.
pub fn close_to_others() -> io::Result<()> {
    if is_inspectable() {
        return Ok(());
    }
    Ok(prctl::set_dumpable(false)?)
}
