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
#[cfg(test)]
mod sim;
pub mod swap;
mod sync;
pub mod sys;
pub mod units;
pub mod vm;
