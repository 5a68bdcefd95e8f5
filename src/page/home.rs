//! Where a guest page lives: its home, and which moves from home to home are legal.

use crate::units::{FrameId, SlotId};

/// Where the content of a guest page is. Every page has exactly one home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// Nowhere: never written, reads as zeroes.
    Untouched,
    /// Nowhere: it was found to be all zero, and reads as zeroes.
    Zero,
    /// In the VM's RAM file at the page's own offset.
    Resident,
    /// In a frame of the share pool, read-only.
    Shared(FrameId),
    /// In a slot of the VM's compression cache.
    Compressed(SlotId),
    /// In a slot of the VM's swap file, or of its part of the host cache.
    Swapped(SlotId),
    /// Nowhere: the guest gave the page up.
    Ballooned,
}

/// How many kinds of home there are.
pub const KINDS: usize = 7;

impl Home {
    /// The number of the kind of home, an index for arrays of [`KINDS`].
    #[must_use]
    pub const fn kind(self) -> usize {
        match self {
            Self::Untouched => 0,
            Self::Zero => 1,
            Self::Resident => 2,
            Self::Shared(_) => 3,
            Self::Compressed(_) => 4,
            Self::Swapped(_) => 5,
            Self::Ballooned => 6,
        }
    }

    /// The number of the slot or frame; zero for homes that have none.
    pub(super) const fn payload(self) -> u32 {
        match self {
            Self::Shared(frame) => frame.0,
            Self::Compressed(slot) | Self::Swapped(slot) => slot.0,
            Self::Untouched | Self::Zero | Self::Resident | Self::Ballooned => 0,
        }
    }

    pub(super) const fn from_parts(kind: u64, payload: u32) -> Self {
        match kind {
            0 => Self::Untouched,
            1 => Self::Zero,
            2 => Self::Resident,
            3 => Self::Shared(FrameId(payload)),
            4 => Self::Compressed(SlotId(payload)),
            5 => Self::Swapped(SlotId(payload)),
            _ => Self::Ballooned,
        }
    }

    /// Whether a page may move from this home to `next`. The table is the design's list of
    /// transitions; any other move is a bug in the daemon.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        use Home::{Ballooned, Compressed, Resident, Shared, Swapped, Untouched, Zero};
        match (self, next) {
            // First touch, refill, copy-on-write break, or an access that takes a page out of the balloon.
            (_, Resident) => !matches!(self, Resident),
            // Attached at its guest's request, before it held anything.
            (Untouched | Zero, Shared(_)) => true,
            // A resident page is evicted or shared; a shared page is evicted.
            (Resident, Zero | Shared(_)) | (Resident | Shared(_), Compressed(_) | Swapped(_)) => {
                true
            }
            // The cache is full: its oldest page leaves for the swap file.
            (Compressed(_), Swapped(_)) => true,
            // A page of the host cache is demoted.
            (Swapped(from), Swapped(to)) => from.is_cached() && !to.is_cached(),
            // Inflating takes any page; deflating gives it back as untouched.
            (_, Ballooned) => !matches!(self, Ballooned),
            (Ballooned, Untouched) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Home; KINDS] = [
        Home::Untouched,
        Home::Zero,
        Home::Resident,
        Home::Shared(FrameId(7)),
        Home::Compressed(SlotId(8)),
        Home::Swapped(SlotId(9)),
        Home::Ballooned,
    ];

    #[test]
    fn home_survives_packing() {
        for (kind, home) in ALL.into_iter().enumerate() {
            assert_eq!(home.kind(), kind);
            assert_eq!(Home::from_parts(kind as u64, home.payload()), home);
        }
    }

    #[test]
    fn transition_table_is_the_designs() {
        let table: Vec<String> = ALL
            .into_iter()
            .map(|from| {
                ALL.into_iter()
                    .map(|to| if from.may_become(to) { 'x' } else { '.' })
                    .collect()
            })
            .collect();
        // Columns and rows: untouched zero resident shared compressed swapped ballooned.
        assert_eq!(
            table,
            [
                "..xx..x", "..xx..x", ".x.xxxx", "..x.xxx", "..x..xx", "..x...x", "x.x...."
            ]
        );
    }

    #[test]
    fn swapped_pages_only_move_from_the_host_cache_to_the_swap_file() {
        let (file, cache) = (SlotId(9), SlotId(9).cached());
        assert_eq!(cache.in_file(), file);
        let may = |from, to| Home::Swapped(from).may_become(Home::Swapped(to));
        assert!(may(cache, file));
        assert!(!may(file, cache) && !may(file, file) && !may(cache, cache));
    }
}
