//! Popularity: a few items are asked for often, most items seldom.

use rand::Rng;
use rand_distr::{Distribution, Zipf};

/// The largest prime below 2^32. Multiplying by it modulo any smaller number is a permutation, which
/// spreads the popular items over all of memory, as they are in real guests.
const SPREAD: u64 = 4_294_967_291;

/// A choice among items with Zipf popularity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Popularity {
    zipf: Zipf<f64>,
    items: u64,
}

impl Popularity {
    /// A choice among 1 to 2^32 - 6 items. The popularity of the n-th most popular item is proportional
    /// to n^-`exponent`, with an exponent from 0 on.
    pub(super) fn new(items: u64, exponent: f64) -> Self {
        assert!((1..SPREAD).contains(&items), "{items} items");
        Self {
            zipf: Zipf::new(items as f64, exponent)
                .expect("there is an item, and the parser let no negative exponent pass"),
            items,
        }
    }

    /// The number of an item.
    pub(super) fn choose(&self, random: &mut impl Rng) -> u64 {
        let rank = self.zipf.sample(random) as u64;
        rank.clamp(1, self.items) * SPREAD % self.items
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn counts(items: u64, exponent: f64) -> Vec<u32> {
        let mut random = StdRng::seed_from_u64(5);
        let popularity = Popularity::new(items, exponent);
        let mut counts = vec![0; items as usize];
        for _ in 0..100_000 {
            counts[popularity.choose(&mut random) as usize] += 1;
        }
        counts.sort_unstable();
        counts
    }

    #[test]
    fn popularity_follows_the_exponent_and_reaches_every_item() {
        let even = counts(100, 0.0);
        assert!(even[0] > 800 && even[99] < 1200, "{even:?}");
        let skewed = counts(100, 1.0);
        // The share of the first of 100 is 1 / H(100) = 19.3 %.
        assert!(skewed[99].abs_diff(19_300) < 600, "{skewed:?}");
        assert!(skewed[0] > 100, "{skewed:?}");
        assert_eq!(counts(1, 0.99), [100_000]);
    }
}
