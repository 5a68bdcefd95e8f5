//! What sharing would save, estimated from a sample of contents.
//!
//! To know it exactly takes the digest of every page of the host at once, and a table of them: 0.5 % of all memory for
//! an answer to one question. The obvious sample, some pages taken at random, does not answer it: of two equal pages
//! among a million, a sample of a hundredth has both with one chance in ten thousand, and whatever is made of that
//! is off by a factor. So *contents* are sampled instead of pages. Digests are random numbers, so the contents with the
//! smallest digests are a fair sample, and it is the same one in every VM: each page of a sampled content is
//! counted, wherever it is. What the sampled contents would save, divided by the part `p` of all contents that they are,
//! is an estimate without bias; while all contents fit, it is exact.
//!
//! *Size*. The sketch holds [`CONTENTS`] contents for the whole host. When one more comes, the one with the largest
//! digest has to go, and from then on no digest as large is taken. As a content that is still there was never
//! refused, its count is complete. (Bottom-k sketches: E. Cohen, H. Kaplan, "Summarizing data using bottom-k sketches",
//! 2007, which proves that the estimate is without bias although `p` comes from the sample.)
//!
//! *Frequent contents*. A content that a tenth of all pages have is sampled or not, and the estimate jumps by a tenth of
//! the host. So contents that are frequent in a VM are counted beside the sample ([`Frequent`]): what these counts
//! would save is known, and only what they have missed is estimated. The counts depend on the order of pages and not
//! on digests, so the estimate stays without bias.
//!
//! *Error*. From the sample itself follows how far such an estimate is off: in 95 of 100 cases by no more than two
//! standard errors, which is what [`Estimate`] says. It does not count what changes while pages are read.

use std::collections::{BTreeMap, HashMap};

use crate::units::VmId;

/// Contents that are sampled: about 1 % of error, and half a MiB.
const CONTENTS: usize = 1 << 14;
/// Contents of a VM that are counted because they are frequent. Such a count misses at most one page in so many of the
/// VM.
const FREQUENT: usize = 256;

/// How many pages of each VM have one content.
type Users = Vec<(VmId, u32)>;

/// The sampled contents. See the module text.
#[derive(Debug)]
pub struct Sketch {
    most: usize,
    /// Contents whose digests are as large as this or larger are not in it; `None`: all are in it.
    below: Option<u64>,
    contents: BTreeMap<u64, Users>,
}

/// A number that is not known for certain.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Estimate {
    /// The estimate, in pages.
    pub pages: f64,
    /// In 95 of 100 cases it is off by no more than so many pages.
    pub error: f64,
}

impl Default for Sketch {
    fn default() -> Self {
        Self::new(CONTENTS)
    }
}

impl Sketch {
    /// A sketch with room for `most` contents.
    pub(crate) const fn new(most: usize) -> Self {
        Self {
            most,
            below: None,
            contents: BTreeMap::new(),
        }
    }

    /// Whether a page with this digest would be counted.
    fn takes(&self, digest: u64) -> bool {
        self.below.is_none_or(|below| digest < below)
    }

    /// Counts pages of a VM by their digests.
    pub fn note(&mut self, vm: VmId, digests: impl IntoIterator<Item = u64>) {
        for digest in digests {
            if !self.takes(digest) {
                continue;
            }
            let users = self.contents.entry(digest).or_default();
            // The pages of one VM come together, so its count is the last.
            match users.iter_mut().rev().find(|(user, _)| *user == vm) {
                Some((_, count)) => *count += 1,
                None => users.push((vm, 1)),
            }
            if self.contents.len() > self.most {
                self.below = self.contents.pop_last().map(|(digest, _)| digest);
            }
        }
    }

    /// The digest from which on none is counted.
    #[must_use]
    pub const fn below(&self) -> Option<u64> {
        self.below
    }

    /// How many contents were sampled.
    #[must_use]
    pub fn contents(&self) -> usize {
        self.contents.len()
    }

    /// Which part of all contents that is.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a fraction")]
    pub fn part(&self) -> f64 {
        self.below
            .map_or(1.0, |below| below as f64 / (u64::MAX as f64 + 1.0))
    }

