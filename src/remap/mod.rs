//! Remapping: taking pages out of a guest's hands, and the memory behind them.
//!
//! **The problem.** Sharing, the balloon, sampling and reclaim decide different things and do the same ones: make
//! pages stand still, map something else in their place, move their homes, free what the old homes held. Three
//! parties see a page meanwhile. Its guest has a mapping, the page table says where its content is, and the
//! kernel counts memory.
//!
//! **Why the naive way fails.** Every step by itself is right, and their order is not. Memory that is freed while the
//! guest maps it is filled again unseen, or shows the guest another guest's bytes. A home that changes before the
//! new one has the content loses a write. A mapping that nobody counted is missing when the guest's kernel reaches
//! its limit and refuses one that was needed. Who repeats the order in each of four places gets it wrong in one.
//!
//! **The structures.** All of these work on pages that the caller has locked, in batches, by commands to the shim:
//!
//! | step | from | to |
//! |---|---|---|
//! | [`freeze`], [`thaw`] | resident, accessed | resident, accesses wait; and back |
//! | [`close`], [`reveal`] | shared, read | shared, reads wait too; and back |
//! | [`place`] | frozen or nothing | shared with a frame that has its bytes |
//! | [`rehome`] | any | any other but shared: what the guest has mapped goes first, then the home, then the memory |
//!
//! [`give_back`](moves::give_back) is the only one that knows how the memory behind a home is freed: a hole in the RAM file, a
//! reference to a frame, a slot. A home whose memory goes another way (a page that the guest's own process holds, which
//! no hole in a file frees) is one more arm there, and a command of its [`Engine`](crate::engine::Engine) before it.
//!
//! *Runs.* Each run of a command is a system call of the guest, and interrupts the processors that its threads run on. With
//! userfaultfd a freeze drops entries of page tables, so its runs are joined over pages that have none: of 128 pages that
//! second chance freezes at 2x overcommit, some hundred runs become one or two.
//!
//! *VMAs.* A run of pages that is mapped differently from its neighbours splits a VMA: two more. Each step says how
//! many runs it is about to change ([`Vmas`](crate::vm::Vmas)) before the guest does it, until the page table tells so too.
//! [`room`] says how many more there may be, and [`afford`] drops the shortest runs when there are too many: one long
//! run is worth as much as many short ones and costs a fraction.
//!
//! **When a command fails.** A guest whose kernel refuses is at its limit of VMAs: its pages stay as good as they were, and
//! the step says so. Any other failure ends the VM, and [`give_up`] frees what its pages were to move to. Until its process
//! is dead it may see every frame that it ever saw, so pages stay shared, or the reference is abandoned.
//!
//! Lock order: the locks of the pages, which the caller holds; inside them those of the stores that are freed.

mod access;
mod moves;
mod place;

#[cfg(test)]
pub(crate) use access::{BRIDGE, bridged};
pub(crate) use access::{afford, close, freeze, reveal, room, thaw};
pub(crate) use moves::{give_up, rehome};
pub(crate) use place::{FrameHold, Match, place};
