//! ESX's law: the target follows from what the VM may hold, at once.
//!
//! A VM that holds more than it is entitled to is ballooned to `size - entitled`, because then the guest cannot hold
//! more whichever pages it gives up first, also pages it never touched.
//!
//! A VM that holds no more than it is entitled to is never asked for more than its balloon already holds. Its
//! balloon shrinks as its target rises, and when the VM is about to need pages that the host can spare. The
//! balloon is not returned faster: a guest with room would only fill it until the host is short, and then lose
//! it again, in a slow swing. Balloons are returned in full once all of them can be.

use super::super::{fair, total};
use super::{Law, Memory, Satisfied, Seen, Step};
use crate::units::Pages;

/// See the module text.
#[derive(Clone, Copy, Debug)]
pub struct Esx;

impl Law for Esx {
    fn name(&self) -> &'static str {
        "esx"
    }

    fn about(&self) -> &'static str {
        "to what the VM may hold, at once, as ESX does"
    }

    fn step(&self, seen: &Seen<'_>, _: &mut Memory) -> Step {
        let asked = if seen.inflates { asked(seen) } else { Pages(0) };
        Step::at_once(if seen.config.balloon_takes_free_only {
            asked
        } else {
            asked.max(kept(seen))
        })
    }
}

/// The pages that the balloon of a VM must hold because the VM wants more than it may have.
fn asked(seen: &Seen<'_>) -> Pages {
    if seen.counted() > seen.part.entitled {
        seen.vm.size.saturating_sub(seen.part.entitled)
    } else {
        Pages(0)
    }
}

/// What the balloon keeps of a VM that is within its fair part.
///
/// A balloon that shrinks turns what it loses into room of the guest. Only the sum of the two decides, so the
/// target is the same at every step down. A target computed from the balloon's size alone would move with the
/// balloon, and get stuck half way if the balloon did.
fn kept(seen: &Seen<'_>) -> Pages {
    let (vm, part) = (seen.vm, seen.part);
    let kept = match part.satisfied {
        Satisfied::Balloons => Pages(0),
        Satisfied::Demands => {
            total([vm.ballooned, fair::room(vm)]).saturating_sub(fair::headroom(vm, seen.config))
        }
        Satisfied::Short => vm.ballooned,
    };
    // Guest pages above the limit are never backed, so the balloon may as well keep as many.
    let above_limit = vm.size.saturating_sub(vm.max());
    kept.max(above_limit)
        .min(vm.ballooned)
        .min(vm.size.saturating_sub(part.target))
}
