//! What things cost a simulated guest, in microseconds. The figures are those of docs/benchmarks.md, of one machine: they
//! say which law makes guests wait longer, not for how long a guest of yours will.

/// An access to a page that is there, with the work of the guest between two such accesses. Our choice: a store that
/// answers 100 000 requests a second.
pub(super) const ACCESS_US: u64 = 10;

/// An access to a page that the host has swapped: "refill from the swap file, random order, heap: p50".
pub(super) const REFILL_US: u64 = 81;

/// Writing a page to a swap file: "page out to the swap file, heap", 158 450 pages a second.
const PAGE_OUT_US: u64 = 6;

/// An access to a page that the guest has swapped itself: as long as the host takes for one, and another page has to be
/// written first.
pub(super) const SWAP_IN_US: u64 = REFILL_US + PAGE_OUT_US;

/// What a guest does in vain before its kernel turns to its balloon, or kills: several passes over all its pages. Our
/// choice; firecracker#4324 tells of processors that do nothing else for minutes.
pub(super) const IN_VAIN_US: u64 = 100_000;

/// The pages that a kernel gets of its balloon after that, where the balloon deflates on OOM (virtio-balloon).
pub(super) const ON_OOM_PAGES: u64 = 256;
