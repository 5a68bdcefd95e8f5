//! Snapshots and settings that cannot be true: both are also read from files, and must not break the planner.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::*;
use super::{policy, state};
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

/// A VM with nonsense in every field, also in those that are yet to be invented.
fn vm() -> impl Strategy<Value = VmSnapshot> {
    let fields = serde_json::to_value(VmSnapshot::default()).expect("plain data");
    let fields = fields.as_object().expect("an object").clone();
    let nonsense = (number(), any::<bool>());
    proptest::collection::vec(nonsense, fields.len()).prop_map(move |nonsense| {
        let mut vm = fields.clone();
        for ((name, value), (number, yes)) in vm.iter_mut().zip(nonsense) {
            *value = match (name.as_str(), &*value) {
                ("id", _) => 7.into(),
                ("law", _) => {
                    let signed = number.cast_signed();
                    let target = yes.then_some(number);
                    json!({"target": target, "sum": signed, "last": signed, "waited_ms": number})
                }
                ("shares", _) => (number & u64::from(u32::MAX)).into(),
                (_, Value::Bool(_)) => yes.into(),
                (_, Value::Null) if yes => Value::Null,
                _ => number.into(),
            };
        }
        serde_json::from_value(vm.into()).expect("every field can have that value")
    })
}

/// A resource pool whose parent may be anywhere, also in itself.
fn pool() -> impl Strategy<Value = ResourcePool> {
    let parent = prop_oneof![4 => 0_usize..5, 1 => any::<usize>()];
    let limit = proptest::option::of(pages());
    (parent, any::<u32>(), pages(), limit, any::<bool>()).prop_map(
        |(parent, shares, reservation, limit, scalable)| ResourcePool {
            parent,
            shares,
            reservation,
            limit,
            scalable,
            ..ResourcePool::default()
        },
    )
}

fn host() -> impl Strategy<Value = HostSnapshot> {
    let vms = (vm(), prop_oneof![4 => 0_usize..5, 1 => any::<usize>()]);
    let vms = proptest::collection::vec(vms, 0..6);
    let pools = proptest::collection::vec(pool(), 0..5);
    let fields = (pages(), pages(), state(), vms, any::<u64>(), pools);
    fields.prop_map(|(budget, used, state, vms, seed, resource_pools)| {
        let vms = vms.into_iter().map(|(vm, resource_pool)| VmSnapshot {
            resource_pool,
            ..vm
        });
        let vms = vms.collect();
        HostSnapshot {
            least_free: None,
            resource_pools,
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
    let percents = proptest::array::uniform12(prop_oneof![0_u32..=100, any::<u32>()]);
    (super::config(), percents, pages()).prop_map(|(config, percents, evict_round)| Config {
        pid_proportional_percent: percents[5],
        pid_integral_percent: percents[6],
        pid_derivative_percent: percents[7],
        senpai_stall_us: percents[8],
        senpai_interval: std::time::Duration::from_millis(percents[9].into()),
        senpai_probe_percent: percents[10],
        share_reserve_percent: percents[11],
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
    fn nonsense_is_planned_within_its_bounds(
        policy in policy(),
        host in host(),
        config in config(),
    ) {
        let plan = policy.plan(&host, &config);
        let believed = host.believable();
        for (vm, plan) in believed.vms.iter().zip(&plan.vms) {
            prop_assert!(vm.min() <= plan.target && plan.target <= vm.max(), "{plan:?}");
            prop_assert!(plan.balloon_target <= vm.size);
            prop_assert!(plan.evict <= vm.evictable(plan.means));
        }
        let explained = explain(policy, &host, &config, &plan, VmId(7));
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
