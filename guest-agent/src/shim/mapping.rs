//! What the shim does to guest RAM when the daemon tells it to: the memory thread's commands, and the
//! replies to faults.
//!
//! This module makes no system calls. It works on a [`Mapping`], which is the real one in a guest, and a
//! model where all of memvisor is simulated. The signal handler uses it too, so nothing here allocates,
//! locks or waits.

use memvisor_wire::memory::{Ack, Command, Fault, Op, Remap, Reply};
use memvisor_wire::{Gfn, GfnRun, PAGE_SIZE};
use nix::errno::Errno;

/// Guest RAM as its process maps it. A run that leaves RAM gets EINVAL.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
pub trait Mapping {
    /// How many pages RAM has.
    fn pages(&self) -> u32;

    /// Does to a run what a command says.
    fn remap(&self, op: Op, remap: Remap) -> nix::Result<()>;

    /// Maps RAM back over a run whose content is in RAM already.
    fn map_present(&self, run: GfnRun) -> nix::Result<()>;

    /// Maps a page that is in RAM and frozen.
    fn open(&self, gfn: Gfn) -> nix::Result<()>;

    /// Puts a copy of `page` where RAM has a hole, and maps it.
    fn install(&self, gfn: Gfn, page: &[u8; PAGE_SIZE]) -> nix::Result<()>;

    /// Copies the frame that is mapped at a page to the page's place in RAM, which is a hole.
    fn copy_to_ram(&self, gfn: Gfn) -> nix::Result<()>;

    /// Gives the memory of RAM pages back to the kernel.
    fn punch(&self, run: GfnRun) -> nix::Result<()>;
}

/// Executes a command, run by run until one fails.
pub fn execute(map: &impl Mapping, command: &Command) -> Ack {
    let mut ack = Ack::of(command.seq);
    for remap in &command.runs {
        if let Err(errno) = map.remap(command.op, *remap) {
            ack.errno = errno as u32;
            break;
        }
        ack.done += 1;
    }
    ack
}

/// Does what the reply to a fault says. Returns what to tell the daemon before the page is accessed again.
pub fn obey(map: &impl Mapping, reply: Reply) -> Option<Fault> {
    let plain = |run| Remap { run, frame: 0 };
    let result = match reply {
        Reply::Retry => return None,
        Reply::Open(run) => map.remap(Op::Open, plain(run)),
        Reply::Private(run) => map.map_present(run),
        Reply::Reveal(run) => map.remap(Op::Reveal, plain(run)),
        // This is no answer to a fault. The daemon ends a guest that reports an errno.
        Reply::Attached(_) => Err(Errno::EINVAL),
    };
    Some(Fault::Done(
        result.map_or_else(|errno| errno as u32, |()| 0),
    ))
}
