//! Faults: a guest touched a page that is not there, or wrote one that it shares.
//!
//! The problem: a fault must be served at once when it can be, must wait when its page is being moved
//! or the host has no memory, and must never hold up another. The naive way, a thread that takes the
//! lock of the page and waits, deadlocks as soon as the page's mover waits for memory that only this
//! thread's guest could free.
//!
//! So serving is one function that never waits: [`resolve()`] looks at the page's home and either gives
//! the guest its page, or says why not now. The fault thread of the VM ([`FaultThread`]) reads faults
//! from the userfaultfd and from the fault channels, and *parks* those that cannot be served:
//!
//! - the page is *busy*: a flag in its entry makes whoever unlocks it call us ([`crate::page`]);
//! - there is no *memory*, or the policy blocks the VM: the budget calls us when pages come free.
//!
//! Each wake-up serves the fault again from the start, by the home the page has then. A fault ends as
//! served, or with its VM.
//!
//! Most of a fault's time is waking up. Accesses in a row are given their pages ahead, and the fault thread
//! goes to the processor of the guest's thread where only one faults.
//!
//! Over the same channels guests ask for what is no fault: the history of a page, more credits, and that pages
//! are attached ([`Attacher`]), which the worker does.
//!
//! A guest may serve some of its faults itself ([`crate::page::Claims`]), as long as it holds memory for
//! that in advance (`credits.rs`); what reaches the daemon then is what it cannot.
//!
//! Where a mapping of the guest must change (a copy-on-write break; any page, without userfaultfd),
//! the faulting thread itself does it: it gets a [`Reply`](crate::engine::Reply) and confirms. Until
//! then the page stays locked and is *pending*.

mod ahead;
mod attach;
mod core;
mod credits;
mod driver;
mod ended;
mod give;
mod near;
mod resolve;
mod thread;
mod waiting;
mod watch;

pub use self::core::Core;
pub use attach::Attacher;
pub use driver::{Driver, Event};
pub use ended::Ended;
pub use resolve::{Access, FaultError, Outcome, Pending, complete, resolve};
pub use thread::{FaultThread, Faulter};
