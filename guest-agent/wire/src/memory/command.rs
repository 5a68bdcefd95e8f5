//! Commands to the memory thread, and its answers.

use super::MAX_RUNS;
use crate::{DecodeError, Gfn, GfnRun, Reader, Writer};

/// What the memory thread is told to do to runs of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Make every access wait for the daemon; the content stays.
    Freeze,
    /// Map frames of the share pool read-only over RAM.
    MapShared,
    /// Map RAM back so that every access faults to the daemon first.
    MapPrivate,
    /// Allow no access to mapped frames of the pool.
    Close,
    /// Allow reading of closed frames.
    Reveal,
    /// Allow access to RAM pages that hold something, whether they are frozen or not, and map them one by one.
    Open,
    /// Back an aligned run of RAM pages, all of which can be accessed, by a large page, and map it as such.
    Enlarge,
}

/// A run of pages. For [`Op::MapShared`] it also names the frame of the first page; the other pages get the frames
/// that follow it, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remap {
    /// The pages of the guest.
    pub run: GfnRun,
    /// The pool frame of the first page; zero for all other ops.
    pub frame: u32,
}

/// A command to the memory thread, which executes it run by run until a run fails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// Counts the commands of a session.
    pub seq: u32,
    /// What to do.
    pub op: Op,
    /// To which pages; at most [`MAX_RUNS`].
    pub runs: Vec<Remap>,
}

/// The memory thread's answer to a [`Command`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack {
    /// The number of the command.
    pub seq: u32,
    /// How many runs were done. Unless all were done, the next one failed with `errno`.
    pub done: u32,
    /// Zero, or the errno of the system call that failed.
    pub errno: u32,
}

impl Ack {
    /// An answer by which no run was done and none failed.
    #[must_use]
    pub const fn of(seq: u32) -> Self {
        let (done, errno) = (0, 0);
        Self { seq, done, errno }
    }
}

impl Command {
    pub(super) fn write(&self, w: &mut Writer) {
        let op = match self.op {
            Op::Freeze => 1,
            Op::MapShared => 2,
            Op::MapPrivate => 3,
            Op::Close => 4,
            Op::Reveal => 5,
            Op::Open => 6,
            Op::Enlarge => 7,
        };
        let count = u16::try_from(self.runs.len().min(MAX_RUNS)).unwrap_or(u16::MAX);
        w.u32(self.seq).u16(op).u16(count);
        // Cut rather than sent: the shim would end the session for a longer command.
        for remap in self.runs.iter().take(MAX_RUNS) {
            w.u32(remap.run.start.0)
                .u32(remap.run.count)
                .u32(remap.frame);
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let seq = r.u32("seq")?;
        let op = match r.u16("op")? {
            1 => Op::Freeze,
            2 => Op::MapShared,
            3 => Op::MapPrivate,
            4 => Op::Close,
            5 => Op::Reveal,
            6 => Op::Open,
            7 => Op::Enlarge,
            op => {
                return Err(DecodeError::Value {
                    field: "op",
                    value: u64::from(op),
                    allowed: "1 (freeze), 2 (map shared), 3 (map private), 4 (close), 5 (reveal), \
                              6 (open) or 7 (enlarge)"
                        .into(),
                });
            }
        };
        let count = r.u16("runs")?;
        if usize::from(count) > MAX_RUNS {
            return Err(DecodeError::Value {
                field: "runs",
                value: u64::from(count),
                allowed: "at most 1024".into(),
            });
        }
        // The count is checked before memory is set aside for it.
        let mut runs = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let start = Gfn(r.u32("start")?);
            let run = GfnRun::new(start, r.u32("count")?);
            runs.push(Remap {
                run,
                frame: r.u32("frame")?,
            });
        }
        Ok(Self { seq, op, runs })
    }
}
