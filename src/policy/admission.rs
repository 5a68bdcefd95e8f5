//! Admission: whether one more reservation can be promised.
//!
//! A reservation is a promise that holds whatever the other VMs do, so it is checked once, before
//! the VM exists, against what is not promised yet. The memory that must stay free is never promised:
//! if it were, VMs that use their reservations would keep the host short for ever.
//!
//! With resource pools each pool makes promises out of its own reservation. What those in it are promised beyond that,
//! an *expandable* pool takes from its parent, which may take it from its own; a pool that is not expandable refuses.
//! A [`Ledger`] has what every pool promises and what it may promise. Whatever changes, a VM that is powered on or
//! moves, a reservation, a pool, the change is made in a copy, and refused if any pool then promises more beyond what it
//! may than it did before. "More" matters: a host on which promises have become too many, because it keeps more free
//! than it did, must still take changes that mend it.

use std::fmt;

use thiserror::Error;

use super::resource_pool::{Child, ROOT, Tree};
use super::snapshot::{HostSnapshot, VmSnapshot};
use super::{Config, Thresholds, total};
use crate::units::{Pages, VmId};

/// What a new VM asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmParams {
    /// Its configured memory, in guest pages.
    pub size: Pages,
    /// Guest pages that are never taken from it once it holds them.
    pub reservation: Pages,
    /// The most guest pages that are ever backed. None: its size.
    pub limit: Option<Pages>,
    /// Host pages of metadata that it costs from the start. They are the host's: no pool is charged with them.
    pub overhead: Pages,
    /// The resource pool that it is to be in, by its place in the list.
    pub resource_pool: usize,
}

/// What bounds the promises of a resource pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolBound {
    /// Its reservation, because it is not expandable.
    Reservation,
    /// Its limit.
    Limit,
}

impl fmt::Display for PoolBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reservation => "it is not expandable, and of its reservation",
            Self::Limit => "of its limit",
        })
    }
}

/// Why a promise is not made.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Refusal {
    /// It could never hold its reservation.
    #[error(
        "the reservation is {reservation}: at most {max} is allowed, the lesser of size and limit",
        reservation = .reservation.bytes(), max = .max.bytes()
    )]
    AboveMax {
        /// The reservation asked for.
        reservation: Pages,
        /// The lesser of size and limit.
        max: Pages,
    },
    /// It asks for more than is not promised yet.
    #[error(
        "reservation {reservation} and overhead {overhead} exceed the unreserved {unreserved}: \
         of the budget of {budget}, {reserved} is reserved, {metadata} is metadata and {kept_free} \
         stays free{share_reserve}",
        reservation = .reservation.bytes(), overhead = .overhead.bytes(),
        unreserved = .unreserved.bytes(), budget = .budget.bytes(), reserved = .reserved.bytes(),
        metadata = .metadata.bytes(), kept_free = .kept_free.bytes(),
        share_reserve = for_shared_pages(*.share_reserve)
    )]
    Unreserved {
        /// The reservation asked for.
        reservation: Pages,
        /// The metadata of the new VM.
        overhead: Pages,
        /// What could still be promised.
        unreserved: Pages,
        /// All the host pages the daemon may use.
        budget: Pages,
        /// The sum of what is reserved at the root of the resource pools.
        reserved: Pages,
        /// The host pages of metadata now.
        metadata: Pages,
        /// The free pages that targets aim for.
        kept_free: Pages,
        /// Those of them that are for shared pages that are written.
        share_reserve: Pages,
    },
    /// It asks for more than a resource pool around it has left.
    #[error(
        "reservation {reservation} does not fit into resource pool `{pool}`: {bound} of {most}, {left} is not \
         reserved yet, so {missing} is missing; at most {allowed} is allowed",
        reservation = .reservation.bytes(), most = .most.bytes(), left = .left.bytes(),
        missing = .missing.bytes(), allowed = .reservation.saturating_sub(*.missing).bytes()
    )]
    Pool {
        /// The reservation asked for.
        reservation: Pages,
        /// The pool that is short.
        pool: String,
        /// What bounds it.
        bound: PoolBound,
        /// How much that is.
        most: Pages,
        /// What of that was not reserved.
        left: Pages,
        /// By how much the pool is short.
        missing: Pages,
    },
    /// A pool would have less than what it has promised.
    #[error(
        "resource pool `{pool}` has promised {promised} to those in it, but {bound} of {most}, so {missing} is missing; \
         take reservations from those in it first",
        promised = .promised.bytes(), most = .most.bytes(),
        missing = .promised.saturating_sub(*.most).bytes()
    )]
    Promised {
        /// The pool.
        pool: String,
        /// What those in it are promised.
        promised: Pages,
        /// What bounds it.
        bound: PoolBound,
        /// How much that is.
        most: Pages,
    },
}

