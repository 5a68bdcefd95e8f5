//! Whether a guest can be powered on, and what it is powered on with.
//!
//! Power-on and changes of settings promise memory. Two at a time could promise the same pages, so the
//! owner of promises has one lock, held while a promise is checked and made.

mod budget;
mod changes;
mod pools;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memvisor_wire::claims::{Words, words};
use memvisor_wire::memory::Hello;
use memvisor_wire::system_error::{SystemError, cannot};
use memvisor_wire::wait_readable;
use thiserror::Error;

use super::configuration::Configuration;
use super::members::{Members, Name, Promise};
use super::pools::Pools;
use super::resource_pools;
use super::snapshot::snapshot;
use super::vm_settings::{self, Layered};
use crate::compress::ZipCache;
use crate::engine::{EngineKind, Ram};
use crate::page::{Budget, Need, Parking};
use crate::policy::{self, FreeState, HostSnapshot, Ledger, ResourcePool, VmSnapshot};
use crate::settings::{UnknownPool, VmSettings, VmSettingsError};
use crate::swap::{CacheFile, SwapError, SwapFile, Tiers};
use crate::sys::SharedWords;
use crate::throttle::Throttle;
use crate::units::{Bytes, Pages, VmId};
use crate::vm::{ParamsError, Parts, VmParams};

