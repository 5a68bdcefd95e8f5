//! memvisor: memory overcommitment as VMware ESX does it, in user space, on stock Linux.

mod average;
pub mod balloon;
pub mod bench;
pub mod calculator;
pub mod chain;
mod child;
pub mod cli;
pub mod compress;
pub mod control;
pub mod demo;
pub mod digest;
pub mod engine;
pub mod fault;
pub mod host;
pub mod page;
pub mod policy;
pub mod pool;
pub mod reclaim;
mod remap;
pub mod runtime_dir;
pub mod sample;
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
pub mod units;
pub mod vm;
