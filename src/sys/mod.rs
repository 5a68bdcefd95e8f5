//! The kernel, with a file for each facility: the only `unsafe` of the host.
//!
//! Each wrapper gives an errno its meaning once, so that the mechanisms above read as their design:
//! an expected outcome is an enum, an unexpected one an [`std::io::Error`] with the operation's name.
#![allow(
    unsafe_code,
    reason = "this is the room for it; tests/tidy.rs holds it to that"
)]

mod allocator;
mod direct_file;
mod filesystem;
mod guard;
mod kept_file;
mod large;
mod mapping;
mod memfd;
mod pagemap;
mod plain;
mod prefetch;
mod private_tmpfs;
mod process;
mod processor;
mod published;
mod self_served;
mod shared_words;
mod sleeps;
mod swap_device;
mod uffd;

pub use allocator::map_large_allocations;
pub use direct_file::DirectFile;
pub use filesystem::Filesystem;
pub use large::large_pages;
pub use mapping::Mapping;
pub use memfd::{Memfd, files_in_memory_are_huge};
pub use pagemap::Pagemap;
pub use plain::{Advice, PlainMemory};
pub use prefetch::prefetch;
pub use private_tmpfs::readers_cannot_write;
pub use process::{Process, own_memory};
pub use processor::{Processors, Scheduled, idle_times, move_threads, processor_of, scheduled};
pub use published::Published;
pub use self_served::SelfServed;
pub use shared_words::SharedWords;
pub use swap_device::{SwapPriority, swap_off, swap_on};
pub use uffd::{Filled, Uffd, UserFault};
