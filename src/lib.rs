//! memvisor: memory overcommitment as VMware ESX does it, in user space, on stock Linux.

pub mod balloon;
pub mod compress;
pub mod digest;
pub mod engine;
pub mod fault;
pub mod page;
pub mod pool;
pub mod reclaim;
pub mod share;
pub mod swap;
mod sync;
pub mod policy;
pub mod cli;
pub mod control;
pub mod demo;
pub mod guest;
pub mod host;
pub mod runtime_dir;
pub mod signals;
pub mod sys;
pub mod telemetry;
pub mod top;
pub mod units;
pub mod vm;
