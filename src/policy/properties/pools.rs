//! Resource pools: against a slow model, and what holds of any tree.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::fair;
use super::super::pool_limit::hand_down;
use super::super::resource_pool::NORMAL_POOL_SHARES;
use super::*;

/// Where each pool of a tree stands: any before it.
fn parents() -> impl Strategy<Value = Vec<usize>> {
    let picks = proptest::collection::vec(any::<prop::sample::Index>(), 0..7);
    picks.prop_map(|picks| {
        let parents = picks
            .iter()
            .enumerate()
            .map(|(at, pick)| pick.index(at + 1));
        std::iter::once(0).chain(parents).collect()
    })
}

/// The settings of a pool, as parts of what a host has.
fn pool(parent: usize, most: u64) -> impl Strategy<Value = ResourcePool> {
    let shares = prop_oneof![1 => Just(0), 9 => 1_u32..300_000];
    let reservation = prop_oneof![Just(0), 0..=most];
    let limit = proptest::option::weighted(0.3, 0..=most);
    (shares, reservation, limit, any::<bool>(), any::<bool>()).prop_map(
        move |(shares, reservation, limit, expandable, scalable)| ResourcePool {
            name: String::new(),
            parent,
            shares,
            reservation: Pages(limit.unwrap_or(most).min(reservation)),
            limit: limit.map(Pages),
            expandable,
            scalable,
        },
    )
}

/// A tree of pools. With `most`, the most pages that one reserves or is limited to.
fn pools(most: u64) -> impl Strategy<Value = Vec<ResourcePool>> {
    parents().prop_flat_map(move |parents| {
        let pools: Vec<_> = parents
            .into_iter()
            .map(|parent| pool(parent, most))
            .collect();
        pools.prop_map(|mut pools| {
            for (at, pool) in pools.iter_mut().enumerate() {
                pool.name = format!("pool{at}");
            }
            pools
        })
    })
}

/// Any host, with its VMs anywhere in a tree of pools.
fn host_with_pools() -> impl Strategy<Value = HostSnapshot> {
    let places = proptest::collection::vec(any::<prop::sample::Index>(), 6);
    (super::host(), pools(20_000), places).prop_map(|(mut host, pools, places)| {
        for (vm, place) in host.vms.iter_mut().zip(places) {
            vm.resource_pool = place.index(pools.len());
        }
        host.resource_pools = pools;
        host
    })
}

/// The VMs that are in a pool or in pools in it.
fn within(host: &HostSnapshot, pool: usize) -> impl Iterator<Item = usize> {
    (0..host.vms.len()).filter(move |vm| host.pools_around(*vm).any(|around| around == pool))
}

/// A tree as the model sees it: no list, no sums that are kept, nothing that is shared with the code.
enum Node {
    Leaf {
        vm: usize,
        shares: u64,
        min: u64,
        cap: u64,
        active: u64,
    },
    Inner {
        pool: usize,
        shares: u64,
        reservation: u64,
        children: Vec<Node>,
    },
}

impl Node {
    /// The node of a pool, of a host whose policy is ESX's and whose VMs all answer.
    fn pool(host: &HostSnapshot, config: &Config, at: usize) -> Self {
        let leaves = host
            .vms
            .iter()
            .enumerate()
            .filter(|(_, vm)| vm.resource_pool == at);
        let leaves = leaves.map(|(at, vm)| Self::Leaf {
            vm: at,
            shares: vm.shares.into(),
            min: vm.min().0,
            cap: fair::demand(vm, config).min(vm.max()).0,
            active: vm.active.unwrap_or(vm.size).0,
        });
        let inner =
            (1..host.resource_pools.len()).filter(|pool| host.resource_pools[*pool].parent == at);
        let inner = inner.map(|pool| Self::pool(host, config, pool));
        let children: Vec<Self> = leaves.chain(inner).collect();
        let pool = &host.resource_pools[at];
        let grown = children.iter().map(Self::shares).sum::<u64>();
        let scales = at > 0 && host.resource_pools[pool.parent].scalable;
        let shares = if scales && pool.shares > 0 && grown > 0 {
            (grown * u64::from(pool.shares) / u64::from(NORMAL_POOL_SHARES)).max(1)
        } else if scales {
            0
        } else {
            pool.shares.into()
        };
        let reservation = if at == 0 { 0 } else { pool.min().0 };
        Self::Inner {
            pool: at,
            shares,
            reservation,
            children,
        }
    }