/// What every resource pool promises, and what it may.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ledger {
    /// The names of the pools: a change may move them in the list.
    names: Vec<String>,
    /// What those in each pool are promised together.
    promised: Vec<Pages>,
    /// What each pool may promise by itself.
    most: Vec<Option<(Pages, PoolBound)>>,
    /// What each pool takes from its parent.
    charge: Vec<Pages>,
    host: Promises,
}

/// Whose settings a change is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The reservation asked for.
    pub reservation: Pages,
    /// The metadata of a VM that is powered on.
    pub overhead: Pages,
    /// Whether it is a pool that changes, and not a VM.
    pub by_pool: bool,
}

/// What of a host's memory is promised, and what can still be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Promises {
    /// The sum of what is reserved at the root of the resource pools.
    pub reserved: Pages,
    /// The host pages of metadata.
    pub metadata: Pages,
    /// What targets leave free, and not only `minFree`: otherwise reservations could not be met without being short.
    pub kept_free: Pages,
    /// What of that is for shared pages that are written. It changes with what sharing saves, and is no promise: what
    /// was promised before holds, and may take it.
    pub share_reserve: Pages,
    /// What is left for more reservations.
    pub unreserved: Pages,
}

impl Promises {
    /// Those of `host`.
    #[must_use]
    pub fn of(host: &HostSnapshot, config: &Config) -> Self {
        Ledger::of(host, config).host
    }

    /// The least budget with which they can be kept.
    #[must_use]
    pub fn needs(&self) -> Pages {
        total([self.reserved, self.metadata, self.kept_free])
    }
}

impl Ledger {
    /// That of `host`.
    #[must_use]
    pub fn of(host: &HostSnapshot, config: &Config) -> Self {
        let host = &*host.believable();
        let tree = Tree::of(host);
        let mut promised = vec![Pages(0); host.pools()];
        let mut charge = promised.clone();
        // From the end of the list: what is in a pool comes after it.
        for pool in (0..host.pools()).rev() {
            let inside = tree.of_pool(pool).iter().map(|child| match *child {
                Child::Vm(at) => host.vms[at].min(),
                Child::Pool(at) => charge[at],
            });
            promised[pool] = total(inside);
            let own = host.resource_pools.get(pool).filter(|_| pool != ROOT);
            charge[pool] = promised[pool].max(own.map_or(Pages(0), |pool| pool.min()));
        }
        let most = host.resource_pools.iter().map(|pool| {
            let limit = pool.limit.map(|limit| (limit, PoolBound::Limit));
            let own = (!pool.expandable).then(|| (pool.min(), PoolBound::Reservation));
            own.or(limit)
        });
        let (reserved, metadata) = (promised[ROOT], host.overhead());
        let thresholds = Thresholds::of_host(host, config);
        let (kept_free, share_reserve) = (thresholds.aim, thresholds.share_reserve);
        let names = host.resource_pools.iter().map(|pool| pool.name.clone());
        Self {
            names: names.collect(),
            promised,
            most: most.collect(),
            charge,
            host: Promises {
                reserved,
                metadata,
                kept_free,
                share_reserve,
                unreserved: (host.budget).saturating_sub(total([reserved, metadata, kept_free])),
            },
        }
    }

    /// What of the host's memory is promised.
    #[must_use]
    pub const fn host(&self) -> Promises {
        self.host
    }

    /// What those in a pool are promised together.
    #[must_use]
    pub fn promised(&self, pool: usize) -> Pages {
        self.promised.get(pool).copied().unwrap_or_default()
    }

