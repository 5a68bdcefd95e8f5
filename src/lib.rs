//! memvisor: memory overcommitment as VMware ESX does it, in user space, on stock Linux.

pub mod policy;
pub mod sys;
pub mod units;