    fn shares(&self) -> u64 {
        match self {
            Self::Leaf { shares, .. } | Self::Inner { shares, .. } => *shares,
        }
    }

    fn cap(&self) -> u64 {
        match self {
            Self::Leaf { cap, .. } => *cap,
            Self::Inner { children, .. } => children.iter().map(Self::cap).sum(),
        }
    }

    fn floor(&self) -> u64 {
        match self {
            Self::Leaf { min, cap, .. } => *min.min(cap),
            Self::Inner {
                reservation,
                children,
                ..
            } => {
                let floors: u64 = children.iter().map(Self::floor).sum();
                floors.max(self.cap().min(*reservation))
            }
        }
    }

    fn active(&self) -> u64 {
        match self {
            Self::Leaf { active, cap, .. } => *active.min(cap),
            Self::Inner { children, .. } => children.iter().map(Self::active).sum(),
        }
    }

    /// What it costs to hold so many pages, in hundredths of a page in use that are multiplied by what the tax leaves.
    fn cost(&self, pages: u64, untaxed: u64) -> u128 {
        let in_use = self.active().min(pages);
        u128::from(in_use * untaxed + (pages - in_use) * 100)
    }

    /// Hands out pages one by one: each to the child that pays least a share for it.
    fn hand_out(&self, pages: u64, untaxed: u64, held: &mut BTreeMap<usize, u64>) {
        let Self::Inner { children, .. } = self else {
            let Self::Leaf { vm, .. } = self else { return };
            held.insert(*vm, pages);
            return;
        };
        let mut parts: Vec<u64> = children.iter().map(Self::floor).collect();
        let mut left = pages.saturating_sub(parts.iter().sum());
        while left > 0 {
            let wants = |at: &usize| parts[*at] < children[*at].cap() && children[*at].shares() > 0;
            let price = |at: &usize| {
                // Compared as cross products would be, on a scale that keeps all digits that matter.
                let cost = children[*at].cost(parts[*at] + 1, untaxed) << 40;
                cost / u128::from(children[*at].shares())
            };
            let Some(next) = (0..children.len()).filter(wants).min_by_key(price) else {
                break;
            };
            parts[next] += 1;
            left -= 1;
        }
        for (child, part) in children.iter().zip(parts) {
            child.hand_out(part, untaxed, held);
        }
    }

    /// How far below it the deepest VM is.
    fn depth(&self) -> u64 {
        match self {
            Self::Leaf { .. } => 0,
            Self::Inner { children, .. } => 1 + children.iter().map(Self::depth).max().unwrap_or(0),
        }
    }

    /// By pool, what those in it are promised, and what they may be.
    fn promises(&self, host: &HostSnapshot, into: &mut BTreeMap<usize, (u64, u64)>) -> u64 {
        match self {
            Self::Leaf { min, .. } => *min,
            Self::Inner {
                pool,
                children,
                reservation,
                ..
            } => {
                let sum = children
                    .iter()
                    .map(|child| child.promises(host, into))
                    .sum();
                let settings = &host.resource_pools[*pool];
                let limit = settings.limit.map_or(u64::MAX, |limit| limit.0);
                let may = match (*pool, settings.expandable) {
                    (0, _) => u64::MAX,
                    (_, true) => limit,
                    (_, false) => *reservation,
                };
                into.insert(*pool, (sum, may));
                sum.max(*reservation)
            }
        }
    }
}

