//! The host as the policy sees it: counts, gathered from everywhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::member::Member;
use super::resource_pools;
use crate::page::{Budget, Home};
use crate::policy::{FreeState, HostSnapshot, ResourcePool, VmSnapshot};
use crate::settings::VmSettings;
use crate::units::{FrameId, Pages, VmId};
use crate::vm::Vm;

/// The whole host, at the time `now`, without the least that was free: taking that begins it anew, which is for the
/// policy alone. `active` returns what a VM is estimated to use; `seed` is different in each snapshot.
pub(super) fn snapshot(
    budget: &Budget,
    members: &[Arc<Member>],
    resource_pools: &[ResourcePool],
    (state, seed): (FreeState, u64),
    now: Instant,
    active: impl Fn(VmId) -> Option<Pages>,
) -> HostSnapshot {
    let vm = |member: &Arc<Member>| VmSnapshot {
        resource_pool: resource_pools::place(resource_pools, &member.settings().pool),
        ..vm_snapshot(member, now, active(member.vm.id))
    };
    HostSnapshot {
        budget: budget.total(),
        used: budget.used(),
        least_free: None,
        resource_pools: resource_pools.to_vec(),
        state,
        vms: members.iter().map(vm).collect(),
        seed,
    }
}

fn vm_snapshot(member: &Member, now: Instant, active: Option<Pages>) -> VmSnapshot {
    let vm = &member.vm;
    let without_balloon = of_vm(vm, &member.settings(), now, active);
    VmSnapshot {
        sharing_saved: sharing_saved(member),
        agent: member.balloon.connected.load(Ordering::Relaxed),
        agent_alive: member.balloon.is_waited_for(),
        balloon_brings: member.balloon.brings(),
        balloon_max: member.balloon.max(),
        relief: member.balloon.relief(),
        balloon_free: member.balloon.free(),
        guest_stall_us_per_s: member.balloon.guest_stall(now),
        mute: member.is_silent(),
        // Faults that wait at the ceiling need no eviction while the VM's own balloon grows.
        pressing: without_balloon.pressing && !member.balloon.inflates(),
        ..without_balloon
    }
}

/// A VM as its table, its stores and its orders show it: one that shares nothing, has no balloon agent, and answers.
pub(crate) fn of_vm(
    vm: &Vm,
    settings: &VmSettings,
    now: Instant,
    active: Option<Pages>,
) -> VmSnapshot {
    let size = Pages(u64::from(vm.params.pages));
    let [
        untouched,
        zero,
        resident,
        shared,
        compressed,
        swapped,
        ballooned,
    ] = vm.table.counts().map(Pages);
    let (zip_pages, zip_max) = {
        let zip = vm.zip.lock();
        (u64::from(zip.pages_used()), u64::from(zip.max_pages()))
    };
    let exhausted = vm.exhausted(now);
    let room = |pages: u64, exhausted: bool| Pages(if exhausted { 0 } else { pages });
    VmSnapshot {
        id: vm.id,
        size,
        reservation: settings.reservation,
        limit: settings.limit,
        shares: settings.shares.count(size.0),
        resident,
        shared,
        compressed,
        zip_pages: Pages(zip_pages),
        zip_room: room(zip_max.saturating_sub(zip_pages), exhausted.compress),
        swapped,
        ballooned,
        zero,
        untouched,
        balloon_by_hand: vm.orders.manual(),
        active,
        stall_us_per_s: vm.stalls.refills_us_per_s(),
        early_us_per_s: vm.refaults.us_per_s(),
        left_lately: vm.refaults.remembered(),
        swap_room: room(vm.swap.room().0, exhausted.swap),
        swap_failing: vm.is_swap_failing() && !vm.swap.takes_cached(),
        pressing: vm.is_at_ceiling() && vm.parking.is_starved(),
        ..VmSnapshot::default()
    }
}

/// What sharing saves this VM: its part of what its pool saves, in proportion to its shared pages. The
/// users of each frame are known, but adding them up page by page would cost more than the policy gains by
/// it. The sum over all VMs is exact.
pub(super) fn sharing_saved(member: &Member) -> Pages {
    let counts = member.vm.pool().counts();
    let shared = member.vm.table.count(Home::Shared(FrameId(0)));
    let saved = counts.saved().0;
    // The counts of the pool and of the VM are of different moments, so the quotient may exceed the pages.
    Pages(shared.min(shared * saved / counts.refs.0.max(1)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::rig::{Rig, hello};
    use super::*;
    use crate::page::Urgency;
    use crate::vm::Means;

    /// The room that the snapshot shows in the swap file and the compression cache of the only VM.
    fn room(rig: &Rig, now: Instant) -> [Pages; 2] {
        let seen = (FreeState::High, 0);
        let host = snapshot(&rig.budget, &rig.members.all(), &[], seen, now, |_| None);
        [host.vms[0].swap_room, host.vms[0].zip_room]
    }

    /// A guest is admitted by a snapshot too.
    #[test]
    fn least_that_was_free_is_left_to_the_policy() {
        let rig = Rig::new(None);
        let now = Instant::now();
        let free = rig.budget.take_least_free();
        assert!(rig.budget.take(8, Urgency::Reclaim));
        rig.budget.give(8);
        let _ = snapshot(&rig.budget, &[], &[], (FreeState::High, 0), now, |_| None);
        assert_eq!(rig.budget.take_least_free(), Pages(free.0 - 8));
    }

    #[test]
    fn eviction_that_found_nothing_is_worth_another_try_a_second_later() {
        let rig = Rig::new(None);
        let vm = rig.run(&hello("a", 1024));
        vm.vm.zip.lock().set_max_pages(100);
        let now = Instant::now();
        let all = room(&rig, now);
        assert!(all[0] > Pages(0) && all[1] > Pages(0), "{all:?}");
        let swap = Means {
            compress: false,
            swap: true,
        };
        vm.vm.note_evicted(Pages(0), swap, now);
        assert_eq!(room(&rig, now), [Pages(0), all[1]]);
        let almost = Duration::from_millis(999);
        assert_eq!(room(&rig, now + almost), [Pages(0), all[1]]);
        assert_eq!(room(&rig, now + Duration::from_secs(1)), all);
        vm.vm.note_evicted(Pages(1), swap, now);
        assert_eq!(room(&rig, now), all);
    }
}
