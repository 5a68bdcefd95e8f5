//! What of this process stays hidden from others of the same user.
//!
//! The kernel lets processes of one user attach to each other, read each other's memory, and open each other's
//! descriptors, by `/proc` and otherwise. A daemon's are those of all its guests' memory. A process that is
//! not *dumpable* (prctl(2)) is spared all of this, by anybody but root, and writes no core dump.
//!
//! Debuggers and profilers of an ordinary user are kept out as well, and so are the tests that compare what
//! the daemon says with what the kernel counts. For them there is an environment variable.

use std::fs;
use std::io;

use nix::sys::prctl;

/// Set, and not empty, it has this process stay open to others of the same user.
pub const INSPECTABLE: &str = "MEMVISOR_INSPECTABLE";

/// Of all memory only what is private and anonymous (core(5)). Guest RAM, share pools and caches are shared, and
/// dumping them would also fill every hole.
const DUMPED: &str = "0x1";

/// Keeps the memory of guests out of core dumps of this process and of those it starts, whoever asks for
/// one. An ordinary user can do this before [`close_to_others`] only.
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
