//! Fetches what will be read soon while something else is done.

/// Brings the cache line at `what` into the processor's cache, on architectures where we know how to ask for that.
#[inline]
pub fn prefetch<T>(what: &T) {
    prefetch_at(std::ptr::from_ref(what).cast());
}

/// [`prefetch`] for any address: one that is not mapped is ignored.
#[inline]
pub(super) fn prefetch_at(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction is in every x86-64 processor, never faults and changes nothing but
        // what is cached, whatever the address is.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
