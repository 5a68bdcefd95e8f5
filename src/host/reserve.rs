//! What of a budget first touches leave alone.

use crate::units::Pages;

/// The reserve is this part of the budget, but at least [`RESERVE_MIN`]. A 200th is half of the low threshold of 1 %:
/// so first touches go on until low is entered, and a reclaim batch needs only a few pages for a moment. It must
/// always be less than the free memory at which soft begins: a host that hands nothing out must be reclaiming.
const RESERVE_PART: u64 = 200;
const RESERVE_MIN: u64 = 16;

/// The pages of a budget that first touches leave alone.
pub(crate) fn reserve(total: Pages) -> Pages {
    Pages((total.0 / RESERVE_PART).max(RESERVE_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Config, Generation, Thresholds};

    /// Otherwise guests would wait for memory on a host that does not count as short, and so reclaims nothing.
    #[test]
    fn reserve_is_less_than_what_is_free_where_soft_begins() {
        // From 4 MiB up.
        for total in (10..40).map(|bits| Pages(1 << bits)) {
            for generation in Generation::ALL {
                for min_free_percent in 0..=50 {
                    let config = Config {
                        generation,
                        min_free_percent,
                        ..Config::default()
                    };
                    let soft = Thresholds::of(total, &config).soft;
                    assert!(
                        reserve(total) < soft,
                        "{total:?} {generation} {min_free_percent} %"
                    );
                }
            }
        }
    }
}
