//! What the allocator of the C library has to be told.

/// Large tables are mapped on their own from here on, 256 KiB: an order of magnitude less than any table
/// of a guest that is worth it.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 1 << 18;

/// Has each large allocation mapped on its own, zeroed by the kernel where it is touched, and given back
/// when it is freed.
///
/// glibc does so at first, but once one of some size was freed it keeps the next ones of that size in its
/// heap. Tables that are mostly zeroes, such as those of a VM's swap file, would then be cleared by hand and
/// cost all of their memory.
pub fn map_large_allocations() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes a setting of the allocator, takes its own lock for that, and touches no memory of
    // ours. It fails only for values out of range, and then nothing changes.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE)
    };
}
