//! Eviction orders: how many pages each VM loses now, by share, compress and swap in that order.
//!
//! Balloons are slow and may not move at all, so part of what must be freed cannot wait for them.
//! How much is evicted depends on the state. High evicts only what a limit forbids, soft what no balloon will
//! bring. Hard and low evict all that is missing, whatever the balloons do, but only up to where soft begins:
//! eviction picks pages blindly, so the rest is left to balloons. In a state in which balloons do not grow,
//! nothing else frees the rest, so eviction goes on to where soft ends. If it stopped earlier, guests that touch
//! again what they lost would use up what it freed, and the host would never reach a state in which balloons grow.
//!
//! By which means depends on the generation. A state without swap waits for the balloons that are on their
//! way: it may compress what they will bring, but not swap it. What they will not bring is taken by every
//! available means, in every state, so that no generation's table leaves a host without a way out.
//!
//! One round is bounded, so the orders of one plan are small. The next plan is made as soon as an order is
//! carried out and memory is still short, and sees its effect. How fast pages leave is not the policy's business.

use super::mechanisms::{Means, Rules};
use super::plan::VmPlan;
use super::snapshot::{HostSnapshot, VmSnapshot};
use super::states::{FreeState, Thresholds};
use super::{Config, balloon, total};
use crate::units::Pages;

/// What one VM loses in this round.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Order {
    pub pages: Pages,
    pub means: Means,
    pub by_limit: bool,
}

/// The free memory at which eviction stops.
pub(super) fn aim(rules: &Rules, thresholds: &Thresholds) -> Pages {
    match rules.state {
        FreeState::High | FreeState::Clear => Pages(0),
        FreeState::Hard | FreeState::Low if rules.mechanisms.inflate => thresholds.to_soft,
        FreeState::Soft | FreeState::Hard | FreeState::Low => thresholds.aim,
    }
}

/// What each VM loses in this round, in the order of the snapshot: at most `evict_round` pages together, and
/// no more than `shortfall` beyond what limits forbid.
pub(super) fn orders(
    host: &HostSnapshot,
    rules: &Rules,
    shortfall: Pages,
    plans: &[VmPlan],
    config: &Config,
) -> Vec<Order> {
    let vms = || host.vms.iter().zip(plans);
    let over_limits: Vec<Pages> = vms()
        .map(|(vm, plan)| over_limit(vm, plan, rules).min(vm.evictable(rules.all)))
        .collect();
    // A guest at its limit touches again what it loses, in every round. So while the host is short, half of
    // the round is kept for the shortfall: guests at their limits would otherwise take all of it.
    let half = Pages(config.evict_round.0 / 2);
    let for_limits = config.evict_round.saturating_sub(shortfall.min(half));
    let first = divide(for_limits, &over_limits, host.seed);

    let done = total(first.iter().copied());
    let left = config.evict_round.saturating_sub(done);
    let dues: Vec<Order> = vms()
        .zip(&first)
        .map(|((vm, plan), taken)| due(vm, plan, *taken, rules))
        .collect();
    let wants: Vec<Pages> = dues.iter().map(|due| due.pages).collect();
    let second = divide(shortfall.min(left), &wants, host.seed);

    let mut pages: Vec<Pages> = (first.iter().zip(second))
        .map(|(first, second)| total([*first, second]))
        .collect();
    // Only in a state that swaps: there, VMs above their targets have been tried by every means. A state
    // without swap first gets worse.
    if rules.mechanisms.swap && pages.iter().all(|pages| *pages == Pages(0)) {
        pages = last_resort(host, shortfall.min(config.evict_round), rules.all);
    }
    let order = |((pages, due), first): ((Pages, Order), &Pages)| match pages {
        Pages(0) => Order::default(),
        _ if *first > Pages(0) => Order {
            pages,
            // A limit binds in every state, by any means.
            means: rules.all,
            by_limit: true,
        },
        _ => Order { pages, ..due },
    };
    pages.into_iter().zip(dues).zip(&first).map(order).collect()
}

/// For when no VM above its target can give anything, because its swap file fails or is full. Then the other
/// VMs give what they hold above their reservations, or their own faults would wait for ever.
fn last_resort(host: &HostSnapshot, pages: Pages, means: Means) -> Vec<Pages> {
    let spare = |vm: &VmSnapshot| {
        vm.allocation()
            .saturating_sub(vm.min())
            .min(vm.evictable(means))
    };
    let mut wants: Vec<Pages> = host.vms.iter().map(spare).collect();
    keep_reserved(host, &mut wants);
    divide(pages, &wants, host.seed)
}

