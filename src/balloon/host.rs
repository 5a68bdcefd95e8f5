//! What a session needs from the rest of the daemon.

use memvisor_wire::Doorbell;
use memvisor_wire::balloon::{Start, StatusRun};
use memvisor_wire::claims::Words;
use thiserror::Error;

use super::{BalloonCounters, GuestStats};
use crate::units::{Gfn, GfnRun, VmId};

/// Why an agent may not balloon a VM. The text goes to the agent.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// No VM has this token. The token is a secret, so the message does not repeat it.
    #[error("no VM has the token of this START")]
    UnknownToken,
    /// The VM has a live session already.
    #[error("VM {0} has a balloon agent already; it must leave first")]
    Taken(VmId),
    /// The balloon of this VM is switched off.
    #[error("ballooning of VM {0} is disabled (its balloon maximum is 0)")]
    Disabled(VmId),
    /// The guest sees more memory than the VM has.
    #[error("the guest of VM {vm} claims {claimed} pages; the VM has {actual}")]
    TooLarge {
        /// The VM.
        vm: VmId,
        /// What the agent claims.
        claimed: u64,
        /// What is configured.
        actual: u64,
    },
    /// Another START on this connection had another token.
    #[error("the token differs from that of the first START of this connection")]
    TokenChanged,
}

/// The daemon, as far as a new session sees it.
pub trait BalloonHost: Sync {
    /// Finds the VM of an agent and reserves its balloon for one session. Dropping the result ends
    /// the reservation. It must not touch the balloon: see [the module](super).
    ///
    /// # Errors
    /// [`Refusal`], which ends the session.
    fn connect(&self, start: &Start) -> Result<Box<dyn BalloonVm + '_>, Refusal>;

    /// Who hears what is said in a new session, if anybody. Asked once for each connection.
    fn tap(&self) -> Option<Box<dyn Tap>> {
        None
    }
}

/// Hears each datagram of a session, as it is on the wire, in the order in which the session read and sent them.
/// It must not wait for anything: the session waits for it.
pub trait Tap {
    /// The agent said this; it may break every rule.
    fn received(&mut self, datagram: &[u8]);

    /// The host said this.
    fn sent(&mut self, datagram: &[u8]);

    /// The first `count` words of the map that the session shares with its agent are as they are now. Heard before what
    /// is said next, and after the host has moved pages.
    fn mapped(&mut self, _words: &dyn Words, _count: u32) {}

    /// The session has ended, and why, for people.
    fn ended(&mut self, why: &str);
}

/// One VM, as far as its balloon session sees it. Only the session's thread calls it.
pub trait BalloonVm {
    /// The number of the VM.
    fn id(&self) -> VmId;

    /// The pages of guest RAM, at most 2^32.
    fn total_pages(&self) -> u64;

    /// The most pages that the balloon may hold now: 65 % of the VM unless configured otherwise. Whoever changes
    /// the number rings the doorbell. When it is 0, the balloon is emptied and the session stays.
    fn balloon_max(&self) -> u64;

    /// The pages that the balloon should hold now. The session keeps to [`balloon_max`](Self::balloon_max) even
    /// if this is more.
    fn target(&self) -> u64;

    /// The pages that the balloon holds now, by the page table.
    fn locked(&self) -> u64;

    /// Whether the balloon holds a page. `gfn` lies in RAM.
    fn holds(&self, gfn: Gfn) -> bool;

    /// Takes pages into the balloon and drops their content. The runs ascend, are disjoint and lie
    /// in RAM. The answer has a status for exactly these pages, in this order: `Ok`, `AlreadyLocked`, or
    /// `Busy` for a page that cannot be taken without waiting.
    fn lock(&self, runs: &[GfnRun]) -> Vec<StatusRun>;

    /// Gives pages back: each reads as zeroes from now on. The runs are as for
    /// [`lock`](Self::lock); the answer is `Ok`, `NotLocked` or `Busy`.
    fn unlock(&self, runs: &[GfnRun]) -> Vec<StatusRun>;

    /// Empties the balloon: at `START`, `RESET` and `STOP`.
    fn release_all(&self);

    /// Whether a page has popped since the last call. Whoever sets it rings the doorbell.
    fn take_reset(&self) -> bool;

    /// Whether the VM or the daemon is going away. Whoever sets it rings the doorbell.
    fn is_closing(&self) -> bool;

    /// Takes what the guest says about itself, clamped to what is possible.
    fn report(&self, stats: &GuestStats);

    /// The guest is short of memory and wants `pages` pages back, at most those in its balloon. If the host can
    /// afford it, this lowers the target below what the balloon holds (see [`Relief`]). The session then tells the
    /// agent the target.
    ///
    /// [`Relief`]: super::Relief
    fn relief(&self, pages: u64);

    /// Rung when the target changes, a page pops or the VM closes.
    fn doorbell(&self) -> &Doorbell;

    /// Whether the work that the agent causes is bounded: not where it is measured how fast it can be.
    fn is_limited(&self) -> bool {
        true
    }

    /// Where the session counts what happens.
    fn counters(&self) -> &BalloonCounters;
}
