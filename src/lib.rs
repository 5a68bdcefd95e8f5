//! memvisor: memory overcommitment as VMware ESX does it, in user space, on stock Linux.
//!
//! One daemon owns a budget of memory and backs the RAM of guest processes. Each sentence below is the design of a part
//! in short, and its link leads to the module that has it in full. `docs/ARCHITECTURE.md` has the whole story, with
//! pictures, invariants and a glossary.
//!
//! **A page.** Each page of a guest (a *gfn*) has one home at a time, and its entry in the [page table](page::PageTable)
//! says which, and who has locked it ([`page`]). A host page is charged to the [budget](page::Budget) before it is used.
//!
//! **A fault.** A guest that touches a page that is not mapped waits, until its [engine] has told the daemon and the
//! [fault path](fault) has given the page; many guests serve such faults themselves, from a claim table
//! ([`memvisor_wire::claims`]). Faults that find no memory wait in order ([`page::Budget`]), and how long threads stand
//! still is counted by cause ([`vm`]).
//!
//! **Sharing.** Each VM's [worker](reclaim) scans its pages, finds equal ones by their [digest], compares them and maps
//! them to one frame of a [pool]; a write breaks the sharing ([`share`]).
//!
//! **Eviction.** Pages that must leave are chosen by a registered choice of victims ([`reclaim::victims`]), frozen, and
//! go to the VM's [compression cache](compress) if they halve, or else to its [swap file](swap).
//!
//! **The balloon.** An agent in the guest gives pages to the host and takes them back
//! ([`balloon`], [`memvisor_wire::balloon`]).
//!
//! **The policy.** A pure function of a snapshot of the host says which free-memory state holds, what each VM may hold,
//! and by which means the rest leaves ([`policy`]). It weighs shares, and memory that is not used, as [sampling](sample)
//! estimates it. [`calculator`] is the same function for a host that is written down in a file.
//!
//! **The daemon.** [`host`] admits VMs, keeps the [settings], carries plans out and ends what breaks its promises. It
//! answers over HTTP ([`control`]) with what [`telemetry`] defines; [`top`] draws that, a [`recording`] keeps it over
//! time, and a [`view`] is a page of it.
//!
//! **Trying it.** [`demo`] runs all of it for half a minute, [`bench`](mod@bench) measures it beside the kernel's own
//! mechanisms, [`laboratory`] has what experiments with the balloon protocol take, and [`cli`] is the command line.
//! What a guest consists of is in the crate `memvisor_guest_agent`.

mod average;
pub mod balloon;
pub mod bench;
pub mod calculator;
pub mod chain;
pub mod cli;
pub mod compress;
pub mod control;
pub mod demo;
pub mod digest;
pub mod engine;
pub mod fault;
pub mod host;
pub mod incident;
pub mod laboratory;
mod launch;
pub mod machine;
pub mod page;
pub mod policy;
pub mod pool;
pub mod reclaim;
pub mod recording;
mod remap;
pub mod replay;
pub mod runtime_dir;
pub mod sample;
pub mod scenario;
mod seeded;
pub mod settings;
pub mod share;
#[cfg(test)]
mod sim;
pub mod swap;
mod sync;
pub mod sys;
pub mod telemetry;
pub mod throttle;
pub mod top;
pub mod trace;
pub mod units;
pub mod view;
pub mod vm;
