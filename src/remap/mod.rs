//! Remapping: taking pages out of a guest's hands, and the memory behind them.
//!
//! **The problem.** Sharing, the balloon, sampling and reclaim make different decisions and then do the same things:
//! make pages stand still, map something else in their place, change their homes, free what the old homes held. Three
//! parties have a view of a page meanwhile: its guest has a mapping, the page table says where the content is, and the
//! kernel counts memory.
//!
//! **Why the naive way fails.** Each step is right by itself; in the wrong order they are not. Memory that is freed
//! while the guest still maps it is filled again unseen, or shows the guest another guest's bytes. A home that
//! changes before the new one has the content loses a write. A mapping that nobody counted makes the guest's kernel
//! reach its limit early and refuse one that is needed. Code that repeats the order in four places gets it wrong in
//! one of them.
//!
//! **The structures.** All steps work on pages that the caller has locked, in batches, by commands to the shim:
//!
//! | step | from | to |
//! |---|---|---|
//! | [`freeze`], [`thaw`] | resident, accessed | resident, accesses wait; and back |
//! | [`close`], [`reveal`] | shared, read | shared, reads wait too; and back |
//! | [`place`] | frozen or nothing | shared with a frame that has its bytes |
//! | [`enlarge`], [`tear`], [`break_up`] | resident | the same, as part of a large page; mapped one by one; in a small page |
//! | [`rehome`] | any | any other but shared: what the guest has mapped goes first, then the home, then the memory |
//!
//! Only [`give_back`](moves::give_back) knows how the memory behind a home is freed: a hole in the RAM file, a
//! reference to a frame, a slot. A home whose memory is freed in another way (a page that the guest's own process
//! holds, which no hole in a file frees) would be one more arm there, after a command of its
//! [`Engine`](crate::engine::Engine).
//!
//! *Runs.* Each run of a command is a system call of the guest, and interrupts the processors that its threads run
//! on. With userfaultfd a freeze drops page-table entries, so its runs are joined over pages that have none: at 2x
//! overcommit, the hundred or so runs of the 128 pages that second chance freezes at once become one or two.
//!
//! *VMAs.* A run of pages that is mapped differently from its neighbours splits a VMA: two more. Each step counts the
//! runs that it is about to change ([`Vmas`](crate::vm::Vmas)) before the guest changes them, and until the page
//! table shows them. [`room`] says how many more runs there may be. [`afford`] drops the shortest runs when there are
//! too many: one long run saves as much memory as many short ones, and costs a fraction of the VMAs.
//!
//! **When a command fails.** A guest whose kernel refuses is at its limit of VMAs. Its pages still hold all that they
//! held, and the step reports the refusal. Any other failure ends the VM, and [`give_up`] frees what the pages were
//! to move to. Until the guest's process is dead it may see every frame that it ever saw. So its pages stay shared,
//! or the reference is abandoned.
//!
//! Lock order: first the locks of the pages, which the caller holds; inside them the locks of the stores in which
//! something is freed.

mod access;
mod large;
mod moves;
mod place;

#[cfg(test)]
pub(crate) use access::{BRIDGE, bridged};
pub(crate) use access::{afford, close, freeze, reveal, room, thaw};
pub(crate) use large::{Enlarged, break_under, break_up, enlarge, tear};
pub(crate) use moves::{give_up, rehome};
pub(crate) use place::{FrameHold, Match, place};
