//! Balloon targets: how many pages each balloon is to hold, and within which bounds.
//!
//! The target of a balloon comes from a control law (`law`), which may be wrong. What holds whatever a law says is here:
//! the maxima of host and VM, the reservation, the limit, relief, and that a state which gives nothing leaves
//! each balloon what it has.

use serde::{Deserialize, Serialize};

use super::fair::Allotment;
use super::law::{self, Memory, Seen};
use super::mechanisms::Rules;
use super::plan::VmPlan;
use super::snapshot::{HostSnapshot, VmSnapshot};
use super::{Config, percent_of, total};
use crate::units::Pages;

/// The guest pages that the balloon of a VM is to hold, and what its law remembers: no part of its reservation, and no
/// more than its own and the host-wide maximum, even if the size was set by hand. A balloon without an agent
/// stays as it is.
pub(super) fn target(
    host: &HostSnapshot,
    vm: &VmSnapshot,
    part: Allotment,
    (rules, config): (&Rules, &Config),
) -> (Pages, Memory) {
    // Nobody moves the balloon, so any other target would be one that is never reached.
    if !vm.agent {
        return (vm.ballooned, Memory::default());
    }
    // Before all rules, but not beyond the cap, which keeps the reservation.
    if let Some(by_hand) = vm.balloon_by_hand {
        return (by_hand.min(cap(vm, config)), Memory::default());
    }
    let (least, most) = range(vm, rules, config);
    law::follow(&Seen {
        vm,
        part,
        config,
        budget: host.budget,
        host_free: host.free(),
        state: rules.state,
        inflates: rules.mechanisms.inflate,
        least,
        most,
        elapsed_ms: vm.law_since_ms,
    })
}

/// The least and the most that a law may ask for.
fn range(vm: &VmSnapshot, rules: &Rules, config: &Config) -> (Pages, Pages) {
    let cap = cap(vm, config);
    let by_limit = asked_by_limit(vm);
    if config.balloon_takes_free_only {
        let most = spare(vm, config).min(cap);
        return (by_limit.min(most), most);
    }
    if rules.gives() {
        // A guest that asked for relief is pressed no further.
        let most = vm.relief.unwrap_or(cap).min(cap);
        (by_limit.min(most), most)
    } else {
        // A state that gives nothing leaves each balloon what it has.
        let least = by_limit.max(vm.ballooned).min(cap);
        let most = if rules.mechanisms.inflate { cap } else { least };
        (least, most)
    }
}

/// The size up to which the balloon of a VM takes only pages that its guest has free and that cost the host something,
/// and leaves the guest its headroom: a guest that pages to fill its balloon is slower than a host that compresses.
/// Nothing is asked of a guest that does not say how much it has free.
fn spare(vm: &VmSnapshot, config: &Config) -> Pages {
    // Pages that the balloon already holds were free as well, and may have cost nothing.
    let costs_nothing = total([vm.untouched, vm.zero, vm.ballooned]);
    let kept = percent_of(vm.size, config.headroom_percent).max(costs_nothing);
    vm.balloon_free.unwrap_or_default().saturating_sub(kept)
}

/// The pages that the balloon must hold because of the limit alone, which binds in every state.
fn asked_by_limit(vm: &VmSnapshot) -> Pages {
    // Evicted pages count: the guest will touch them again.
    let wanted = total([vm.resident, vm.shared, vm.compressed, vm.swapped]);
    if wanted > vm.max() {
        vm.size.saturating_sub(vm.max())
    } else {
        Pages(0)
    }
}

/// The most the balloon of a VM may hold.
fn cap(vm: &VmSnapshot, config: &Config) -> Pages {
    bound(vm, config).0
}

/// The most the balloon may hold, and the bound that says so. Of equal bounds, the first in the order host,
/// reservation, VM.
pub(super) fn bound(vm: &VmSnapshot, config: &Config) -> (Pages, BalloonBound) {
    let host = percent_of(vm.size, config.balloon_max_percent);
    let reservation = vm.size.saturating_sub(vm.min());
    if host <= vm.balloon_max && host <= reservation {
        (host, BalloonBound::Host)
    } else if reservation <= vm.balloon_max {
        (reservation, BalloonBound::Reservation)
    } else {
        (vm.balloon_max, BalloonBound::Vm)
    }
}

/// What keeps a balloon from growing further.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalloonBound {
    /// The host's maximum, a percentage of the VM's size (`Mem.CtlMaxPercent`).
    Host,
    /// The VM's own maximum (`sched.mem.maxmemctl`).
    Vm,
    /// The VM's reservation, which no balloon touches.
    Reservation,
}

/// The pages that the balloon of a VM can still be expected to bring in time.
pub(super) fn pending(vm: &VmSnapshot, plan: &VmPlan) -> Pages {
    if !vm.agent || !vm.agent_alive {
        return Pages(0);
    }
    let owed = plan.balloon_target.saturating_sub(vm.ballooned);
    // What it will not bring in time is taken by other means meanwhile.
    vm.balloon_brings.map_or(owed, |brings| owed.min(brings))
}
