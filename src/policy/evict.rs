//! Eviction orders: how many pages each VM loses now, by share, compress and swap in that order.
//!
//! Balloons are slow and may not move at all, so part of what must be freed cannot wait for them.
//! How much depends on the state: in high only what a limit forbids; in soft what no balloon will
//! bring; in hard and low all that is missing, whatever the balloons do, but only up to where soft
//! begins, because eviction picks pages blindly and balloons do the rest better.
//!
//! One round is bounded, so the orders of one plan are small and the next plan sees their effect.

use super::plan::VmPlan;
use super::snapshot::{HostSnapshot, VmSnapshot};
use super::states::{FreeState, Thresholds};
use super::{Config, balloon, total};
use crate::units::Pages;

/// What can be taken from one VM in this round.
#[derive(Clone, Copy)]
struct Excess {
    /// Above its size or limit: taken in every state.
    limit: Pages,
    /// Above its target, `limit` included.
    target: Pages,
}

/// The host pages that eviction must free now to leave the state.
pub(super) fn shortfall(state: FreeState, free: Pages, thresholds: &Thresholds) -> Pages {
    let aim = match state {
        FreeState::High => Pages(0),
        FreeState::Soft => thresholds.to_high,
        FreeState::Hard | FreeState::Low => thresholds.to_soft,
    };
    aim.saturating_sub(free)
}

/// The guest pages to evict from each VM in this round, in the order of the snapshot: at most
/// `evict_round` together, and no more than `shortfall` beyond what limits forbid.
pub(super) fn evictions(
    host: &HostSnapshot,
    state: FreeState,
    shortfall: Pages,
    plans: &[VmPlan],
    config: &Config,
) -> Vec<Pages> {
    let excesses: Vec<Excess> = (host.vms.iter().zip(plans))
        .map(|(vm, plan)| excess(vm, plan, state))
        .collect();
    let limits: Vec<Pages> = excesses.iter().map(|excess| excess.limit).collect();
    let first = divide(config.evict_round, &limits, host.seed);

    let done = total(first.iter().copied());
    let left = config.evict_round.saturating_sub(done);
    let rests: Vec<Pages> = (excesses.iter().zip(&first))
        .map(|(excess, taken)| excess.target.saturating_sub(*taken))
        .collect();
    let second = divide(shortfall.saturating_sub(done).min(left), &rests, host.seed);

    let evictions: Vec<Pages> = first
        .into_iter()
        .zip(second)
        .map(|pair| total([pair.0, pair.1]))
        .collect();
    let nobody_can = total(evictions.iter().copied()) == Pages(0);
    if nobody_can && state >= FreeState::Hard {
        return last_resort(host, shortfall.min(config.evict_round));
    }
    evictions
}

/// Who is above its target can give nothing: its swap fails, or it is full. Then the others give what
/// they hold above their reservations, or their own faults would wait for ever.
fn last_resort(host: &HostSnapshot, pages: Pages) -> Vec<Pages> {
    let spare = |vm: &VmSnapshot| vm.allocation().saturating_sub(vm.min()).min(vm.evictable());
    let wants: Vec<Pages> = host.vms.iter().map(spare).collect();
    divide(pages, &wants, host.seed)
}

fn excess(vm: &VmSnapshot, plan: &VmPlan, state: FreeState) -> Excess {
    let coming = match state {
        FreeState::High | FreeState::Soft => balloon::pending(vm, plan),
        FreeState::Hard | FreeState::Low => Pages(0),
    };
    let above = |mark: Pages| {
        let over = vm.allocation().saturating_sub(mark);
        over.saturating_sub(coming).min(vm.evictable())
    };
    Excess {
        limit: above(vm.max()),
        target: above(plan.target),
    }
}

/// Divides `pages` in proportion to `wants`, nobody getting more than it wants. The remainder goes
/// out one page each, beginning with the VM that `seed` picks.
fn divide(pages: Pages, wants: &[Pages], seed: u64) -> Vec<Pages> {
    let wanted = total(wants.iter().copied());
    if wanted <= pages {
        return wants.to_vec();
    }
    let mut parts: Vec<Pages> = wants
        .iter()
        .map(|want| {
            let part = u128::from(pages.0) * u128::from(want.0) / u128::from(wanted.0);
            Pages(u64::try_from(part).unwrap_or(want.0)).min(*want)
        })
        .collect();
    let mut rest = pages.saturating_sub(total(parts.iter().copied())).0;
    let start = usize::try_from(seed % wants.len() as u64).unwrap_or(0);
    for at in (start..wants.len()).chain(0..start) {
        if rest > 0 && parts[at] < wants[at] {
            parts[at].0 += 1;
            rest -= 1;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn last_resort_takes_from_those_that_can_down_to_their_reservations() {
        let vm = |id, reservation, swap_room| VmSnapshot {
            id: crate::units::VmId(id),
            size: Pages(1000),
            reservation: Pages(reservation),
            resident: Pages(500),
            swap_room: Pages(swap_room),
            shares: 1000,
            ..serde_json::from_str(
                r#"{"id": 0, "size": 1, "shares": 1, "agent_alive": false, "balloon_max": 0}"#,
            )
            .expect("valid")
        };
        let host = HostSnapshot {
            budget: Pages(1500),
            used: Pages(1500),
            state: FreeState::Low,
            vms: vec![vm(1, 0, 0), vm(2, 400, 1000), vm(3, 200, 1000)],
            seed: 0,
        };
        assert_eq!(last_resort(&host, Pages(40)), [0, 10, 30].map(Pages));
        assert_eq!(last_resort(&host, Pages(900)), [0, 100, 300].map(Pages));
    }

    #[test]
    fn divide_is_proportional_and_the_seed_places_the_odd_page() {
        let wants = [Pages(300), Pages(0), Pages(100)];
        assert_eq!(divide(Pages(40), &wants, 0), [30, 0, 10].map(Pages));
        assert_eq!(divide(Pages(41), &wants, 0), [31, 0, 10].map(Pages));
        assert_eq!(divide(Pages(41), &wants, 1), [30, 0, 11].map(Pages));
        assert_eq!(divide(Pages(500), &wants, 0), wants);
        assert_eq!(divide(Pages(0), &[], 3), []);
    }

    proptest! {
        #[test]
        fn divide_gives_all_there_is_and_nobody_too_much(
            pages in 0_u64..2000,
            wants in proptest::collection::vec(0_u64..500, 0..8),
            seed: u64,
        ) {
            let wants: Vec<Pages> = wants.into_iter().map(Pages).collect();
            let parts = divide(Pages(pages), &wants, seed);
            prop_assert_eq!(parts.len(), wants.len());
            prop_assert!(parts.iter().zip(&wants).all(|(part, want)| part <= want));
            let wanted = total(wants);
            prop_assert_eq!(total(parts), wanted.min(Pages(pages)));
        }
    }
}