/// Lowers what VMs can give to what leaves the pools around them their reservations.
fn keep_reserved(host: &HostSnapshot, spare: &mut [Pages]) {
    let held = host.by_pool(host.vms.iter().map(VmSnapshot::allocation));
    // From the inside out: what a pool keeps is not given by the one around it either.
    for (at, pool) in host.resource_pools.iter().enumerate().skip(1).rev() {
        if pool.reservation == Pages(0) {
            continue;
        }
        let inside: Vec<usize> = (0..host.vms.len())
            .filter(|vm| host.pools_around(*vm).any(|around| around == at))
            .collect();
        let wants: Vec<Pages> = inside.iter().map(|vm| spare[*vm]).collect();
        let left = divide(held[at].saturating_sub(pool.min()), &wants, host.seed);
        for (vm, left) in inside.into_iter().zip(left) {
            spare[vm] = left;
        }
    }
}

/// The pages that are left to the balloon of a VM and not evicted: none in a state that swaps.
fn coming(vm: &VmSnapshot, plan: &VmPlan, rules: &Rules) -> Pages {
    if rules.waits() {
        balloon::pending(vm, plan)
    } else {
        Pages(0)
    }
}

/// The room that a VM at its limit gets at once for faults that wait, in pages: a 64th of its limit,
/// at least 256 KiB so that not every fault waits for an eviction, at most 1 MiB.
fn room(max: Pages) -> Pages {
    Pages((max.0 / 64).clamp(64, 256))
}

/// What a VM holds above its size or limit and its balloon will not bring: it is taken in every state. Faults
/// that wait at the limit do not depend on a balloon that does not move: its agent may be what waits.
fn over_limit(vm: &VmSnapshot, plan: &VmPlan, rules: &Rules) -> Pages {
    let over = vm.allocation().saturating_sub(vm.max());
    let late = over.saturating_sub(coming(vm, plan, rules));
    if !vm.pressing {
        return late;
    }
    let room = room(vm.max());
    let with_room = total([vm.allocation(), room]).saturating_sub(vm.max());
    late.max(with_room.min(room))
}

/// The least ceiling of a VM, in pages (1 MiB): a VM that may hold nothing could not run, and so not give
/// anything up.
const LEAST_CEILING: Pages = Pages(256);

/// The most a VM may hold until the next plan, if that is less than its size. A VM above its limit is
/// brought down to it, but not at one blow, which would stop the guest: it may have back half of what it loses
/// in this round. `None` also where a VM is at its limit and nothing can be taken from it: its faults would wait for
/// ever.
pub(super) fn ceiling(vm: &VmSnapshot, evict: Pages, means: Means) -> Option<Pages> {
    let is_stuck = vm.allocation() >= vm.max() && vm.evictable(means) == Pages(0);
    if vm.max() >= vm.size || is_stuck {
        return None;
    }
    let now = vm.allocation().saturating_sub(Pages(evict.0 / 2));
    Some(vm.max().max(now).max(LEAST_CEILING))
}

/// What can be taken from a VM to bring it to its target, and by which means. `first` is what it already
/// loses because of its limit.
fn due(vm: &VmSnapshot, plan: &VmPlan, first: Pages, rules: &Rules) -> Order {
    // Its balloon gives way. What the VM then holds above its target is not taken by other means instead.
    if vm.relief.is_some() && rules.gives() {
        return Order::default();
    }
    let over = vm.allocation().saturating_sub(plan.target);
    let late = over.saturating_sub(coming(vm, plan, rules));
    let (pages, means) = if late > Pages(0) {
        (late, rules.all)
    } else {
        (over, Means::of(rules.mechanisms))
    };
    // The order of one VM has one set of means: a VM over its limit loses the rest in the next round.
    if first > Pages(0) && means != rules.all {
        return Order::default();
    }
    let pages = pages.min(vm.evictable(means)).saturating_sub(first);
    Order {
        pages,
        means,
        by_limit: false,
    }
}

