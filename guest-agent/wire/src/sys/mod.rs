//! The kernel, with a file for each facility: the only `unsafe` of this crate.
#![allow(
    unsafe_code,
    reason = "this is the room for it; tests/tidy.rs holds it to that"
)]

pub(crate) mod signals;
mod table;
pub mod uffd;

pub use table::SharedTable;
