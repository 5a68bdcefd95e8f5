//! The balloon laboratory: what somebody needs who experiments with the balloon protocol.
//!
//! **The problem.** A protocol is learnt by watching it, and a change of it is judged by what breaks. Both take sessions
//! that can be seen, kept, repeated and provoked, and the daemon offers none of that: it serves whoever connects and
//! keeps counters.
//!
//! **Why the naive way fails.** A laboratory with a host and an agent of its own would prove things about these two
//! and nothing about those that ship, and they would drift apart. So what is well-behaved here is the shipped code: the
//! host alone is the daemon's session ([`crate::balloon::serve`]) on a page table without memory behind it, and the
//! well-behaved agent is that of every guest. Only what misbehaves, and what plays a part that was recorded, speaks the
//! protocol by itself.
//!
//! **The structures.** A [`tape`] is the file of one session; [`record`] makes it in the daemon, [`dump`] shows it;
//! [`map`] is what both know of the map of free pages that the two sides may share. An [`actor`] plays the agent of a [`script`] on [`memory`] that is not there or that a guest lends
//! ([`memvisor_guest_agent::outside`]); [`alone`] is the host alone, on which things happen by [`schedule`]. [`replay`]
//! plays one side of a tape again, [`conformance`] holds a side to the document.

pub mod actor;
pub mod alone;
pub mod conformance;
pub mod dump;
pub mod map;
pub mod memory;
pub mod peer;
pub mod play;
pub mod record;
pub mod replay;
pub mod said;
pub mod schedule;
pub mod script;
pub mod tape;
