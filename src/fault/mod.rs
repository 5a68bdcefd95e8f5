//! Faults: a guest touched a page that is not there, or wrote one that it shares.
//!
//! The problem: a fault must be served at once when it can be, must wait when its page is being moved
//! or the host has no memory, and must never hold up another fault. The naive way, a thread that takes
//! the lock of the page and waits, deadlocks as soon as the page's mover waits for memory that only this
//! thread's guest could free.
//!
//! So serving is one function that never waits: [`resolve()`] looks at the page's home and either gives
//! the guest its page, or says why that cannot be done now. The fault thread of the VM ([`FaultThread`])
//! reads faults from the userfaultfd and from the fault channels, and *parks* those that cannot be served:
//!
//! - the page is *busy*: a flag in its entry makes whoever unlocks it call us ([`crate::page`]);
//! - there is no *memory*, or the policy blocks the VM: the budget calls us when pages come free.
//!
//! Each wake-up serves the fault again from the start, by the home that the page has then. A fault ends
//! when it is served, or with its VM.
//!
//! Most of the time of a fault goes into wake-ups. So sequential accesses are given their pages ahead, and where
//! only one thread of a guest faults, the fault thread moves to that thread's processor.
//!
//! Guests use the same channels for requests that are no faults: the history of a page, more credits, and the
//! attaching of pages ([`Attacher`]), which the worker does.
//!
//! A guest may serve some of its faults itself ([`crate::page::Claims`]), as long as it holds memory for
//! them in advance (`credits.rs`). Then only the faults that it cannot serve reach the daemon.
//!
//! Where a mapping of the guest must change (for a copy-on-write break; without userfaultfd, for any page),
//! the faulting thread itself changes it: it gets a [`Reply`](crate::engine::Reply) and confirms. Until
//! then the page stays locked and is *pending*.

mod ahead;
mod attach;
mod core;
mod credits;
mod driver;
mod ended;
mod follow;
mod give;
mod resolve;
mod thread;
mod waiting;
mod watch;

pub use self::core::Core;
pub(crate) use ahead::resolve_in_stream;
pub use attach::Attacher;
pub use driver::{Driver, Event};
pub use ended::Ended;
pub(crate) use resolve::cause_at;
pub use resolve::{Access, FaultError, Outcome, Pending, complete, resolve};
pub use thread::{FaultThread, Faulter};
