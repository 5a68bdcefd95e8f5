//! What a recorded trace says of this host and its VMs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memvisor_wire::system_error::cannot;
use nix::time::{ClockId, clock_gettime};

use super::configuration::Configuration;
use super::error::HostError;
use super::options::HostOptions;
use crate::page::{Budget, Witness};
use crate::policy::{ROOT, ResourcePool};
use crate::settings::{ROOT_POOL, VmSettings};
use crate::trace::Recorder;
use crate::trace::format::{HostFacts, PoolFacts, Pools, Stalls, VmFacts};
use crate::units::{Pages, VmId};
use crate::vm::{Cause, Stalled, VmParams};

/// Begins to record, if the options say so.
pub(super) fn start(
    options: &HostOptions,
    configuration: &Configuration,
    budget: &Budget,
) -> Result<Option<Recorder>, HostError> {
    let Some(limits) = &options.trace else {
        return Ok(None);
    };
    let clock = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(cannot("read the clock"))?;
    let began = Instant::now();
    let views = configuration.views().into_iter();
    let facts = HostFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        memory: budget.total(),
        overhead: budget.used(),
        policy: options.policy.name().to_owned(),
        settings: views
            .map(|view| (view.name, view.value.to_string()))
            .collect(),
        began_us: u64::try_from(Duration::from(clock).as_micros()).unwrap_or(u64::MAX),
    };
    let recorder = Recorder::start(limits, &facts, began).map_err(|source| HostError::Trace {
        file: limits.file.clone(),
        source,
    })?;
    recorder.pools(&pools(&configuration.resource_pools.list()));
    tracing::info!(file = %limits.file.display(), most = %limits.most, "records a trace");
    Ok(Some(recorder))
}

/// Has a VM recorded, if a trace is. Returns who is to be told what happens to its pages.
pub(super) fn appears(
    recorder: &Option<Recorder>,
    vm: VmId,
    params: &VmParams,
    settings: &VmSettings,
) -> Option<Arc<dyn Witness>> {
    let recorder = recorder.as_ref()?;
    Some(recorder.appears(vm, vm_facts(params, settings)))
}

/// What a trace says of a VM.
pub(super) fn vm_facts(params: &VmParams, settings: &VmSettings) -> VmFacts {
    let size = Pages(params.pages.into());
    VmFacts {
        name: params.name.clone(),
        pages: params.pages,
        shares: settings.shares.count(size.0),
        reservation: settings.reservation,
        limit: settings.limit.filter(|limit| *limit < size),
        pool: match settings.pool.as_str() {
            ROOT_POOL => String::new(),
            pool => pool.to_owned(),
        },
    }
}

/// What a trace says of resource pools.
pub(super) fn pools(list: &[ResourcePool]) -> Pools {
    if let [root] = list
        && !root.scalable
    {
        return Pools::default();
    }
    let facts = list.iter().enumerate().map(|(at, pool)| PoolFacts {
        name: pool.name.clone(),
        parent: (at != ROOT).then(|| list[pool.parent].name.clone()),
        shares: pool.shares,
        reservation: pool.reservation,
        limit: pool.limit,
        expandable: pool.expandable,
        scalable: pool.scalable,
    });
    Pools {
        pools: facts.collect(),
    }
}

/// The resource pools that a trace tells of. What is said of a pool that stands nowhere is that of one in the root.
pub(crate) fn pools_of(told: &Pools) -> Vec<ResourcePool> {
    let mut list: Vec<ResourcePool> = Vec::new();
    for facts in &told.pools {
        let parent = facts.parent.as_ref();
        let parent = parent.and_then(|name| list.iter().position(|pool| pool.name == *name));
        list.push(ResourcePool {
            name: facts.name.clone(),
            parent: parent.unwrap_or(ROOT),
            shares: facts.shares,
            reservation: facts.reservation,
            limit: facts.limit,
            expandable: facts.expandable,
            scalable: facts.scalable,
        });
    }
    list
}

/// For how long a VM stood still, as a trace says it.
pub(super) fn stalls(stalled: &Stalled) -> Stalls {
    let of = |cause| u64::try_from(stalled.threads[cause].as_micros()).unwrap_or(u64::MAX);
    Stalls {
        first_touch_us: of(Cause::FirstTouch),
        refill_zip_us: of(Cause::RefillZip),
        refill_swap_us: of(Cause::RefillSwap),
        break_us: of(Cause::Break),
        open_us: of(Cause::Open),
        wait_us: of(Cause::Blocked) + of(Cause::Memory) + of(Cause::Busy),
    }
}
