//! What a pool holds and saves, in numbers.

use crate::units::Pages;

/// What sharing saves. The parts are read one after the other, not in one instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolCounts {
    /// Frames that cost memory (ESX: `common`).
    pub frames: Pages,
    /// References to the frames; equals the number of shared guest pages while nothing is in flight (ESX:
    /// `shared`).
    pub refs: Pages,
}

impl PoolCounts {
    /// The memory that sharing saves: references less frames (ESX: `saving`).
    #[must_use]
    pub const fn saved(&self) -> Pages {
        self.refs.saturating_sub(self.frames)
    }
}
