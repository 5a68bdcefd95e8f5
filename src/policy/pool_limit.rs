//! Limits of resource pools.
//!
//! A limit binds however much memory is free. For one VM that is simple: what it holds above its limit is taken. If a
//! pool was watched in the same way, its VMs would grow past the limit between two plans, and the host would have to
//! choose afterwards from which of them to take it. So a limit is handed down before anything else is decided: it is
//! divided among those in the pool by the same rule as memory is, and each VM's part is its own limit until the next
//! plan. Parts add up to no more than the limit, so it holds at any moment as surely as the limits of VMs do.
//!
//! A part has room to grow, as long as the pool has any. A VM whose faults wait at its part counts as wanting a step
//! more, and gets it from what the others in the pool do not use.

use std::borrow::Cow;

use super::claim::{Claim, Claims};
use super::fair::{self, Allotment, Satisfied};
use super::policies::Policy;
use super::resource_pool::{Child, Tree};
use super::snapshot::{HostSnapshot, VmSnapshot};
use super::{Config, total};
use crate::units::Pages;

/// A host in which each VM has as its limit what the limits of the pools around it leave.
pub(super) struct Limited<'a> {
    pub host: Cow<'a, HostSnapshot>,
    /// Of each pool, whether its limit is less than what those in it want.
    pub binds: Vec<bool>,
}

/// Hands the limits of pools down to their VMs. The host must be believable.
pub(super) fn hand_down<'a, P: Policy + ?Sized>(
    policy: &P,
    host: &'a HostSnapshot,
    config: &Config,
) -> Limited<'a> {
    let mut binds = vec![false; host.pools()];
    let limits: Vec<Option<Pages>> = host.resource_pools.iter().map(|pool| pool.max()).collect();
    if limits.iter().skip(1).all(Option::is_none) {
        let host = Cow::Borrowed(host);
        return Limited { host, binds };
    }
    // Reserved memory is not lent within a limit: else the parts of those who reserved it and of those who borrow it
    // would be more than the limit together.
    let claims = Claims::of(policy, host, config, |vm| wanted(vm, config), false);
    let tree = Tree::of(host);
    let mut limited = host.clone();
    let mut given: Vec<Option<Pages>> = vec![None; host.pools()];
    for pool in 0..host.pools() {
        let own = limits.get(pool).copied().flatten().filter(|_| pool > 0);
        let most = [given[pool], own].into_iter().flatten().min();
        // A limit that is no less than all that could be held keeps nobody from anything.
        let Some(most) = most.filter(|most| *most < claims.pools[pool].whole.cap) else {
            continue;
        };
        let part = Allotment {
            target: most,
            entitled: most,
            satisfied: Satisfied::Balloons,
        };
        let inner: Vec<&Claim> = claims.all(tree.of_pool(pool)).collect();
        let (parts, level) = fair::share_out(&inner, part);
        binds[pool] = level.is_some();
        for (child, part) in tree.of_pool(pool).iter().zip(parts) {
            match *child {
                Child::Vm(at) => {
                    let vm = &mut limited.vms[at];
                    vm.limit = Some(part.target.min(vm.max()));
                }
                Child::Pool(at) => given[at] = Some(part.target),
            }
        }
    }
    let host = Cow::Owned(limited);
    Limited { host, binds }
}

/// What a VM wants, for the division of a limit. One that waits for more wants a 64th of its size more, at least
/// 256 KiB and at most 16 MiB: others in the pool may have to give as much, before it has used it.
fn wanted(vm: &VmSnapshot, config: &Config) -> Pages {
    let step = if vm.pressing {
        Pages((vm.size.0 / 64).clamp(64, 4096))
    } else {
        Pages(0)
    };
    total([fair::demand(vm, config), step])
}
