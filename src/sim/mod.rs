//! A simulated machine: guests and their address spaces without a kernel, so that the whole core
//! (page table, faults, sharing, reclaim, balloon) runs against a model, step by step or in any
//! schedule of its threads.
//!
//! The problem: the errors that must never happen (a lost write, a frame that is freed while a guest maps
//! it, a fault that nobody answers) need unlucky orders of events that real guests meet once in days. With
//! real memory an error also shows late, as wrong bytes somewhere.
//!
//! So here an [`AddressSpace`] stands behind the trait [`Engine`](crate::engine::Engine) in place of
//! userfaultfd and page protection. For every page it knows what the guest can access and what is in
//! the RAM file. It panics at the very step that breaks the contract of the engines: a page is punched
//! while the guest can still write it, a frame is mapped that is free or has other bytes, a hole is read.
//! Each of its operations is a point where a model may switch tasks. Guests access memory through it and
//! wait as threads do, in the kernel or at a fault channel.
//!
//! Everything else is the code that ships. A [`FaultThread`] drives the fault core, a [`Worker`] drives the
//! worker's core with the real queue, and a [`GuestThread`] takes the steps of the shim's handler. Pools,
//! compression caches and page tables are the real ones. The clocks advance only when a test says so, and the
//! fault core is called by events alone, so a forgotten wake-up is a hang that the tests see.
//!
//! [`Host::check`] compares every counter with what is really there, and every page with what its guest
//! last wrote.

mod address_space;
mod ahead;
mod bridges;
mod claim_table;
mod cold;
mod every_step;
mod failures;
mod fault_thread;
mod guest;
mod host;
mod interleaving;
mod large;
mod pressure;
mod races;
mod random_steps;
mod scanning;
mod scenario;
mod seeded;
mod stalls;
mod survey;
mod tiers;
mod turns;
mod unswap;
mod worker;

use address_space::{AddressSpace, Countdown, Trap, View};
use claim_table::Claims;
use fault_thread::{FaultThread, Line};
use guest::{GuestThread, Op};
use host::{Guest, Host, Spec};
use worker::{Clock, Worker};
