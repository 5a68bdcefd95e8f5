//! One guest as the host sees it: its page table, its memory, its stores, and what the policy wants of it.
//!
//! Two threads work on a VM, and only the page locks keep them apart:
//!
//! - the *fault thread* ([`crate::fault`]) gives pages to the guest: it alone makes pages resident that a thread
//!   waits for;
//! - the *worker* ([`crate::reclaim`]) takes pages away: it scans, shares, evicts and fills the
//!   balloon, and is the only thread that gives resident pages another home. While memory is free, it can bring
//!   swapped pages back that nobody waits for.
//!
//! Threads of the guest itself may make pages resident, if the pages were offered and paid for
//! ([`crate::page::Claims`]). Whoever locks such a page next moves it in the page table.
//!
//! Lock order: page locks (tried, never waited for), then the compression cache, then the locks inside the
//! stores. No store lock is held across a system call that can wait, except the memory copies and
//! hole punches of the cache itself.

mod activity;
mod ghosts;
mod inline;
mod large;
mod latency;
mod orders;
mod params;
mod refaults;
mod release;
mod settled;
mod stall;
mod stats;
mod turn;
mod unasked;
mod vmas;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use memvisor_wire::claims::Words;

use crate::compress::ZipCache;
use crate::engine::{Engine, EngineKind};
use crate::page::{Budget, Claims, Home, PageTable, Parking, Urgency, Witness};
use crate::pool::{Membership, Pool};
use crate::swap::{SwapError, Tiers};
use crate::sync::Mutex;
use crate::units::{FrameId, Gfn, Pages, VmId};

pub use activity::{Activity, Estimate};
pub use ghosts::Ghosts;
pub use inline::LockError;
pub use large::{Large, Region};
use latency::Latencies;
pub use latency::Latency;
pub use orders::{Blocked, Eviction, Means, Orders};
pub use params::{MAX_PAGES, ParamsError, VmParams};
pub use refaults::Refaults;
pub use settled::Settled;
pub use stall::{ByCause, Cause, Claimed, Stall, Stalled, Stalls};
pub use stats::{Counter, Stats};
use turn::Granted;
pub use vmas::Vmas;

/// What a VM is made of.
#[derive(Debug)]
pub struct Parts {
    /// The host's memory.
    pub budget: Arc<Budget>,
    /// The share pool of the VM's sharing domain.
    pub pool: Arc<Pool>,
    /// Its compression cache.
    pub zip: ZipCache,
    /// Its swap file, and its part of the host cache.
    pub swap: Tiers,
    /// Where its faults wait.
    pub parking: Arc<Parking>,
    /// The most VMAs its RAM may take.
    pub vma_budget: u32,
    /// Memory that is shared with the guest, if the guest serves some of its faults itself.
    pub words: Option<Arc<dyn Words>>,
    /// Who is told what happens to its pages, if anybody is.
    pub witness: Option<Arc<dyn Witness>>,
}

/// One guest. See the module text.
#[derive(Debug)]
pub struct Vm {
    /// Its number.
    pub id: VmId,
    /// What it was powered on with.
    pub params: VmParams,
    /// When it was powered on.
    pub since: Instant,
    /// Where each page lives.
    pub table: PageTable,
    /// The engine that works on its memory.
    pub engine: Box<dyn Engine>,
    /// Its compression cache.
    pub(crate) zip: Mutex<ZipCache>,
    /// Which pages have left the compression cache lately.
    pub(crate) ghosts: Ghosts,
    /// Which pages have left RAM lately, and what it costs that they come back.
    pub(crate) refaults: Refaults,
    /// Its swap file, and its part of the host cache.
    pub swap: Tiers,
    /// The share pool of its sharing domain. Changed by the worker, while no page is shared.
    pool: RwLock<Arc<Membership>>,
    /// Whether pages may be shared now.
    sharing: AtomicBool,
    /// The host's memory.
    pub budget: Arc<Budget>,
    /// Where its faults wait.
    pub parking: Arc<Parking>,
    /// Pages that it was granted there and has not used yet.
    granted: Granted,
    /// What the policy wants.
    pub orders: Orders,
    /// What happened so far.
    pub stats: Stats,
    /// For how long its threads stood still because of the daemon.
    pub stalls: Stalls,
    /// How much of its memory it uses.
    pub activity: Activity,
    /// Whether its scanner has anything left to do.
    pub settled: Settled,
    /// Its budget of VMAs.
    pub vmas: Vmas,
    /// Which parts of its RAM are large pages.
    pub large: Large,
    /// Whether the swap file refused the latest write.
    swap_failing: AtomicBool,
    end_reason: OnceLock<String>,
    /// When eviction last found nothing that could leave, and which means it tried.
    nothing_left: StdMutex<Option<(Instant, Means)>>,
    abandoned: StdMutex<Vec<FrameId>>,
    latency: Latencies,
}