    /// Sums over all contents, `sums` of them: `worth` tells of a content that these pages have what it adds to which
    /// sum. `frequent` has the counts of each VM.
    #[must_use]
    pub fn estimates(
        &self,
        frequent: &[(VmId, Frequent)],
        sums: usize,
        worth: impl Fn(&[(VmId, u32)], &mut dyn FnMut(usize, f64)),
    ) -> Vec<Estimate> {
        let counted = by_content(frequent);
        let mut known = vec![0.0; sums];
        for users in counted.values() {
            worth(users, &mut |at, worth| known[at] += worth);
        }
        let (mut missed, mut squares) = (vec![0.0; sums], vec![0.0; sums]);
        // What the counts have missed of one content; all zero between two contents.
        let (mut of_one, mut touched) = (vec![0.0; sums], Vec::new());
        for (digest, users) in &self.contents {
            worth(users, &mut |at, worth| {
                of_one[at] += worth;
                touched.push(at);
            });
            if let Some(users) = counted.get(digest) {
                worth(users, &mut |at, worth| of_one[at] -= worth);
            }
            for at in touched.drain(..) {
                let worth: f64 = std::mem::take(&mut of_one[at]);
                missed[at] += worth;
                squares[at] += worth * worth;
            }
        }
        let part = self.part();
        let estimate = |at: usize| Estimate {
            pages: (known[at] + missed[at] / part).max(0.0),
            error: 2.0 * ((1.0 - part) * squares[at]).sqrt() / part,
        };
        (0..sums).map(estimate).collect()
    }
}

fn by_content(frequent: &[(VmId, Frequent)]) -> HashMap<u64, Users> {
    let mut contents: HashMap<u64, Users> = HashMap::new();
    for (vm, frequent) in frequent {
        for (digest, count) in &frequent.counts {
            contents
                .entry(*digest)
                .or_default()
                .push((*vm, count.pages));
        }
    }
    contents
}

/// Counts of the contents that are most frequent in one VM (J. Misra, D. Gries, "Finding repeated elements", 1982).
///
/// There is room for 256 contents. A page of another one raises the *level*, and contents of which no more pages came
/// than the level rose since their first one have to go. So of `n` pages no count misses more than `n / 257`, no content
/// that more pages have is missing, and one that never had to go is counted exactly.
#[derive(Clone, Debug, Default)]
pub struct Frequent {
    level: u32,
    counts: HashMap<u64, Count>,
}

/// Pages of one content.
#[derive(Clone, Copy, Debug)]
struct Count {
    pages: u32,
    /// The level when the first of them came.
    from: u32,
}

