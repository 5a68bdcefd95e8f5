//! What a guest says about itself, clamped to what can be true.

use memvisor_wire::balloon::{Stat, StatTag};

use crate::units::{Bytes, Pages};

/// The statistics of one `STATS` message. `None`: the guest did not say.
///
/// All of it is an allegation. Sizes are clamped: the total to the RAM of the VM, the parts to the
/// total. Counters (since the guest's boot) cannot be checked; whoever takes differences must treat
/// a counter that went back as a reboot. The numbers may decide which guest gives memory first, and nothing
/// that must be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GuestStats {
    /// Memory the guest can use, without its balloon.
    pub total: Option<Bytes>,
    /// Memory that holds nothing.
    pub free: Option<Bytes>,
    /// Memory that could be freed without swapping.
    pub available: Option<Bytes>,
    /// File cache.
    pub caches: Option<Bytes>,
    /// Read from the guest's own swap device, since boot.
    pub swap_in: Option<Bytes>,
    /// Written to the guest's own swap device, since boot.
    pub swap_out: Option<Bytes>,
    /// Page faults that needed I/O, since boot.
    pub major_faults: Option<u64>,
    /// Page faults that did not, since boot.
    pub minor_faults: Option<u64>,
    /// Processes killed for lack of memory, since boot.
    pub oom_kills: Option<u64>,
    /// Microseconds that its threads waited for its own swap device, since boot.
    pub swap_wait_us: Option<u64>,
}

impl GuestStats {
    /// Sorts and clamps what a guest with `ram` pages claims. Unknown tags are skipped. When a tag is
    /// given twice, the last value counts.
    #[must_use]
    pub fn from_claims(claims: &[Stat], ram: Pages) -> Self {
        let mut stats = Self::default();
        for &Stat { tag, value } in claims {
            match tag {
                StatTag::TOTAL_MEMORY => stats.total = Some(Bytes(value)),
                StatTag::FREE_MEMORY => stats.free = Some(Bytes(value)),
                StatTag::AVAILABLE_MEMORY => stats.available = Some(Bytes(value)),
                StatTag::DISK_CACHES => stats.caches = Some(Bytes(value)),
                StatTag::SWAP_IN => stats.swap_in = Some(Bytes(value)),
                StatTag::SWAP_OUT => stats.swap_out = Some(Bytes(value)),
                StatTag::MAJOR_FAULTS => stats.major_faults = Some(value),
                StatTag::MINOR_FAULTS => stats.minor_faults = Some(value),
                StatTag::OOM_KILLS => stats.oom_kills = Some(value),
                StatTag::SWAP_WAIT => stats.swap_wait_us = Some(value),
                // Agents may send tags of their own, which mean nothing here.
                _ => {}
            }
        }
        // Clamped first, because the other values are clamped to it.
        stats.total = stats.total.map(|total| total.min(ram.bytes()));
        let most = stats.total.unwrap_or(ram.bytes());
        for part in [&mut stats.free, &mut stats.available, &mut stats.caches] {
            *part = part.map(|part| part.min(most));
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_claims_clamps_sizes_and_skips_unknown_tags() {
        let stats = GuestStats::from_claims(
            &[
                Stat::new(StatTag::FREE_MEMORY, u64::MAX),
                Stat::new(StatTag(999), 1),
                Stat::new(StatTag::DISK_CACHES, 8192),
                Stat::new(StatTag::SWAP_IN, 5),
                Stat::new(StatTag::SWAP_IN, 6),
            ],
            Pages(4),
        );
        let expected = GuestStats {
            free: Some(Bytes(16384)),
            caches: Some(Bytes(8192)),
            swap_in: Some(Bytes(6)),
            ..GuestStats::default()
        };
        assert_eq!(stats, expected);
    }

    #[test]
    fn from_claims_clamps_the_parts_to_the_total() {
        let claims = [
            Stat::new(StatTag::AVAILABLE_MEMORY, 9000),
            Stat::new(StatTag::TOTAL_MEMORY, 8192),
        ];
        let stats = GuestStats::from_claims(&claims, Pages(4));
        assert_eq!(stats.available, Some(Bytes(8192)));
    }
}