/// For how long nothing is expected of eviction after it has found nothing.
const TRY_AGAIN: Duration = Duration::from_secs(1);

impl Vm {
    /// Puts a VM together: every page untouched.
    ///
    /// # Errors
    /// When there is no memory for its page table.
    pub fn new(
        id: VmId,
        params: VmParams,
        engine: Box<dyn Engine>,
        parts: Parts,
    ) -> io::Result<Self> {
        let opens = engine.kind() == EngineKind::Mprotect;
        let mut table = PageTable::new(params.pages, Arc::clone(&parts.parking))?;
        if let Some(words) = parts.words {
            table = table.offering(words);
        }
        if let Some(witness) = parts.witness {
            table = table.witnessed(witness);
        }
        let pages = params.pages;
        let ghosts = Ghosts::new(pages);
        let since = Instant::now();
        Ok(Self {
            id,
            since,
            table,
            large: Large::new(params.pages, engine.large_page()),
            params,
            engine,
            zip: Mutex::new(parts.zip),
            ghosts,
            refaults: Refaults::new(pages, since),
            swap: parts.swap,
            pool: RwLock::new(Arc::new(Membership::new(parts.pool, id))),
            sharing: AtomicBool::new(true),
            budget: parts.budget,
            parking: parts.parking,
            granted: Granted::default(),
            orders: Orders::default(),
            stats: Stats::default(),
            stalls: Stalls::new(since),
            activity: Activity::default(),
            settled: Settled::default(),
            vmas: Vmas::new(parts.vma_budget, opens),
            swap_failing: AtomicBool::new(false),
            end_reason: OnceLock::new(),
            nothing_left: StdMutex::default(),
            abandoned: StdMutex::default(),
            latency: Latencies::default(),
        })
    }

    /// Says why the VM is to end. Only the first reason counts.
    pub fn set_end_reason(&self, why: &str) {
        let _ = self.end_reason.set(why.to_owned());
    }

    /// Why the VM is to end, if somebody asked for that.
    #[must_use]
    pub fn end_reason(&self) -> Option<String> {
        self.end_reason.get().cloned()
    }

    /// Takes a page of host memory for this VM; `false` when the VM must wait: for an order, for memory, or behind
    /// others.
    #[must_use]
    pub fn charge(&self, urgency: Urgency) -> bool {
        if self.waits_with(urgency) {
            return false;
        }
        if urgency != Urgency::Reclaim && self.is_at_ceiling() {
            // Calls the policy, which is to make room at once.
            self.budget.ring_alarm();
            return false;
        }
        // Pages at hand were granted in this VM's turn, so they are taken although others wait.
        self.granted.take(urgency)
            || (!self.budget.is_awaited(urgency) && self.budget.take(1, urgency))
    }