/// Small VMs without limits, of which a page by page model is done in time.
fn small_host() -> impl Strategy<Value = HostSnapshot> {
    let shares = prop_oneof![1 => Just(0), 9 => 1_u32..5000];
    let vm = (
        1_u64..120,
        0_u64..=100,
        0_u64..=100,
        proptest::option::of(0_u64..=100),
        shares,
    );
    let vms = proptest::collection::vec((vm, any::<prop::sample::Index>()), 1..8);
    (vms, pools(200), 20_u64..=100).prop_map(|(vms, pools, percent)| {
        let mut host = host_of(Vec::new(), 0, FreeState::Hard, 0);
        for ((size, held, reserved, active, shares), place) in vms {
            let resident = size * held / 100;
            host.vms.push(VmSnapshot {
                resource_pool: place.index(pools.len()),
                shares,
                reservation: Pages(size * reserved / 300),
                active: active.map(|percent| Pages(size * percent / 100)),
                ..VmSnapshot::sample(size, resident)
            });
        }
        host.resource_pools = pools;
        host.resource_pools
            .iter_mut()
            .for_each(|pool| pool.limit = None);
        let demand: u64 = host.vms.iter().map(|vm| vm.allocation().0).sum();
        host.budget = Pages(demand * percent / 100);
        host
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// A tree of depth 1: without a list of pools, with a root alone, and with one pool around all VMs.
    #[test]
    fn pool_around_all_vms_changes_nothing(
        policy in policy(),
        host in super::host(),
        config in config(),
        (expandable, scalable, shares) in (any::<bool>(), any::<bool>(), 1_u32..1_000_000),
    ) {
        let plain = policy.plan(&host, &config);
        // Where even reservations do not fit, nobody is entitled to more at any level.
        prop_assume!(sum(host.vms.iter().map(VmSnapshot::min)) <= plain.available.0);
        let root = ResourcePool { scalable, ..ResourcePool::default() };
        let mut alone = host.clone();
        alone.resource_pools = vec![root.clone()];
        let alone = policy.plan(&alone, &config);
        prop_assert_eq!(&alone, &plain);
        let mut within = host.clone();
        let pool = ResourcePool { shares, expandable, ..ResourcePool::default() };
        within.resource_pools = vec![root, pool];
        within.vms.iter_mut().for_each(|vm| vm.resource_pool = 1);
        // Scalable shares of VMs that have none are none, as if they were in no pool.
        let within = policy.plan(&within, &config);
        prop_assert_eq!(&within.vms, &plain.vms);
        prop_assert_eq!((within.available, within.stuck), (plain.available, plain.stuck));
    }

    #[test]
    fn division_is_that_of_the_model(host in small_host(), tax in 0_u32..=90) {
        let config = Config { idle_tax_percent: tax, ..Config::default() };
        let limited = hand_down(&Esx, &host, &config);
        let host = &*limited.host;
        let root = Node::pool(host, &config, 0);
        let available = host.budget.0.max(root.floor()).min(root.cap());
        let division = fair::divide(&Esx, host, Pages(available), &config);
        let mut held = BTreeMap::new();
        root.hand_out(available, u64::from(100 - tax), &mut held);
        // At each level a page may go to another of those that pay the same for it.
        let near = 2 * root.depth();
        for (at, vm) in host.vms.iter().enumerate() {
            let cap = fair::demand(vm, &config).min(vm.max());
            let target = division.vms[at].target.min(cap).0;
            prop_assert!(target.abs_diff(held[&at]) <= near, "VM {at}: {target}, the model {}", held[&at]);
        }
    }

    /// What those in a pool may hold is at most its limit, but for what they are promised themselves.
    #[test]
    fn limits_hold_at_each_level(policy in policy(), host in host_with_pools(), config in config()) {
        let plan = policy.plan(&host, &config);
        let limited = hand_down(policy, &host, &config);
        let mut floors = BTreeMap::new();
        for at in (0..host.resource_pools.len()).rev() {
            // A pool inside that promises more than this one may hold: its reservation wins, as far as it can be used.
            let vms: Vec<usize> = within(&host, at).collect();
            let own: u64 = vms.iter().filter(|vm| host.vms[**vm].resource_pool == at)
                .map(|vm| host.vms[*vm].min().0.max(if host.vms[*vm].mute { host.vms[*vm].allocation().0 } else { 0 }))
                .sum();
            let inner: u64 = (1..host.resource_pools.len())
                .filter(|pool| host.resource_pools[*pool].parent == at)
                .map(|pool| floors[&pool]).sum();
            let most: u64 = vms.iter().map(|vm| host.vms[*vm].max().0).sum();
            let floor = (own + inner).max(most.min(host.resource_pools[at].min().0));
            floors.insert(at, floor);
            let Some(limit) = host.resource_pools[at].max().filter(|_| at > 0) else { continue };
            let sum = |of: &dyn Fn(usize) -> Pages| vms.iter().map(|vm| of(*vm).0).sum::<u64>();
            let bound = limit.0.max(own + inner);
            prop_assert!(sum(&|vm| limited.host.vms[vm].max()) <= bound, "{at}");
            prop_assert!(sum(&|vm| plan.vms[vm].target) <= bound, "{at}");
            // Until the next plan as well, but for what a guest needs to run, and what is on its way out.
            for vm in vms.iter().filter(|vm| plan.vms[**vm].ceiling.is_some()) {
                let seen = &limited.host.vms[*vm];
                let ceiling = plan.vms[*vm].ceiling.expect("asked");
                prop_assert!(ceiling <= seen.max().max(seen.allocation()).max(Pages(256)));
            }
        }
    }

    /// What those in a pool may hold is at least its reservation, as far as they can use it and it was admitted.
    #[test]
    fn reservations_hold_at_each_level(policy in policy(), host in host_with_pools(), config in config()) {
        let mut host = host;
        host.resource_pools.iter_mut().for_each(|pool| (pool.limit, pool.shares) = (None, pool.shares.max(1)));
        let root = Node::pool(&host, &config, 0);
        let mut promises = BTreeMap::new();
        root.promises(&host, &mut promises);
        let plan = policy.plan(&host, &config);
        if promises[&0].0 > plan.available.0 {
            return Ok(());
        }
        let children = host.vms.len() + host.resource_pools.len();
        for (at, pool) in host.resource_pools.iter().enumerate().skip(1) {
            let vms: Vec<usize> = within(&host, at).collect();
            let sum = |of: &dyn Fn(usize) -> Pages| vms.iter().map(|vm| of(*vm).0).sum::<u64>();
            let can = sum(&|vm| host.vms[vm].max());
            let target = sum(&|vm| plan.vms[vm].target);
            // Of what is divided, at each level less than a page for each of those there is left over.
            prop_assert!(target + children as u64 >= can.min(pool.reservation.0), "{at}: {target} of {pool:?}");
        }
    }

    /// The properties of any plan, in a tree.
    #[test]
    fn plan_in_pools_is_a_plan(policy in policy(), host in host_with_pools(), config in config()) {
        let plan = policy.plan(&host, &config);
        let evicted = sum(plan.vms.iter().map(|vm| vm.evict));
        prop_assert!(evicted <= config.evict_round.0);
        for (vm, of) in host.vms.iter().zip(&plan.vms) {
            prop_assert!(vm.min() <= of.target && of.target <= vm.max(), "{of:?}");
            prop_assert!(of.target <= of.entitled, "{of:?}");
            prop_assert!(of.balloon_target.0 + vm.min().0 <= vm.size.0, "{of:?}");
            let left = Pages(vm.allocation().saturating_sub(of.evict).0 + room(vm).0);
            prop_assert!(of.evict == Pages(0) || left >= vm.min(), "{of:?}");
        }
        let moves = host.vms.iter().zip(&plan.vms).any(|(vm, plan)| plan.evict > Pages(0)
            || (vm.agent_alive && !plan.blocked && plan.balloon_target > vm.ballooned));
        prop_assert_eq!(plan.stuck.is_some(), plan.shortfall > Pages(0) && !moves);
        let cap = |vm: &VmSnapshot| fair::demand(vm, &config).min(vm.max());
        let used = sum(host.vms.iter().zip(&plan.vms).map(|(vm, plan)| plan.target.min(cap(vm))));
        let mut promises = BTreeMap::new();
        Node::pool(&host, &config, 0).promises(&host, &mut promises);
        prop_assert!(used <= plan.available.0.max(promises[&0].0), "{used} of {:?}", plan.available);
    }

    /// With scalable shares everywhere and normal pools, a VM is worth the same in every pool.
    #[test]
    fn scalable_shares_make_normal_pools_mere_folders(host in host_with_pools(), config in config()) {
        let mut host = host;
        for pool in &mut host.resource_pools {
            (pool.reservation, pool.limit, pool.scalable) = (Pages(0), None, true);
            pool.shares = NORMAL_POOL_SHARES;
        }
        // What a VM does not want goes to those in its pool first, so all want all, and use it.
        for vm in &mut host.vms {
            let size = vm.size;
            *vm = VmSnapshot { shares: vm.shares.max(1), resident: size, resource_pool: vm.resource_pool, id: vm.id, ..VmSnapshot::new(vm.id, size) };
            (vm.resident, vm.untouched) = (size, Pages(0));
        }
        let smallest = host.vms.iter().map(|vm| vm.size.0 / u64::from(vm.shares)).min().unwrap_or(0);
        let shares: u64 = host.vms.iter().map(|vm| u64::from(vm.shares)).sum();
        let available = Pages(shares * smallest);
        let tree = fair::divide(&Esx, &host, available, &config);
        host.vms.iter_mut().for_each(|vm| vm.resource_pool = 0);
        let flat = fair::divide(&Esx, &host, available, &config);
        for (tree, flat) in tree.vms.iter().zip(&flat.vms) {
            prop_assert!(tree.target.0.abs_diff(flat.target.0) <= 8, "{tree:?} {flat:?}");
        }
    }

    /// VMs that are admitted, move and change what they reserve: no pool ever promises more than it may, and nobody is
    /// refused for whom there is room.
    #[test]
    fn moves_never_break_a_promise(
        host in small_host(),
        limits in proptest::collection::vec(proptest::option::of(100_u64..400), 8),
        shared in proptest::collection::vec(0_u64..=100, 8),
        share_reserve_percent in 0_u32..=100,
        moves in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0_u64..60), 1..30),
    ) {
        let config = Config { min_free_percent: 6, share_reserve_percent, ..Config::default() };
        let mut host = host;
        for (vm, percent) in host.vms.iter_mut().zip(shared) {
            vm.shared = Pages(vm.untouched.0 * percent / 100);
            vm.untouched.0 -= vm.shared.0;
            vm.sharing_saved = Pages(vm.shared.0 / 2);
        }
        for (pool, limit) in host.resource_pools.iter_mut().zip(limits) {
            pool.limit = limit.map(Pages).filter(|limit| *limit >= pool.reservation);
        }
        host.budget = Pages(2000);
        host.used = Pages(100 + sum(host.vms.iter().map(VmSnapshot::backing)));
        host.vms.iter_mut().for_each(|vm| vm.reservation = Pages(0));
        let room = |host: &HostSnapshot| {
            let mut promises = BTreeMap::new();
            Node::pool(host, &config, 0).promises(host, &mut promises);
            let keeps = Thresholds::of_host(host, &config).aim.0 + host.overhead().0;
            promises.get_mut(&0).expect("the root").1 = host.budget.0 - keeps;
            promises
        };
        prop_assume!(room(&host).values().all(|(promised, may)| promised <= may));
        for (vm, place, reservation) in moves {
            let vm = vm.index(host.vms.len());
            let mut after = host.clone();
            after.vms[vm].resource_pool = place.index(host.resource_pools.len());
            after.vms[vm].reservation = Pages(reservation).min(after.vms[vm].size);
            let asked = Asked { reservation: after.vms[vm].reservation, overhead: Pages(0), by_pool: false };
            let [before, then] = [&host, &after].map(|host| Ledger::of(host, &config));
            let fits = room(&after).values().all(|(promised, may)| promised <= may);
            let allowed = before.allows(&then, &after, asked);
            prop_assert_eq!(allowed.is_ok(), fits, "{:?}", allowed);
            // What the ledger says is left in a pool is what is admitted there, to the page.
            let left = before.unreserved(&host, host.vms[vm].resource_pool);
            let vm_of = |reservation| VmParams {
                size: Pages(100_000), reservation, limit: None, overhead: Pages(0),
                resource_pool: host.vms[vm].resource_pool,
            };
            prop_assert_eq!(admit(&host, &config, &vm_of(left)), Ok(()));
            prop_assert!(admit(&host, &config, &vm_of(Pages(left.0 + 1))).is_err());
            if fits {
                host = after;
            }
        }
    }
}

