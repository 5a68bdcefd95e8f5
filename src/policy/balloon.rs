//! Balloon targets: how many pages each balloon is to hold.
//!
//! They follow from allocation targets, never from how far a balloon has come: a loop that adds to
//! what it finds swings with the delay of the guests. A VM that holds more than it is
//! entitled to is ballooned to `size - entitled`, because then the guest cannot hold more whichever
//! pages it gives up first, also pages it never touched.
//!
//! A VM that holds no more than it is entitled to is never asked for more than its balloon already holds. Its
//! balloon shrinks as its target rises, and when the VM is about to need pages that the host can spare. The
//! balloon is not returned faster: a guest with room would only fill it until the host is short, and then lose
//! it again, in a slow swing. Balloons are returned in full once all of them can be.

use serde::{Deserialize, Serialize};

use super::fair::{self, Allotment, Satisfied};
use super::mechanisms::Rules;
use super::plan::VmPlan;
use super::snapshot::VmSnapshot;
use super::{Config, percent_of, total};
use crate::units::Pages;

/// The guest pages that the balloon of a VM is to hold: no part of its reservation, and no more
/// than its own and the host-wide maximum, even if the size was set by hand. A balloon without an agent
/// stays as it is.
pub(super) fn target(
    vm: &VmSnapshot,
    allotment: Allotment,
    rules: &Rules,
    config: &Config,
) -> Pages {
    // Nobody moves the balloon, so any other target would be one that is never reached.
    if !vm.agent {
        return vm.ballooned;
    }
    let cap = cap(vm, config);
    // Before all rules, but not beyond the cap, which keeps the reservation.
    if let Some(by_hand) = vm.balloon_by_hand {
        return by_hand.min(cap);
    }
    let asked = if rules.mechanisms.inflate {
        asked(vm, allotment, rules)
    } else {
        asked_by_limit(vm)
    };
    if config.balloon_takes_free_only {
        return asked.min(spare(vm, config)).min(cap);
    }
    if rules.gives() {
        // A guest that asked for relief is pressed no further.
        let most = vm.relief.unwrap_or(cap).min(cap);
        asked.max(kept(vm, allotment, config)).min(most)
    } else {
        // A state that gives nothing leaves each balloon what it has.
        asked.max(vm.ballooned).min(cap)
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

/// The pages that the balloon of a VM must hold because the VM wants more than it may have.
///
/// While the host is short, and against the limit always, evicted pages count as wanted: the guest
/// will touch them again, and only a balloon makes it want less.
fn asked(vm: &VmSnapshot, allotment: Allotment, rules: &Rules) -> Pages {
    let counted = if rules.state.is_short() {
        wanted(vm)
    } else {
        vm.allocation()
    };
    if counted > allotment.entitled {
        vm.size.saturating_sub(allotment.entitled)
    } else {
        asked_by_limit(vm)
    }
}

/// The pages that the balloon must hold because of the limit alone, which binds in every state.
fn asked_by_limit(vm: &VmSnapshot) -> Pages {
    if wanted(vm) > vm.max() {
        vm.size.saturating_sub(vm.max())
    } else {
        Pages(0)
    }
}

/// The guest pages with content, wherever they are: the guest may want to use all of them.
fn wanted(vm: &VmSnapshot) -> Pages {
    total([vm.resident, vm.shared, vm.compressed, vm.swapped])
}

/// What the balloon keeps of a VM that is within its fair part.
///
/// A balloon that shrinks turns what it loses into room of the guest. Only the sum of the two decides, so the
/// target is the same at every step down. A target computed from the balloon's size alone would move with the
/// balloon, and get stuck half way if the balloon did.
fn kept(vm: &VmSnapshot, allotment: Allotment, config: &Config) -> Pages {
    let kept = match allotment.satisfied {
        Satisfied::Balloons => Pages(0),
        Satisfied::Demands => {
            total([vm.ballooned, fair::room(vm)]).saturating_sub(fair::headroom(vm, config))
        }
        Satisfied::Short => vm.ballooned,
    };
    // Guest pages above the limit are never backed, so the balloon may as well keep as many.
    let above_limit = vm.size.saturating_sub(vm.max());
    kept.max(above_limit)
        .min(vm.ballooned)
        .min(vm.size.saturating_sub(allotment.target))
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