/// Divides `pages` in proportion to `wants`; no part is more than its want. The remainder goes out page by
/// page, beginning with the VM that `seed` picks.
fn divide(pages: Pages, wants: &[Pages], seed: u64) -> Vec<Pages> {
    let wanted = total(wants.iter().copied());
    if wanted <= pages {
        return wants.to_vec();
    }
    let mut parts: Vec<Pages> = wants
        .iter()
        .map(|want| {
            // In 128 bits: the product of two numbers of pages can exceed 64.
            let part = u128::from(pages.0) * u128::from(want.0) / u128::from(wanted.0);
            Pages(u64::try_from(part).unwrap_or(want.0)).min(*want)
        })
        .collect();
    let mut rest = pages.saturating_sub(total(parts.iter().copied())).0;
    // From another VM each time: otherwise the first ones would lose the page that rounding leaves in every round.
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
    use crate::policy::Policy;

    #[test]
    fn last_resort_takes_from_those_that_can_down_to_their_reservations() {
        let vm = |id, reservation, swap_room| VmSnapshot {
            id: crate::units::VmId(id),
            reservation: Pages(reservation),
            swap_room: Pages(swap_room),
            ..VmSnapshot::sample(1000, 500)
        };
        let host = HostSnapshot {
            least_free: None,
            resource_pools: Vec::new(),
            budget: Pages(1500),
            used: Pages(1500),
            state: FreeState::Low,
            vms: vec![vm(1, 0, 0), vm(2, 400, 1000), vm(3, 200, 1000)],
            seed: 0,
        };
        let means = Means::all(&Config::default());
        assert_eq!(last_resort(&host, Pages(40), means), [0, 10, 30].map(Pages));
        assert_eq!(
            last_resort(&host, Pages(900), means),
            [0, 100, 300].map(Pages)
        );
    }

    /// A balloon that takes what its guest has never used brings nothing. While it is waited for, the faults
    /// would use up free memory until the state is low.
    #[test]
    fn balloon_is_not_waited_for_while_faults_wait_for_eviction() {
        let evicted = |state, faults_wait_early| {
            let host = HostSnapshot {
                least_free: None,
                resource_pools: Vec::new(),
                budget: Pages(10_000),
                used: Pages(9_800),
                state,
                vms: vec![VmSnapshot::sample(12_000, 9_600)],
                seed: 0,
            };
            let config = Config {
                faults_wait_early,
                ..Config::default()
            };
            let plan = crate::policy::Esx.plan(&host, &config);
            assert_eq!(plan.state, state);
            (plan.vms[0].evict, plan.vms[0].means, plan.floor)
        };
        let all = Means::all(&Config::default());
        let (pages, means, floor) = evicted(FreeState::Hard, true);
        assert!(pages > Pages(0) && floor > Pages(0), "{pages:?} {floor:?}");
        assert_eq!(means, all);
        assert_eq!(
            evicted(FreeState::Hard, false).1,
            Means::default(),
            "ESX waits"
        );
    }

    /// A stopped guest that holds 5600 pages and hardly uses any, beside two that want more than is left. While
    /// it does not answer, none of what it holds can be divided, and it is asked for nothing.
    #[test]
    fn who_does_not_answer_keeps_what_it_holds_and_the_others_give() {
        let vm = |id, mute, allocation, active| VmSnapshot {
            id: crate::units::VmId(id),
            mute,
            agent_alive: false,
            active: Some(Pages(active)),
            ..VmSnapshot::sample(6400, allocation)
        };
        for state in [FreeState::Soft, FreeState::Hard, FreeState::Low] {
            let host = |mute| HostSnapshot {
                least_free: None,
                resource_pools: Vec::new(),
                budget: Pages(9600),
                used: Pages(9560),
                state,
                vms: vec![
                    vm(1, mute, 5600, 60),
                    vm(2, false, 1960, 1960),
                    vm(3, false, 2000, 2000),
                ],
                seed: 0,
            };
            let config = Config::default();
            let answers = crate::policy::Esx.plan(&host(false), &config);
            let [first, second, third] = [0, 1, 2].map(|at| answers.vms[at].evict);
            assert!(first > Pages(0), "{answers:?}");
            assert_eq!((second, third), (Pages(0), Pages(0)), "{answers:?}");

            let silent = crate::policy::Esx.plan(&host(true), &config);
            let [first, second, third] = [0, 1, 2].map(|at| silent.vms[at]);
            assert_eq!((first.target, first.evict), (Pages(5600), Pages(0)));
            assert!(!first.blocked, "{silent:?}");
            assert!(second.target < Pages(1960) && third.target < Pages(2000));
            assert_eq!(total([second.evict, third.evict]), silent.shortfall);
            assert_eq!(silent.stuck, None);
        }
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