impl Frequent {
    /// Counts a page.
    pub fn note(&mut self, digest: u64) {
        if let Some(count) = self.counts.get_mut(&digest) {
            count.pages += 1;
        } else if self.counts.len() < FREQUENT {
            let from = self.level;
            self.counts.insert(digest, Count { pages: 1, from });
        } else {
            self.level += 1;
            let level = self.level;
            (self.counts).retain(|_, count| count.pages > level - count.from);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, RngExt, SeedableRng};

    use super::*;

    const MOST: usize = 500;

    /// Pages of some VMs as numbers of their contents: some that one VM has once, some that all have, some that are
    /// very frequent in one.
    fn pages(rng: &mut StdRng) -> Vec<(VmId, Vec<u64>)> {
        let common = rng.random_range(0..3000_u64);
        (0..3_u32)
            .map(|vm| {
                let mut next = u64::from(vm + 1) << 32;
                let mut contents = Vec::new();
                contents.extend(0..common);
                for _ in 0..rng.random_range(0..3000) {
                    next += 1;
                    contents.push(next);
                }
                for _ in 0..rng.random_range(0..100) {
                    next += 1;
                    let times = 1 << rng.random_range(0..10);
                    contents.extend((0..times).map(|_| next));
                }
                // The frequent ones of all VMs, such as pages of ones.
                contents.extend((0..rng.random_range(0..2000)).map(|_| u64::MAX));
                for at in (1..contents.len()).rev() {
                    contents.swap(at, rng.random_range(0..=at));
                }
                (VmId(vm), contents)
            })
            .collect()
    }

    fn saves(users: &[(VmId, u32)]) -> f64 {
        f64::from(users.iter().map(|(_, count)| count).sum::<u32>()) - 1.0
    }

    fn sum(
        sketch: &Sketch,
        counted: &[(VmId, Frequent)],
        worth: impl Fn(&[(VmId, u32)]) -> f64,
    ) -> Estimate {
        sketch.estimates(counted, 1, |users, add| add(0, worth(users)))[0]
    }

    /// What is saved in truth.
    fn truth(vms: &[(VmId, Vec<u64>)]) -> f64 {
        let mut contents: HashMap<u64, u32> = HashMap::new();
        let all = vms.iter().flat_map(|(_, pages)| pages);
        all.for_each(|content| *contents.entry(*content).or_default() += 1);
        contents.values().map(|count| f64::from(count - 1)).sum()
    }

    /// The estimate with digests that `rng` makes.
    fn estimate(vms: &[(VmId, Vec<u64>)], rng: &mut StdRng, most: usize) -> Estimate {
        let mut digests: HashMap<u64, u64> = HashMap::new();
        let mut sketch = Sketch::new(most);
        let mut counted = Vec::new();
        for (vm, pages) in vms {
            let mut frequent = Frequent::default();
            for content in pages {
                let digest = *digests.entry(*content).or_insert_with(|| rng.next_u64());
                frequent.note(digest);
                sketch.note(*vm, [digest]);
            }
            counted.push((*vm, frequent));
        }
        assert!(sketch.contents() <= most);
        sum(&sketch, &counted, saves)
    }

    #[test]
    fn estimate_is_right_on_average_and_within_its_error_in_95_of_100_cases() {
        let mut rng = StdRng::seed_from_u64(11);
        const ROUNDS: u32 = 400;
        let (mut within, mut sum, mut square) = (0, 0.0, 0.0);
        for _ in 0..ROUNDS {
            let vms = pages(&mut rng);
            let truth = truth(&vms);
            let found = estimate(&vms, &mut rng, MOST);
            let off = found.pages - truth;
            within += u32::from(off.abs() <= found.error + 1e-6);
            sum += off;
            square += off * off;
        }
        let (mean, deviation) = (sum / f64::from(ROUNDS), (square / f64::from(ROUNDS)).sqrt());
        assert!(
            within >= ROUNDS * 93 / 100,
            "{within} of {ROUNDS} are within their error"
        );
        let bound = 3.0 * deviation / f64::from(ROUNDS).sqrt();
        assert!(
            mean.abs() <= bound,
            "off by {mean} on average, of {deviation} at a time"
        );
    }

    #[test]
    fn estimate_is_exact_while_all_contents_fit() {
        let mut rng = StdRng::seed_from_u64(12);
        for _ in 0..20 {
            let vms = pages(&mut rng);
            let found = estimate(&vms, &mut rng, usize::MAX);
            assert_eq!((found.pages, found.error), (truth(&vms), 0.0));
        }
    }

    #[test]
    fn content_of_a_tenth_of_all_pages_does_not_depend_on_being_sampled() {
        let mut rng = StdRng::seed_from_u64(13);
        let mut contents: Vec<u64> = (0..9000).collect();
        contents.extend([u64::MAX; 1000]);
        for _ in 0..50 {
            for at in (1..contents.len()).rev() {
                contents.swap(at, rng.random_range(0..=at));
            }
            let vms = [(VmId(1), contents.clone())];
            let found = estimate(&vms, &mut rng, MOST);
            assert!((found.pages - 999.0).abs() < 1.0, "{found:?}");
        }
    }

    #[test]
    fn what_counts_between_vms_is_what_the_worth_says() {
        let mut sketch = Sketch::new(10);
        let [a, b] = [VmId(1), VmId(2)];
        sketch.note(a, [5, 5, 6]);
        sketch.note(b, [5, 7]);
        let within = |users: &[(VmId, u32)]| users.iter().map(|(_, n)| f64::from(n - 1)).sum();
        let exact = |pages| Estimate { pages, error: 0.0 };
        assert_eq!(sum(&sketch, &[], saves), exact(2.0));
        assert_eq!(sum(&sketch, &[], within), exact(1.0));
        assert_eq!((sketch.contents(), sketch.part()), (3, 1.0));
    }
}