/// Why a guest is not powered on. The text goes to the guest, its sources included.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum Refusal {
    #[error(transparent)]
    Params(#[from] ParamsError),
    #[error(transparent)]
    Settings(#[from] VmSettingsError),
    #[error("a VM called `{0}` is powered on already; names are unique on a host")]
    NameTaken(String),
    #[error("the host is set to userfaultfd, and this guest's process cannot open one")]
    NoUffd,
    #[error(transparent)]
    Admission(#[from] policy::Refusal),
    #[error(
        "the VM's own {need} of metadata do not fit: {free} are free, and first touches and guests that \
         power on leave {reserve} of that alone; {WAIT:?} were not enough to reclaim more"
    )]
    Metadata {
        need: Bytes,
        free: Bytes,
        reserve: Bytes,
    },
    #[error("{}", .0.in_full())]
    Pool(UnknownPool),
    #[error("no swap file")]
    Swap(#[from] SwapError),
    #[error(transparent)]
    Kernel(#[from] SystemError),
}

impl From<UnknownPool> for Refusal {
    // Not as its source: the chain of causes would say it a second time.
    fn from(error: UnknownPool) -> Self {
        Self::Pool(error)
    }
}

/// A guest that may be powered on, and everything it needs on this side.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) id: VmId,
    pub(super) name: Name,
    pub(super) params: VmParams,
    pub(super) layered: Layered,
    pub(super) engine: EngineKind,
    pub(super) ram: Arc<Ram>,
    pub(super) parts: Parts,
    pub(super) claims: Option<Arc<SharedWords>>,
    pub(super) metadata: Metadata,
}

/// The charge for a VM's own metadata; given back when dropped, unless the VM has taken it over.
#[derive(Debug)]
pub(super) struct Metadata {
    budget: Arc<Budget>,
    pages: Pages,
}

/// How long a guest waits for its metadata while it is admitted: a host that is short reclaims meanwhile.
const WAIT: Duration = Duration::from_secs(3);

impl Metadata {
    /// Takes the pages, or waits at `parking` for its turn to get them.
    fn charge(host: &Admission, parking: &Arc<Parking>, pages: Pages) -> Result<Self, Refusal> {
        let mut metadata = Self {
            budget: Arc::clone(&host.budget),
            pages: Pages(0),
        };
        let need = Need {
            touch: pages.0,
            refill: 0,
        };
        host.budget.wait(parking, need, false, false);
        let is_whole = metadata.wait(host, parking, pages);
        // Whole or not: the place must not get more pages, and what came too late for `wait` goes back.
        host.budget.leave(parking);
        if is_whole {
            return Ok(metadata);
        }
        Err(Refusal::Metadata {
            need: pages.bytes(),
            free: host.budget.free().bytes(),
            reserve: host.budget.reserve().bytes(),
        })
    }

    fn wait(&mut self, host: &Admission, parking: &Parking, pages: Pages) -> bool {
        let until = Instant::now() + WAIT;
        loop {
            parking.answer();
            self.pages.0 += host.budget.collect(parking).pages();
            if self.pages == pages {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || host.members.is_closed() {
                return false;
            }
            // If waiting for the bell fails, that is treated as the end of the time.
            if wait_readable([parking.bell()], Some(left)).is_err() {
                return false;
            }
        }
    }

    /// To be called once the VM exists: from then on its tear-down gives the pages back.
    pub(super) fn taken_over(mut self) {
        self.pages = Pages(0);
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        self.budget.give(self.pages.0);
    }
}

/// The line comes with each guest, and guests may come and go as fast as they like.
static FALLBACKS: Throttle = Throttle::new(20, Duration::from_secs(1));

/// Which engines guests can have, and how many mappings each guest may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Engines {
    /// The engine that guests get.
    pub(super) first: EngineKind,
    /// Whether guests fall back to page protection when they cannot open a userfaultfd.
    pub(super) may_fall_back: bool,
    pub(super) vma_budget: u32,
}

impl Engines {
    fn choose(&self, uffd: bool, params: &VmParams) -> Result<EngineKind, Refusal> {
        match self.first {
            EngineKind::Uffd if uffd => Ok(EngineKind::Uffd),
            EngineKind::Uffd if self.may_fall_back => {
                let name = &params.name;
                FALLBACKS.line(|unsaid| {
                    tracing::info!(vm = %name, unsaid, "no userfaultfd in the guest's process: mprotect");
                });
                Ok(EngineKind::Mprotect)
            }
            EngineKind::Uffd => Err(Refusal::NoUffd),
            EngineKind::Mprotect => Ok(EngineKind::Mprotect),
        }
    }
}

/// The owner of promises. Its lock is taken before any lock of the VMs.
#[derive(Debug)]
pub(super) struct Admission {
    engines: Engines,
    budget: Arc<Budget>,
    members: Arc<Members>,
    configuration: Arc<Configuration>,
    pools: Arc<Pools>,
    /// Held while a promise of memory is checked and made.
    promising: Mutex<()>,
}

impl Admission {
    pub(super) fn new(
        engines: Engines,
        budget: &Arc<Budget>,
        members: &Arc<Members>,
        configuration: &Arc<Configuration>,
        pools: &Arc<Pools>,
    ) -> Self {
        Self {
            engines,
            budget: Arc::clone(budget),
            members: Arc::clone(members),
            configuration: Arc::clone(configuration),
            pools: Arc::clone(pools),
            promising: Mutex::default(),
        }
    }

    fn promising(&self) -> MutexGuard<'_, ()> {
        self.promising
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides whether a guest is admitted, and makes its RAM, cache, swap file and pool.
    pub(super) fn admit(&self, hello: &Hello) -> Result<Admitted, Refusal> {
        let mut params = VmParams::check(hello)?;
        let file = self.configuration.vm_in_file(&params.name);
        let layered = Layered::at_power_on(hello, &file)?;
        let settings = &layered.now;
        let engine = self.engines.choose(hello.uffd, &params)?;
        // Only a guest with a userfaultfd can serve faults itself (ADR 12).
        params.inline &= engine == EngineKind::Uffd;
        params.cached = self.configuration.swap_cache.is_some();
        // Before the promise, which is noted with the name.
        let name = self.take_name(&params)?;
        self.after_endings(|| self.promise(&name, &params, settings))?;
        let parking = Parking::new().map_err(cannot("make an eventfd"))?;
        let parking = Arc::new(parking);
        let metadata = Metadata::charge(self, &parking, params.metadata())?;
        let ram = Ram::new(&params.name, params.pages).map_err(cannot("make guest RAM"))?;
        let id = self.members.next_id();
        let claims = claims(&params)?;
        let parts = || self.parts(id, &params, settings, Arc::clone(&parking));
        let mut parts = self.after_endings(parts)?;
        parts.words = claims.clone().map(|words| words as Arc<dyn Words>);
        Ok(Admitted {
            id,
            name,
            params,
            layered,
            engine,
            ram: Arc::new(ram),
            parts,
            claims,
            metadata,
        })
    }

    /// Tries once more what was refused, if VMs were ending and have ended since: what they held counts as
    /// free only afterwards.
    fn after_endings<T>(&self, attempt: impl Fn() -> Result<T, Refusal>) -> Result<T, Refusal> {
        attempt().or_else(|refusal| {
            if self.members.await_endings() {
                attempt()
            } else {
                Err(refusal)
            }
        })
    }

    fn take_name(&self, params: &VmParams) -> Result<Name, Refusal> {
        let name = self.members.take_name(&params.name);
        name.ok_or_else(|| Refusal::NameTaken(params.name.clone()))
    }

    /// Promises a VM the memory that its settings guarantee.
    fn promise(
        &self,
        name: &Name,
        params: &VmParams,
        settings: &VmSettings,
    ) -> Result<(), Refusal> {
        let _alone = self.promising();
        let pools = self.configuration.resource_pools.list();
        let asked = policy::VmParams {
            size: Pages(u64::from(params.pages)),
            reservation: settings.reservation,
            limit: settings.limit,
            overhead: params.metadata(),
            resource_pool: resource_pools::find(&pools, &settings.pool)?,
        };
        let config = self.configuration.settings().policy();
        policy::admit(&self.with_promises(&pools), &config, &asked)?;
        name.promise(Promise {
            size: asked.size,
            reservation: asked.reservation,
            pool: settings.pool.clone(),
        });
        Ok(())
    }

    /// What of the host's memory is promised now, and the host of which that is so.
    pub(super) fn promises(&self) -> (Ledger, HostSnapshot) {
        let config = self.configuration.settings().policy();
        let host = self.with_promises(&self.configuration.resource_pools.list());
        (Ledger::of(&host, &config), host)
    }

    /// The host with these resource pools, and with the guests that are being powered on: what they were promised counts as well.
    fn with_promises(&self, pools: &[ResourcePool]) -> HostSnapshot {
        // Any state will do: promises do not depend on how short memory is just now.
        let seen = (FreeState::default(), 0);
        let mut snapshot = snapshot(
            &self.budget,
            &self.members.all(),
            pools,
            seen,
            Instant::now(),
            |_| None,
        );
        let promised = self.members.promised();
        let only_promised = |(_, promise): (String, Promise)| VmSnapshot {
            reservation: promise.reservation,
            resource_pool: resource_pools::place(pools, &promise.pool),
            ..VmSnapshot::new(VmId(0), promise.size)
        };
        snapshot.vms.extend(promised.into_iter().map(only_promised));
        snapshot
    }

    fn parts(
        &self,
        id: VmId,
        params: &VmParams,
        settings: &VmSettings,
        parking: Arc<Parking>,
    ) -> Result<Parts, Refusal> {
        // Room for as many pages as the VM has, because unused ones cost nothing; the policy sets the cap at each plan.
        let zip = ZipCache::new(&format!("memvisor-zip:{}", params.name), params.pages)
            .map_err(cannot("make the compression cache"))?;
        // As in ESX, there is room from the start for all that may ever be taken from the guest.
        let slots = vm_settings::swap_slots(params, settings);
        let dir = self.configuration.swap_dir(settings);
        let file = SwapFile::kept_or_new(&dir, &params.name, slots, params.pages)?;
        file.set_kept(settings.swap_persist);
        let cache = self.configuration.swap_cache.as_ref();
        let cache = cache.map(|cache| CacheFile::new(cache, &params.name, params.pages));
        let cache = cache.transpose()?;
        let domain = self.configuration.domain(id, settings);
        let pool = self.pools.get(id, &domain);
        Ok(Parts {
            budget: Arc::clone(&self.budget),
            pool: pool.map_err(cannot("make the share pool"))?,
            zip,
            swap: Tiers { file, cache },
            parking,
            vma_budget: self.engines.vma_budget,
            words: None,
            witness: None,
        })
    }
}

/// The memory shared with a guest that serves some of its faults itself.
fn claims(params: &VmParams) -> Result<Option<Arc<SharedWords>>, Refusal> {
    if !params.inline {
        return Ok(None);
    }
    let name = format!("memvisor-claims:{}", params.name);
    let words = SharedWords::new(&name, words(params.pages));
    let words = words.map_err(cannot("make the claim table"))?;
    Ok(Some(Arc::new(words)))
}

#[cfg(test)]
mod tests;