    /// What can still be promised to those in a pool of `host`.
    #[must_use]
    pub fn unreserved(&self, host: &HostSnapshot, pool: usize) -> Pages {
        if pool == ROOT {
            return self.host.unreserved;
        }
        let of = &host.resource_pools[pool];
        let own = self.charge[pool].saturating_sub(self.promised[pool]);
        let around = if of.expandable {
            total([own, self.unreserved(host, of.parent)])
        } else {
            own
        };
        let limit = of
            .limit
            .map(|limit| limit.saturating_sub(self.promised[pool]));
        limit.map_or(around, |limit| around.min(limit))
    }

    fn most_of(&self, pool: usize) -> Option<(Pages, PoolBound)> {
        self.most
            .get(pool)
            .copied()
            .flatten()
            .filter(|_| pool != ROOT)
    }

    /// By how much a pool has promised more than it may.
    fn excess(&self, pool: usize) -> Pages {
        let most = self.most_of(pool).map(|(most, _)| most);
        most.map_or(Pages(0), |most| self.promised(pool).saturating_sub(most))
    }

    /// By how much the host has promised more than it has.
    fn host_excess(&self, budget: Pages) -> Pages {
        self.host.needs().saturating_sub(budget)
    }

    /// Whether a change to `after`, of which `host` is the snapshot, may be made.
    ///
    /// # Errors
    /// The pool that would promise more beyond what it may than it does now: the innermost one.
    pub fn allows(&self, after: &Self, host: &HostSnapshot, asked: Asked) -> Result<(), Refusal> {
        for at in (1..host.resource_pools.len()).rev() {
            let Some((most, bound)) = after.most_of(at) else {
                continue;
            };
            let pool = host.resource_pools[at].name.clone();
            let before = self.names.iter().position(|name| *name == pool);
            let of_before =
                |number: fn(&Self, usize) -> Pages| before.map_or(Pages(0), |at| number(self, at));
            let missing = after.excess(at).saturating_sub(of_before(Self::excess));
            if missing == Pages(0) {
                continue;
            }
            let (had, promised) = (of_before(Self::promised), after.promised(at));
            // Of a pool with more promises, whoever asks for them is refused; of one that can keep fewer, the pool.
            return Err(if asked.by_pool && promised <= had {
                Refusal::Promised {
                    pool,
                    promised,
                    bound,
                    most,
                }
            } else {
                let left = most.saturating_sub(had);
                Refusal::Pool {
                    reservation: asked.reservation,
                    pool,
                    bound,
                    most,
                    left,
                    missing,
                }
            });
        }
        if after.host_excess(host.budget) <= self.host_excess(host.budget) {
            return Ok(());
        }
        let Promises {
            reserved,
            metadata,
            kept_free,
            share_reserve,
            unreserved,
        } = self.host;
        Err(Refusal::Unreserved {
            reservation: asked.reservation,
            overhead: asked.overhead,
            unreserved,
            budget: host.budget,
            reserved,
            metadata,
            kept_free,
            share_reserve,
        })
    }
}

/// What of the memory that stays free is the share reserve, in words; nothing if there is none.
fn for_shared_pages(reserve: Pages) -> String {
    if reserve == Pages(0) {
        return String::new();
    }
    format!(
        ", {} of that for shared pages that are written (Memvisor.ShareReserve)",
        reserve.bytes()
    )
}

/// Whether a VM can be started on this host.
///
/// # Errors
///
/// The sums that do not allow it.
pub fn admit(host: &HostSnapshot, config: &Config, vm: &VmParams) -> Result<(), Refusal> {
    let max = vm.limit.unwrap_or(vm.size).min(vm.size);
    if vm.reservation > max {
        return Err(Refusal::AboveMax {
            reservation: vm.reservation,
            max,
        });
    }
    let mut after = host.clone();
    after.used = total([after.used, vm.overhead]);
    after.vms.push(VmSnapshot {
        reservation: vm.reservation,
        resource_pool: vm.resource_pool,
        ..VmSnapshot::new(VmId(0), vm.size)
    });
    let asked = Asked {
        reservation: vm.reservation,
        overhead: vm.overhead,
        by_pool: false,
    };
    Ledger::of(host, config).allows(&Ledger::of(&after, config), &after, asked)
}
