//! The host side of the balloon: sessions with the agents inside the guests.
//!
//! **The problem.** Only a guest knows which of its pages are worth least. The balloon lets the guest
//! choose: an agent in the guest pins pages that the guest can spare and names them, and the host
//! takes the memory behind them.
//!
//! **Why the naive way fails.** The agent is part of the guest, so it cannot be trusted. A host that
//! believes it would hand out memory twice, free pages of another VM, or wait for an agent that
//! died. So nothing here depends on what an agent says:
//! - it can only name pages of its own VM (the token says which), and only lose their content;
//! - a page that the guest gave up and then touches is a new zero page, and the balloon is reset;
//! - the number of pages that it claims to hold is compared with the page table and never used;
//! - its statistics are clamped and steer fairness, never safety;
//! - a flood of messages is slowed down at its source, by not reading.
//!
//! **The structures.** Only the VM's page table knows which pages are in the balloon: there
//! is no second ledger that could disagree. How pages are named is one of several protocols (`variant`).
//! [`serve`] runs one session on the thread that calls it
//! and reaches the VM through [`BalloonVm`]. A [`Doorbell`](memvisor_wire::Doorbell) wakes that thread when the target
//! changes or a page pops. The module holds no lock while it calls or sends. [`AgentProgress`] tells the
//! policy whether a balloon is worth waiting for, and [`Relief`] how far a balloon may grow after its guest
//! has said that it needs the pages itself.
//!
//! **When a session ends.** After `STOP` the balloon has been emptied. When the agent vanishes without
//! `STOP`, its pages stay in the balloon: the guest's kernel may still hold them pinned, and if it does
//! not, the first access pops the balloon. The next `START` empties the balloon, because both sides then
//! start from nothing.

mod batch;
mod counters;
mod end;
mod host;
mod moves;
mod progress;
mod rate;
mod relief;
mod session;
mod stats;
mod variant;
mod waits;

pub use batch::SLACK_PAGES;
pub use counters::BalloonCounters;

pub use end::{SessionEnd, SessionError};
pub use host::{BalloonHost, BalloonVm, Refusal, Tap};
pub use moves::{deflate, inflate, release_all};
pub use progress::AgentProgress;
pub use relief::Relief;
pub use session::serve;
pub use stats::GuestStats;
pub use waits::SwapWaits;
