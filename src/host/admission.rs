//! Whether a guest can be powered on, and what it is powered on with.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memvisor_guest_agent::protocol::claims::{Words, words};
use memvisor_guest_agent::protocol::memory::Hello;
use memvisor_guest_agent::shim::wait_readable;
use thiserror::Error;

use super::daemon::Host;
use super::member::Name;
use super::snapshot::{only_promised, snapshot};
use super::vm_settings::{self, Layered};
use crate::compress::ZipCache;
use crate::engine::{EngineKind, Ram};
use crate::page::{Parking, Urgency};
use crate::policy::{self, HostSnapshot};
use crate::settings::{VmSettings, VmSettingsError};
use crate::swap::{SwapError, SwapFile};
use crate::sys::SharedWords;
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
    #[error("no swap file")]
    Swap(#[from] SwapError),
    #[error("cannot {what}")]
    Kernel {
        what: &'static str,
        source: io::Error,
    },
}

fn kernel(what: &'static str) -> impl FnOnce(io::Error) -> Refusal {
    move |source| Refusal::Kernel { what, source }
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
    budget: Arc<crate::page::Budget>,
    pages: Pages,
}

/// How long a guest that is admitted waits for its metadata: a host that is short reclaims meanwhile.
const WAIT: Duration = Duration::from_secs(3);

impl Metadata {
    /// Takes the pages, or waits for them at `parking`, which is registered with the budget.
    fn charge(host: &Host, parking: &Parking, pages: Pages) -> Result<Self, Refusal> {
        host.budget.starve(parking, true);
        let taken = Self::wait(host, parking, pages);
        host.budget.starve(parking, false);
        if taken {
            return Ok(Self {
                budget: Arc::clone(&host.budget),
                pages,
            });
        }
        Err(Refusal::Metadata {
            need: pages.bytes(),
            free: host.budget.free().bytes(),
            reserve: host.budget.reserve().bytes(),
        })
    }

    fn wait(host: &Host, parking: &Parking, pages: Pages) -> bool {
        let until = Instant::now() + WAIT;
        loop {
            parking.answer();
            if host.budget.take(pages.0, Urgency::Touch) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || host.is_stopping() {
                return false;
            }
            // Without a bell, or if it cannot be waited for, the end of the time is near enough.
            let bell = parking.bell().map(|bell| wait_readable([bell], Some(left)));
            if !matches!(bell, Some(Ok(_))) {
                return false;
            }
        }
    }

    /// From here on the VM's tear-down gives it back.
    pub(super) fn taken_over(mut self) {
        self.pages = Pages(0);
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        self.budget.give(self.pages.0);
    }
}

/// Decides about a guest, and makes its RAM, cache, swap file and pool.
pub(super) fn admit(host: &Arc<Host>, hello: &Hello) -> Result<Admitted, Refusal> {
    let uffd = hello.uffd;
    let mut params = VmParams::check(hello)?;
    let layered = Layered::at_power_on(hello, &host.vm_in_file(&params.name))?;
    let settings = &layered.now;
    let engine = engine(host, uffd, &params)?;
    params.inline &= engine == EngineKind::Uffd;
    let name = host
        .members
        .take_name(&params.name)
        .ok_or_else(|| Refusal::NameTaken(params.name.clone()))?;
    let promise = host.admissions();
    let snapshot = with_promises(host);
    let asked = policy::VmParams {
        size: Pages(u64::from(params.pages)),
        reservation: settings.reservation,
        limit: settings.limit,
        overhead: params.metadata(),
    };
    policy::admit(&snapshot, &host.settings().policy(), &asked)?;
    name.promise(Pages(u64::from(params.pages)), settings.reservation);
    drop(promise);
    let parking = Parking::new().map_err(|errno| kernel("make an eventfd")(errno.into()))?;
    let parking = Arc::new(parking);
    host.budget.register(&parking);
    let metadata = Metadata::charge(host, &parking, params.metadata())?;
    let ram = Ram::new(&params.name, params.pages).map_err(kernel("make guest RAM"))?;
    let id = host.next_vm();
    let claims = claims(&params)?;
    let mut parts = parts(host, id, &params, settings, parking)?;
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

/// The memory shared with a guest that serves some of its faults itself.
fn claims(params: &VmParams) -> Result<Option<Arc<SharedWords>>, Refusal> {
    if !params.inline {
        return Ok(None);
    }
    let name = format!("memvisor-claims:{}", params.name);
    let words = SharedWords::new(&name, words(params.pages));
    let words = words.map_err(kernel("make the claim table"))?;
    Ok(Some(Arc::new(words)))
}

/// The host with the guests that are being powered on: what they were promised is promised.
fn with_promises(host: &Host) -> HostSnapshot {
    let mut snapshot = snapshot(host, &host.members.all(), |_| None);
    let promised = host.members.promised();
    snapshot.vms.extend(promised.into_iter().map(only_promised));
    snapshot
}

/// Whether a VM that runs may be promised so much from now on.
pub(super) fn check_reservation(
    host: &Host,
    id: VmId,
    reservation: Pages,
) -> Result<(), policy::Refusal> {
    let mut snapshot = with_promises(host);
    let mut size = reservation;
    for vm in snapshot.vms.iter_mut().filter(|vm| vm.id == id) {
        vm.reservation = Pages(0);
        size = vm.size;
    }
    let asked = policy::VmParams {
        size,
        reservation,
        limit: None,
        // It is charged already.
        overhead: Pages(0),
    };
    policy::admit(&snapshot, &host.settings().policy(), &asked)
}

fn engine(host: &Host, uffd: bool, params: &VmParams) -> Result<EngineKind, Refusal> {
    match host.engine {
        EngineKind::Uffd if uffd => Ok(EngineKind::Uffd),
        EngineKind::Uffd if host.may_fall_back() => {
            let name = &params.name;
            tracing::info!(vm = %name, "no userfaultfd in the guest's process: mprotect");
            Ok(EngineKind::Mprotect)
        }
        EngineKind::Uffd => Err(Refusal::NoUffd),
        EngineKind::Mprotect => Ok(EngineKind::Mprotect),
    }
}

fn parts(
    host: &Host,
    id: VmId,
    params: &VmParams,
    settings: &VmSettings,
    parking: Arc<Parking>,
) -> Result<Parts, Refusal> {
    // Nothing is held yet, and the cap is a part of that: the policy raises it.
    let zip = ZipCache::new(&format!("memvisor-zip:{}", params.name), params.pages)
        .map_err(kernel("make the compression cache"))?;
    // ESX: what may ever be taken from the guest has a place from the start.
    let slots = vm_settings::swap_slots(params, settings);
    let dir = host.swap_dir(settings);
    let swap = SwapFile::create(&dir, &params.name, slots, params.pages)?;
    let pool = host
        .pool(id, &host.domain(id, settings))
        .map_err(kernel("make the share pool"))?;
    let budget = Arc::clone(&host.budget);
    Ok(Parts {
        budget,
        pool,
        zip,
        swap,
        parking,
        vma_budget: host.vma_budget,
        words: None,
    })
}
