//! Fair parts: how many pages each VM may hold of those that are available.
//!
//! Every VM has a least and a most. In between it gets pages in proportion to its shares, so there
//! is one *level*, a number of pages a share, and everybody holds `level * shares`, but no less
//! than the least and no more than the most. The level that uses up what is available is found by
//! bisection: the sum never falls as the level rises. That is the fixed point that ESX reaches
//! page by page, taking each from the VM with the fewest shares a page (min-funding revocation).
//!
//! The most is not the size of a VM but its *demand*: what it holds, and some of what its balloon
//! took. A VM is not asked to leave pages idle for another's entitlement, and a balloon is part of
//! the demand only by one step of headroom, so that a guest which no longer wants its pages does
//! not keep them from others for ever. What its balloon holds beyond that comes back step by step.
//!
//! All arithmetic is on integers: the same snapshot gives the same plan on every machine.

use super::snapshot::{HostSnapshot, VmSnapshot};
use super::{Config, percent_of, total};
use crate::units::Pages;

/// Bits after the binary point of a [`Level`]. A page is then finer than a share of any VM.
const FRACTION: u32 = 32;

/// Pages a share, as a fixed-point number with [`FRACTION`] bits after the point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Level(u128);

/// What one VM can be given.
#[derive(Clone, Copy, Debug)]
struct Claim {
    shares: u32,
    /// It is given this much even if that is more than there is.
    floor: Pages,
    /// At least the floor.
    cap: Pages,
}

impl Claim {
    /// What this VM holds at a level.
    fn at(&self, level: Level) -> Pages {
        let part = u128::from(self.shares).saturating_mul(level.0) >> FRACTION;
        let part = u64::try_from(part).unwrap_or(u64::MAX);
        Pages(part).max(self.floor).min(self.cap)
    }

    /// The least level at which this VM has all it can be given. None: it has no shares.
    fn full_at(&self) -> Option<Level> {
        let shares = u128::from(self.shares);
        (shares > 0).then(|| Level((u128::from(self.cap.0) << FRACTION).div_ceil(shares)))
    }
}

/// The highest level at which the claims take no more than `available`, or the level zero if even
/// their floors are more. None if there is enough for all caps.
///
/// Fewer pages than there are claims remain, unless claims without shares leave more.
fn level(claims: &[Claim], available: Pages) -> Option<Level> {
    let taken = |level: Level| total(claims.iter().map(|claim| claim.at(level)));
    if total(claims.iter().map(|claim| claim.cap)) <= available {
        return None;
    }
    let full = claims.iter().filter_map(Claim::full_at).max();
    let mut fits = 0;
    let mut above = full.map_or(0, |level| level.0) + 1;
    while above - fits > 1 {
        let middle = fits.midpoint(above);
        if taken(Level(middle)) <= available {
            fits = middle;
        } else {
            above = middle;
        }
    }
    Some(Level(fits))
}

/// What one VM may hold of what is available.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Allotment {
    /// At least its reservation, at most the lesser of size and limit; shared pages count in full.
    pub target: Pages,
    /// Whether there is enough for the demands of all VMs, headroom included.
    pub all_met: bool,
}

/// The part of its balloon that a VM is presumed to want back at once.
pub(super) fn headroom(vm: &VmSnapshot, config: &Config) -> Pages {
    percent_of(vm.size, config.headroom_percent).min(vm.ballooned)
}

/// The guest pages a VM holds or is presumed to want at once.
pub(super) fn demand(vm: &VmSnapshot, config: &Config) -> Pages {
    total([vm.allocation(), headroom(vm, config)])
}

/// The allotment of each VM, in the order of the snapshot.
///
/// `available` is what all VMs together may hold. The targets add up to no more, except for
/// reservations: one that is not used is lent to others, and all of them together can exceed what
/// is available if they were admitted on a larger budget.
pub(super) fn allot(host: &HostSnapshot, available: Pages, config: &Config) -> Vec<Allotment> {
    let claims: Vec<Claim> = host.vms.iter().map(|vm| claim(vm, config)).collect();
    if let Some(level) = level(&claims, available) {
        let parts = claims.iter().map(|claim| claim.at(level));
        let targets = parts.zip(&host.vms).map(|(part, vm)| part.max(vm.min()));
        return targets
            .map(|target| Allotment {
                target,
                all_met: false,
            })
            .collect();
    }
    spread(host, &claims, available)
}

