//! The host as the policy sees it: counts, gathered from everywhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::member::Member;
use crate::page::{Budget, Home};
use crate::policy::{FreeState, HostSnapshot, VmSnapshot};
use crate::units::{FrameId, Pages, VmId};

/// The whole host. `active` tells what each VM is estimated to use, `seed` differs from snapshot to
/// snapshot.
pub(super) fn snapshot(
    budget: &Budget,
    members: &[Arc<Member>],
    (state, seed): (FreeState, u64),
    active: impl Fn(VmId) -> Option<Pages>,
) -> HostSnapshot {
    let vm = |member: &Arc<Member>| vm_snapshot(member, active(member.vm.id));
    HostSnapshot {
        budget: budget.total(),
        used: budget.used(),
        least_free: Some(budget.take_least_free()),
        state,
        vms: members.iter().map(vm).collect(),
        seed,
    }
}

/// A VM that is admitted and does not run yet, of this size and reservation.
pub(super) fn only_promised((size, reservation): (Pages, Pages)) -> VmSnapshot {
    VmSnapshot {
        id: VmId(0),
        size,
        reservation,
        limit: None,
        shares: 0,
        resident: Pages(0),
        shared: Pages(0),
        sharing_saved: Pages(0),
        compressed: Pages(0),
        zip_pages: Pages(0),
        zip_room: Pages(0),
        swapped: Pages(0),
        ballooned: Pages(0),
        zero: Pages(0),
        untouched: size,
        agent: false,
        agent_alive: false,
        balloon_brings: None,
        balloon_by_hand: None,
        balloon_max: Pages(0),
        relief: None,
        active: None,
        swap_room: Pages(0),
        swap_failing: false,
        mute: false,
        pressing: false,
    }
}

fn vm_snapshot(member: &Member, active: Option<Pages>) -> VmSnapshot {
    let vm = &member.vm;
    let settings = member.settings();
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
    let swap = vm.swap.stats();
    let exhausted = vm.exhausted();
    let room = |pages: u64, exhausted: bool| Pages(if exhausted { 0 } else { pages });
    VmSnapshot {
        id: vm.id,
        size,
        reservation: settings.reservation,
        limit: settings.limit,
        shares: settings.shares.count(size.0),
        resident,
        shared,
        sharing_saved: sharing_saved(member),
        compressed,
        zip_pages: Pages(zip_pages),
        zip_room: room(zip_max.saturating_sub(zip_pages), exhausted.compress),
        swapped,
        ballooned,
        zero,
        untouched,
        agent: member.balloon.attached.load(Ordering::Relaxed),
        agent_alive: member.balloon.is_waited_for(),
        balloon_brings: member.balloon.brings(),
        balloon_by_hand: vm.orders.manual(),
        balloon_max: member.balloon.max(),
        relief: member.balloon.relief(),
        active,
        swap_room: room(swap.slots.saturating_sub(swap.used).0, exhausted.swap),
        swap_failing: vm.is_swap_failing(),
        mute: member.is_mute(),
        // What waits for its own balloon needs no help while that comes.
        pressing: vm.is_at_ceiling() && vm.parking.is_starved() && !member.balloon.inflates(),
    }
}

/// What sharing saves this VM: its part of what its pool saves, by the number of its shared pages.
/// Which frame has how many users is known, but adding that up page by page would cost more than the
/// policy gains by it; the sum over all VMs is exact.
pub(super) fn sharing_saved(member: &Member) -> Pages {
    let counts = member.vm.pool().counts();
    let shared = member.vm.table.count(Home::Shared(FrameId(0)));
    let saved = counts.saved().0;
    Pages(shared.min(shared * saved / counts.refs.0.max(1)))
}
