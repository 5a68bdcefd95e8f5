//! A setting of the C library's allocator.

/// Allocations from this size on are mapped on their own: 256 KiB, an order of magnitude less than any table
/// of a guest that is worth it.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 1 << 18;

/// Has each large allocation mapped on its own, zeroed by the kernel where it is touched, and given back
/// when it is freed.
///
/// By default glibc does so only until one is freed: then it keeps further allocations of up to that size in
/// its heap. Tables that are mostly zeroes, such as those of a VM's swap file, would then be cleared by hand and
/// cost all of their memory.
pub fn map_large_allocations() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes a setting of the allocator, takes its own lock for that, and touches no memory of
    // ours. It fails only for values out of range, and then nothing changes.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE)
    };
}