fn tree_of(host: HostSnapshot, pools: &[(&str, usize, u32)]) -> HostSnapshot {
    let root = ResourcePool {
        name: "root".to_owned(),
        ..ResourcePool::default()
    };
    let pools = pools.iter().map(|(name, parent, shares)| ResourcePool {
        name: (*name).to_owned(),
        parent: *parent,
        shares: *shares,
        expandable: true,
        ..ResourcePool::default()
    });
    HostSnapshot {
        resource_pools: std::iter::once(root).chain(pools).collect(),
        ..host
    }
}

/// The trap: four VMs in a pool with twice the shares of the one beside it get half of what its only VM gets.
#[test]
fn shares_of_a_pool_do_not_grow_with_its_vms_unless_they_are_scalable() {
    let vm = |resource_pool| VmSnapshot {
        resource_pool,
        ..VmSnapshot::sample(10_000, 10_000)
    };
    let vms = [1, 1, 1, 1, 2].map(vm).to_vec();
    let host = host_of(vms, 100_000, FreeState::Hard, 0);
    let mut host = tree_of(
        host,
        &[
            ("high", 0, 2 * NORMAL_POOL_SHARES),
            ("normal", 0, NORMAL_POOL_SHARES),
        ],
    );
    let targets = |host: &HostSnapshot| -> Vec<u64> {
        let division = fair::divide(&Esx, host, Pages(9000), &Config::default());
        division.vms.iter().map(|vm| vm.target.0).collect()
    };
    assert_eq!(targets(&host), [1500, 1500, 1500, 1500, 3000]);
    host.resource_pools[0].scalable = true;
    assert_eq!(targets(&host), [2000, 2000, 2000, 2000, 1000]);
}

