//! What the shim does to guest RAM when it is told to, without a system call of its own: the memory
//! thread's commands, and the replies to faults.
//!
//! It runs over a [`Mapping`], which is the real one in a guest and a model of it where all of memvisor is
//! simulated. The signal handler uses it too, so nothing here allocates, locks or waits.

use crate::protocol::memory::{Ack, Command, Fault, Op, Reply};
use crate::protocol::{Gfn, GfnRun, PAGE_SIZE};

/// Guest RAM as its process maps it. Every error is an errno; EINVAL is that of a run which leaves RAM.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
pub trait Mapping {
    /// How many pages RAM has.
    fn pages(&self) -> u32;

    /// Makes accesses wait for the daemon; the content stays in the file.
    fn freeze(&self, run: GfnRun) -> Result<(), i32>;

    /// Allows reading and writing of present RAM pages.
    fn open(&self, run: GfnRun) -> Result<(), i32>;

    /// Allows no access to frames of the pool that are mapped.
    fn close(&self, run: GfnRun) -> Result<(), i32>;

    /// Allows reading of frames of the pool that are mapped.
    fn reveal(&self, run: GfnRun) -> Result<(), i32>;

    /// Maps frames of the share pool, read-only, over RAM pages.
    fn map_shared(&self, run: GfnRun, frame: u32) -> Result<(), i32>;

    /// Maps RAM back over a run so that accesses fault to the daemon first.
    fn map_private(&self, run: GfnRun) -> Result<(), i32>;

    /// Maps RAM back over a run whose content is in RAM already.
    fn map_present(&self, run: GfnRun) -> Result<(), i32>;

    /// Puts a copy of `page` where RAM has a hole, and maps it.
    fn install(&self, gfn: Gfn, page: &[u8; PAGE_SIZE]) -> Result<(), i32>;

    /// Copies what a page reads now, a frame that is mapped there, to the page's place in RAM, a hole.
    fn copy_to_ram(&self, gfn: Gfn) -> Result<(), i32>;

    /// Gives the memory of RAM pages back.
    fn punch(&self, run: GfnRun) -> Result<(), i32>;
}

/// Executes a command, run by run until one fails.
pub fn execute(map: &impl Mapping, command: &Command) -> Ack {
    let mut ack = Ack {
        seq: command.seq,
        done: 0,
        errno: 0,
    };
    for remap in &command.runs {
        let result = match command.op {
            Op::Freeze => map.freeze(remap.run),
            Op::MapShared => map.map_shared(remap.run, remap.frame),
            Op::MapPrivate => map.map_private(remap.run),
            Op::Close => map.close(remap.run),
            Op::Reveal => map.reveal(remap.run),
            Op::Open => map.open(remap.run),
        };
        match result {
            Ok(()) => ack.done += 1,
            Err(errno) => {
                ack.errno = errno.unsigned_abs();
                break;
            }
        }
    }
    ack
}

/// Does what the reply to a fault says; what to tell the daemon before the page is accessed again.
pub fn obey(map: &impl Mapping, reply: Reply) -> Option<Fault> {
    let result = match reply {
        Reply::Retry => return None,
        Reply::Open(run) => map.open(run),
        Reply::Private(run) => map.map_present(run),
        Reply::Reveal(run) => map.reveal(run),
        // No answer to a fault: the daemon ends a guest that says so.
        Reply::Attached(_) => Err(libc::EINVAL),
    };
    Some(Fault::Done(result.err().unwrap_or(0).unsigned_abs()))
}
