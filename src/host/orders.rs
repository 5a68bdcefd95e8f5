//! Hands a plan to those who carry it out: marks to the budget, orders to VMs.

use crate::page::Budget;
use crate::policy::{Config, HostSnapshot, Plan, Stuck, Thresholds, VmPlan, VmSnapshot};
use crate::units::Pages;
use crate::vm::{Blocked, Eviction, Means, Vm};

/// Sets the marks of free memory at which workers reclaim, the policy is called and VMs wait, as planned for `host`.
pub(crate) fn set_marks(budget: &Budget, host: &HostSnapshot, config: &Config, plan: &Plan) {
    let thresholds = Thresholds::of_host(host, config);
    let below = thresholds.below(plan.state);
    // The next threshold down: to cross it is what calls the policy before its time.
    budget.set_marks(below, plan.aim, thresholds.low);
    budget.set_floor(plan.floor);
}

/// Gives a VM that was seen like this its orders. Returns whether its faults were blocked or unblocked, and how.
pub(crate) fn give(
    vm: &Vm,
    plan: &VmPlan,
    seen: &VmSnapshot,
    stuck: Option<Stuck>,
) -> Option<Blocked> {
    // The policy counts the pages of the compression cache too, but faults cannot: they are subtracted here.
    let beside_cache = |pages: Pages| pages.saturating_sub(seen.zip_pages);
    let orders = &vm.orders;
    orders.set_promised(beside_cache(seen.min()));
    if orders.set_ceiling(plan.ceiling.map(beside_cache)) {
        // Faults that wait at the old ceiling may go on.
        vm.wake_barred();
    }
    orders.set_targets(plan.balloon_target, plan.target, plan.swap_target);
    orders.set_entitlement(plan.entitled);
    let means = Means {
        compress: plan.means.compress,
        swap: plan.means.swap,
    };
    orders.set_evict(Eviction {
        pages: plan.evict,
        means,
        always: plan.by_limit,
    });
    let blocked = match (plan.blocked, stuck) {
        (false, _) => Blocked::No,
        (true, None) => Blocked::All,
        (true, Some(_)) => Blocked::Touches,
    };
    if !orders.set_blocked(blocked) {
        return None;
    }
    // Faults that waited may go on now; if not, they try in vain and wait again.
    vm.parking.ring();
    Some(blocked)
}