/// ESX's example of an expandable reservation, and what is said where it does not fit.
#[test]
fn error_says_which_pool_is_short_by_how_much_and_what_is_allowed() {
    let config = Config {
        min_free_percent: 6,
        ..Config::default()
    };
    let mib = |mib: u64| Pages(mib * 256);
    let mut host = tree_of(
        host_of(Vec::new(), mib(1024).0, FreeState::High, 0),
        &[("parent", 0, 1), ("child", 1, 1)],
    );
    host.resource_pools[1].reservation = mib(64);
    host.resource_pools[1].expandable = false;
    host.resource_pools[2].reservation = mib(16);
    let ask = |host: &HostSnapshot, reservation| {
        let vm = VmParams {
            size: mib(512),
            reservation,
            limit: None,
            overhead: Pages(0),
            resource_pool: 2,
        };
        admit(host, &config, &vm).map_err(|refusal| refusal.to_string())
    };
    assert_eq!(ask(&host, mib(64)), Ok(()));
    assert_eq!(
        ask(&host, mib(80)).expect_err("too much"),
        "reservation 80.0 MiB does not fit into resource pool `parent`: it is not expandable, and of its reservation \
         of 64.0 MiB, 48.0 MiB is not reserved yet, so 16.0 MiB is missing; at most 64.0 MiB is allowed"
    );
    host.resource_pools[2].expandable = false;
    let error = ask(&host, mib(64)).expect_err("too much");
    assert!(
        error.contains("`child`") && error.contains("48.0 MiB is missing; at most 16.0 MiB"),
        "{error}"
    );
    host.resource_pools[2].expandable = true;
    host.resource_pools[2].limit = Some(mib(32));
    let error = ask(&host, mib(64)).expect_err("too much");
    assert!(
        error.contains("`child`: of its limit of 32.0 MiB") && error.contains("at most 32.0 MiB"),
        "{error}"
    );
}
