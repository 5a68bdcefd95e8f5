//! memvisor: memory overcommitment as VMware ESX does it, in user space, on stock Linux.

mod sync;
pub mod sys;
pub mod units;