    /// Whether some of its faults must wait now: the policy blocks the VM, and memory is scarce.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.orders.is_blocked() && self.budget.is_scarce()
    }

    fn waits_with(&self, urgency: Urgency) -> bool {
        let blocked = match urgency {
            Urgency::Touch => self.orders.is_blocked(),
            Urgency::Refill => self.orders.is_blocked_wholly(),
            Urgency::Reclaim => false,
        };
        // Pages at hand count as used, though the VM has not used them yet. They alone must not make memory so scarce
        // that the VM may not use them.
        blocked && self.budget.is_scarce_beside(self.granted.pages())
    }

    /// Whether the VM may not become larger now.
    #[must_use]
    pub fn is_at_ceiling(&self) -> bool {
        self.held() >= self.orders.ceiling()
    }

    /// How many pages the VM holds: those in RAM, its own and shared ones, and its credits.
    #[must_use]
    pub fn held(&self) -> Pages {
        let pages = self.table.count(Home::Resident) + self.table.count(Home::Shared(FrameId(0)));
        Pages(pages + self.table.claims().map_or(0, Claims::held))
    }

    /// The share pool of its sharing domain.
    #[must_use]
    pub fn pool(&self) -> Arc<Pool> {
        Arc::clone(self.membership().pool())
    }

    /// Its place in that pool.
    #[must_use]
    pub fn membership(&self) -> Arc<Membership> {
        Arc::clone(&self.pool.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Moves the VM to another sharing domain. Nobody may hold a frame of the old pool for it.
    ///
    /// # Panics
    /// When a page is shared, because its frame would be looked for in the wrong pool.
    pub fn set_pool(&self, pool: Arc<Pool>) {
        assert_eq!(self.table.count(Home::Shared(FrameId(0))), 0);
        let membership = Arc::new(Membership::new(pool, self.id));
        let mut pool = self.pool.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *pool, membership);
        drop(pool);
        // After the lock is dropped: the old membership gives its seat back, and nobody who asks for the pool should
        // wait for that.
        drop(old);
    }

    /// Whether pages may be shared now.
    #[must_use]
    pub fn is_sharing(&self) -> bool {
        self.sharing.load(Ordering::Relaxed)
    }

    /// Allows or forbids sharing. Pages that are shared stay shared.
    pub fn set_sharing(&self, sharing: bool) {
        if !self.sharing.swap(sharing, Ordering::Relaxed) && sharing {
            // The scanner did not look up what it saw meanwhile, and there are other VMs to share with now.
            self.table.begin_anew();
        }
    }

    /// Notes whether the swap file refuses pages, and returns whether that is a change.
    pub fn set_swap_failing(&self, failing: bool) -> bool {
        self.swap_failing.swap(failing, Ordering::Relaxed) != failing
    }

    /// Whether the swap file refused the latest write.
    #[must_use]
    pub fn is_swap_failing(&self) -> bool {
        self.swap_failing.load(Ordering::Relaxed)
    }

    /// Notes the result of an eviction by these means: that nothing could leave, or that pages left.
    pub fn note_evicted(&self, evicted: Pages, means: Means, now: Instant) {
        let now = (evicted == Pages(0)).then_some((now, means));
        *self
            .nothing_left
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// The means by which eviction found shortly before `now` that nothing could leave: the swap file fails or is
    /// full, or what is left does not compress. A little later they are worth another try.
    #[must_use]
    pub fn exhausted(&self, now: Instant) -> Means {
        let nothing_left = *self
            .nothing_left
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match nothing_left {
            Some((since, means)) if now.saturating_duration_since(since) < TRY_AGAIN => means,
            _ => Means {
                compress: false,
                swap: false,
            },
        }
    }

    /// Gives back all memory of a VM whose guest is gone and whose threads have ended. Other threads may still
    /// hold the VM for a moment, and processes that the guest has left behind may hold its memory for as long as they
    /// like. So the memory is taken away here: what the budget gets back must be free, and stay free.
    pub fn tear_down(&self) {
        let mut used = self.params.metadata().0;
        // Pages that the guest has brought itself and that are not settled yet are paid for by credits.
        used += self.table.claims().map_or(0, Claims::held);
        let mut zip = self.zip.lock();
        for gfn in (0..self.table.pages()).map(Gfn) {
            match self.table.entry(gfn).home() {
                Home::Resident => used += 1,
                Home::Shared(frame) => self.release_frame(frame),
                Home::Compressed(slot) => zip.free(slot),
                _ => {}
            }
        }
        used += u64::from(zip.give_back());
        drop(zip);
        let abandoned = std::mem::take(
            &mut *self
                .abandoned
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        abandoned
            .into_iter()
            .for_each(|frame| self.release_frame(frame));
        if let Err(error) = self.engine.revoke() {
            tracing::warn!(vm = %self.params.name, %error, "its memory comes free a moment later");
        }
        // Not left to the drop of the file: the next guest may need the disk space at once.
        if let Err(error) = self.swap.give_back() {
            let then = match error {
                SwapError::Keep { .. } => "its disk space is free",
                _ => "its disk space comes free a moment later",
            };
            let error: &dyn std::error::Error = &error;
            tracing::warn!(vm = %self.params.name, error, "{then}");
        }
        // Not left to the drop of the VM: other threads may still hold it for a moment.
        self.membership().leave();
        self.budget.leave(&self.parking);
        // Its place is given up before: pages that come back must go to others.
        self.end_turn();
        self.budget.give(used);
    }
}