/// What a VM must and can be given of its demand.
fn claim(vm: &VmSnapshot, config: &Config) -> Claim {
    let cap = demand(vm, config).min(vm.max());
    Claim {
        shares: vm.shares,
        floor: vm.min().min(cap),
        cap,
    }
}

/// Allotments when all demands are met: the rest is spread, again by shares, as room to grow.
fn spread(host: &HostSnapshot, claims: &[Claim], available: Pages) -> Vec<Allotment> {
    let rooms: Vec<Claim> = (host.vms.iter().zip(claims))
        .map(|(vm, met)| Claim {
            shares: vm.shares,
            floor: met.cap.max(vm.min()),
            cap: vm.max(),
        })
        .collect();
    let level = level(&rooms, available);
    let targets = rooms
        .iter()
        .map(|room| level.map_or(room.cap, |level| room.at(level)));
    targets
        .map(|target| Allotment {
            target,
            all_met: true,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(claims: &[Claim], available: u64) -> Option<Vec<u64>> {
        let level = level(claims, Pages(available))?;
        Some(claims.iter().map(|claim| claim.at(level).0).collect())
    }

    fn claim(shares: u32, floor: u64, cap: u64) -> Claim {
        Claim {
            shares,
            floor: Pages(floor),
            cap: Pages(cap),
        }
    }

    #[test]
    fn level_enough_for_all_is_none() {
        assert_eq!(parts(&[claim(1, 0, 60), claim(2, 0, 40)], 100), None);
    }

    #[test]
    fn level_short_divides_by_shares_between_floor_and_cap() {
        let claims = [
            claim(1000, 0, 900),
            claim(2000, 0, 900),
            claim(1000, 250, 900),
            claim(3000, 0, 100),
        ];
        assert_eq!(parts(&claims, 800), Some(vec![150, 300, 250, 100]));
    }

    #[test]
    fn level_without_shares_stays_at_the_floor() {
        let claims = [claim(0, 10, 500), claim(0, 0, 500)];
        assert_eq!(parts(&claims, 600), Some(vec![10, 0]));
    }

    #[test]
    fn level_floors_above_available_are_kept() {
        let claims = [claim(1, 70, 90), claim(1, 60, 90)];
        assert_eq!(parts(&claims, 100), Some(vec![70, 60]));
    }

    #[test]
    fn level_of_extreme_numbers_does_not_overflow() {
        let claims = [claim(u32::MAX, 0, u64::MAX), claim(1, 0, u64::MAX)];
        let parts = parts(&claims, u64::MAX - 1).expect("the caps are more");
        assert!(parts[0] > u64::MAX - (1 << 33), "{parts:?}");
    }

    fn claims() -> impl Strategy<Value = Vec<Claim>> {
        let one = (1_u32..5000, 0_u64..1000, 0_u64..100_000)
            .prop_map(|(shares, floor, more)| claim(shares, floor, floor + more));
        proptest::collection::vec(one, 1..8)
    }

    proptest! {
        /// The rule of min-funding revocation: nobody above its floor has fewer shares a page
        /// than somebody below its cap, one page either way.
        #[test]
        fn level_leaves_no_better_funded_taker(claims in claims(), percent in 1_u64..100) {
            let caps: u64 = claims.iter().map(|claim| claim.cap.0).sum();
            let floors: u64 = claims.iter().map(|claim| claim.floor.0).sum();
            let available = floors.max(caps * percent / 100);
            let Some(parts) = parts(&claims, available) else {
                prop_assert!(caps <= available);
                return Ok(());
            };
            let sum: u64 = parts.iter().sum();
            prop_assert!(sum <= available && available - sum < claims.len() as u64);
            for (rich, pages) in claims.iter().zip(&parts) {
                for (poor, fewer) in claims.iter().zip(&parts) {
                    if *pages > rich.floor.0 && *fewer < poor.cap.0 {
                        prop_assert!(
                            (pages - 1) * u64::from(poor.shares)
                                <= (fewer + 1) * u64::from(rich.shares),
                            "{rich:?} holds {pages}, {poor:?} only {fewer}"
                        );
                    }
                }
            }
        }
    }
}
