//! Snapshots and settings that cannot be true: both are also read from files, and must not break the planner.

use proptest::prelude::*;

use super::super::*;
use super::state;
use crate::units::VmId;

/// Small numbers are often equal to each other, large ones overflow.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        0_u64..100,
        0_u64..1 << 40,
        any::<u64>(),
    ]
}

fn pages() -> impl Strategy<Value = Pages> {
    number().prop_map(Pages)
}

fn vm() -> impl Strategy<Value = VmSnapshot> {
    let homes = proptest::collection::vec(pages(), 7);
    let rules = (
        pages(),
        pages(),
        proptest::option::of(pages()),
        any::<u32>(),
    );
    let stores = proptest::collection::vec(pages(), 5);
    let asked = proptest::array::uniform5(proptest::option::of(pages()));
    let does = proptest::array::uniform5(any::<bool>());
    (homes, rules, stores, asked, does).prop_map(|(homes, rules, stores, asked, does)| VmSnapshot {
        id: VmId(7),
        size: rules.0,
        reservation: rules.1,
        limit: rules.2,
        shares: rules.3,
        resident: homes[0],
        shared: homes[1],
        sharing_saved: stores[0],
        compressed: homes[2],
        zip_pages: stores[1],
        zip_room: stores[2],
        swapped: homes[3],
        ballooned: homes[4],
        zero: homes[5],
        untouched: homes[6],
        agent: does[4],
        agent_alive: does[0],
        balloon_brings: asked[2],
        balloon_by_hand: asked[3],
        balloon_max: stores[3],
        relief: asked[0],
        balloon_free: asked[4],
        active: asked[1],
        swap_room: stores[4],
        swap_failing: does[1],
        mute: does[2],
        pressing: does[3],
    })
}

fn host() -> impl Strategy<Value = HostSnapshot> {
    let vms = proptest::collection::vec(vm(), 0..6);
    (pages(), pages(), state(), vms, any::<u64>()).prop_map(|(budget, used, state, vms, seed)| {
        HostSnapshot {
            least_free: None,
            budget,
            used,
            state,
            vms,
            seed,
        }
    })
}

/// Also settings that [`Config::check`] refuses.
fn config() -> impl Strategy<Value = Config> {
    let percents = proptest::array::uniform5(prop_oneof![0_u32..=100, any::<u32>()]);
    (super::config(), percents, pages()).prop_map(|(config, percents, evict_round)| Config {
        min_free_percent: percents[0],
        margin_percent: percents[1],
        balloon_max_percent: percents[2],
        headroom_percent: percents[3],
        idle_tax_percent: percents[4],
        evict_round,
        ..config
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn nonsense_is_planned_within_its_bounds(host in host(), config in config()) {
        let plan = plan(&host, &config);
        let believed = host.believable();
        for (vm, plan) in believed.vms.iter().zip(&plan.vms) {
            prop_assert!(vm.min() <= plan.target && plan.target <= vm.max(), "{plan:?}");
            prop_assert!(plan.balloon_target <= vm.size);
            prop_assert!(plan.evict <= vm.evictable(plan.means));
        }
        let explained = explain(&host, &config, &plan, VmId(7));
        prop_assert_eq!(explained.is_some(), !host.vms.is_empty());
        for change in explained.iter().flat_map(|one| &one.changes) {
            prop_assert!(change.to_string().starts_with("with "));
        }
    }

    #[test]
    fn what_is_believed_is_consistent_and_true_numbers_are_believed(host in host()) {
        let believed = host.believable();
        prop_assert!(believed.free() <= believed.budget);
        for vm in &believed.vms {
            let homes = [vm.resident, vm.shared, vm.compressed, vm.swapped, vm.ballooned];
            let homes = homes.into_iter().chain([vm.zero, vm.untouched]);
            prop_assert!(homes.map(|home| home.0).sum::<u64>() <= vm.size.0);
            prop_assert!(vm.active <= Some(vm.size));
            prop_assert!(vm.sharing_saved <= vm.shared && vm.zip_pages <= vm.compressed);
        }
        prop_assert_eq!(&believed.believable(), &believed);
    }

    #[test]
    fn consistent_host_is_believed(host in super::host()) {
        prop_assert_eq!(&*host.believable(), &host);
    }
}
