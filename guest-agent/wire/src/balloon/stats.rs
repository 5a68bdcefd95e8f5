//! Tagged statistics of the guest, with the tags of virtio-balloon.

use super::{DecodeError, MAX_STATS, Reader, Writer, value};

/// What a statistic is about. The tags are those of virtio-balloon (VIRTIO 1.3, 5.5.6.4), so that an
/// agent can pass on what its kernel counts. Tags from 0x8000 on are ours. Sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatTag(pub u16);

impl StatTag {
    /// Bytes the guest has read from its own swap device since it booted.
    pub const SWAP_IN: Self = Self(0);
    /// Bytes the guest has written to its own swap device since it booted.
    pub const SWAP_OUT: Self = Self(1);
    /// Page faults that needed I/O, since boot.
    pub const MAJOR_FAULTS: Self = Self(2);
    /// Page faults that needed no I/O, since boot.
    pub const MINOR_FAULTS: Self = Self(3);
    /// Bytes that hold nothing.
    pub const FREE_MEMORY: Self = Self(4);
    /// Bytes that the guest can use at all, without those in the balloon.
    pub const TOTAL_MEMORY: Self = Self(5);
    /// Bytes that the guest could make free without swapping.
    pub const AVAILABLE_MEMORY: Self = Self(6);
    /// Bytes of file cache.
    pub const DISK_CACHES: Self = Self(7);
    /// Times the guest killed a process for want of memory, since boot.
    pub const OOM_KILLS: Self = Self(10);
    /// Microseconds that threads of the guest waited for its own swap device, summed over the threads, since boot. Not
    /// a tag of virtio-balloon.
    pub const SWAP_WAIT: Self = Self(0x8000);
}

/// One statistic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What the statistic is about. A host skips tags that it does not know.
    pub tag: StatTag,
    /// The value in the unit of the tag.
    pub value: u64,
}

impl Stat {
    /// The statistic `tag` with this value.
    #[must_use]
    pub const fn new(tag: StatTag, value: u64) -> Self {
        Self { tag, value }
    }
}

pub(super) fn write(stats: &[Stat], to: &mut Writer) {
    let stats = &stats[..stats.len().min(MAX_STATS)];
    to.u32(stats.len() as u32);
    for stat in stats {
        to.u16(stat.tag.0).u64(stat.value);
    }
}

pub(super) fn read(from: &mut Reader<'_>) -> Result<Vec<Stat>, DecodeError> {
    let number = from.u32("number of statistics")?;
    if number as usize > MAX_STATS {
        return Err(value("number of statistics", number, "0 to 32"));
    }
    let one = |_| Ok(Stat::new(StatTag(from.u16("tag")?), from.u64("value")?));
    (0..number).map(one).collect()
}
