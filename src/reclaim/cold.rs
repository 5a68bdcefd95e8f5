//! Taking back what a guest has not touched for long, while nobody is short of memory.
//!
//! # The problem
//!
//! Reclaim acts when memory is short. A guest that filled 64 MiB once and uses four of them keeps all 64 until then, and
//! an operator who asks where the memory is gets no better answer than "nobody wanted it". To take what is cold ahead of
//! need is easy; not to harm the guest by it is not. Nobody knows what is cold for good: a page that was not touched for
//! minutes can belong to a job that runs every hour.
//!
//! # The structure
//!
//! A hand goes round the VM, a *round* in the age from which a page is cold (`Memvisor.ColdAge`), or longer in a large VM
//! ([`WATCHED_A_SECOND`]). Where it passes it freezes resident pages, by which they are watched: a page that its guest
//! touches opens for a minor fault. A page that is still frozen when the hand comes back was not touched for a whole
//! round. It is cold, and leaves by the path of every other victim: zero, an equal frame, the cache, the swap file.
//!
//! How many may leave is bounded by what comes back ([`Bound`]): `Memvisor.ColdRefaults` says how many of the pages
//! taken here may be wanted back in an hour, in percent of what the VM holds. The page table marks such pages as cold
//! while they are in a store, so a refault of one is known as such, whoever serves it.
//!
//! What the hand does not touch: shared pages, which cost their VM little; pages within what the VM is promised; any
//! page while less memory is free than reclaim aims at. Then reclaim has the VM, and the hand begins anew afterwards.
//!
//! # What it costs, and what it may mistake
//!
//! Each page in use costs its guest one minor fault a round. In engine mprotect a watched page that opens alone takes
//! mappings, so the hand passes over pages where these run short. The sampler freezes a hundred pages in its period. One
//! of them that was touched between the hand and the sampler is taken for as old as the others of its slice. In engine
//! mprotect the sampler opens what was not touched, so such a page waits for another round.

mod bound;

use std::ops::Range;
use std::time::{Duration, Instant};

use self::bound::Bound;
use super::evict::Evictor;
use super::victims::{is_frozen, take};
use crate::engine::{EngineError, EngineKind};
use crate::page::{Entry, Home, PageGuard};
use crate::remap;
use crate::units::{Gfn, Pages};
use crate::vm::{Means, Vm};

/// The most pages of one VM that the hand passes in a second, 16 MiB. Each may cost its guest a minor fault, which takes
/// some ten microseconds: a twentieth of a processor at most.
const WATCHED_A_SECOND: u32 = 4096;
/// Pages that the hand passes in one step: a batch of eviction. In tests it is smaller, so that a small VM has several.
const SLICE: u32 = if cfg!(test) { 8 } else { 64 };
/// How long to wait while memory is short.
const PAUSE: Duration = Duration::from_secs(1);

/// What is cold, and how much of it may come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cold {
    /// `Memvisor.ColdAge`: for how long a page was not touched that is cold; zero: nothing is.
    pub age: Duration,
    /// `Memvisor.ColdRefaults`: how many of the pages that were cold may come back in an hour, in percent of the pages
    /// that the VM holds.
    pub refaults: u32,
    /// Whether cold pages may be compressed. They may always be swapped.
    pub compress: bool,
}

/// The hand of one VM. See the module text.
#[derive(Debug)]
pub(super) struct Hand {
    cold: Cold,
    /// The next page that it passes.
    at: u32,
    /// Whether all pages before it were watched for a round.
    has_watched: bool,
    /// When this round began.
    began: Instant,
    /// Refaults of cold pages before this round.
    refaults: u64,
    bound: Bound,
    /// Pages that may still be taken in this round.
    left: u64,
    /// Whether the stores would not take what was to be taken.
    is_refused: bool,
    taken: u64,
    due: Option<Instant>,
}

impl Hand {
    /// A hand that has passed nothing.
    pub(super) fn new(cold: Cold, now: Instant) -> Self {
        Self {
            cold,
            at: 0,
            has_watched: false,
            began: now,
            refaults: 0,
            bound: Bound::default(),
            left: 0,
            is_refused: false,
            taken: 0,
            due: None,
        }
    }

    /// When it goes on; `None` when nothing is cold.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Passes a slice of the VM if it is time.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub(super) fn step(
        &mut self,
        vm: &Vm,
        evictor: &mut Evictor,
        now: Instant,
        cold: Cold,
    ) -> Result<(), EngineError> {
        if cold != self.cold {
            *self = Self::new(cold, now);
            self.refaults = vm.stats.cold_back.get();
        }
        if cold.age.is_zero() || self.due.is_some_and(|due| now < due) {
            return Ok(());
        }
        if vm.budget.is_below_aim() {
            // Reclaim freezes and opens pages too. What was watched before says nothing any more.
            (self.at, self.has_watched, self.began) = (0, false, now);
            self.due = Some(now + PAUSE);
            return Ok(());
        }
        let pages = vm.table.pages();
        let slice = self.at..self.at.saturating_add(SLICE).min(pages);
        settle(vm, slice.clone());
        if self.has_watched {
            self.take(vm, evictor, slice.clone())?;
        }
        watch(vm, slice.clone())?;
        // From now on and not from when it was due: no page may be judged before it was watched for the whole age.
        let wait = round(cold.age, pages) * (slice.end - slice.start) / pages;
        self.due = Some(now + wait);
        self.at = slice.end;
        if self.at == pages {
            self.end_round(vm, now + wait);
        }
        Ok(())
    }

    /// Takes the pages of a slice that are still frozen, as far as they may be taken.
    fn take(
        &mut self,
        vm: &Vm,
        evictor: &mut Evictor,
        slice: Range<u32>,
    ) -> Result<(), EngineError> {
        let spare = vm.held().saturating_sub(vm.orders.promised());
        let want = usize::try_from(self.left.min(spare.0)).unwrap_or(usize::MAX);
        // A page that is sampled was frozen by the sampler, and may have been touched before.
        let is_cold = |entry: Entry| is_frozen(entry) && !entry.is_sampled();
        let mut pages = Vec::new();
        take(vm, slice.map(Gfn), want, is_cold, &mut pages);
        if pages.is_empty() {
            return Ok(());
        }
        let found = pages.len() as u64;
        let means = Means {
            compress: self.cold.compress,
            swap: true,
        };
        let Pages(taken) = evictor.evict_cold(vm, pages, means)?;
        vm.stats.cold.add(taken);
        self.taken += taken;
        self.left = self.left.saturating_sub(taken);
        if taken < found / 2 {
            // Stores that are full or fail would refuse the next pages too, at the price of compressing each of them.
            (self.is_refused, self.left) = (true, 0);
        }
        Ok(())
    }

    fn end_round(&mut self, vm: &Vm, now: Instant) {
        let refaults = vm.stats.cold_back.get();
        let back = refaults - std::mem::replace(&mut self.refaults, refaults);
        let is_used_up = self.left == 0 && self.taken > 0 && !self.is_refused;
        let passed = now.saturating_duration_since(self.began);
        let rate = refaults_a_second(vm.held(), self.cold.refaults);
        self.left = self.bound.end_round(rate, passed, back, is_used_up);
        (self.at, self.has_watched, self.began) = (0, true, now);
        (self.is_refused, self.taken) = (false, 0);
    }
}

/// How long a round takes.
fn round(age: Duration, pages: u32) -> Duration {
    age.max(Duration::from_secs(1) * pages / WATCHED_A_SECOND)
}

/// Refaults that a VM which holds `held` pages may have in a second.
fn refaults_a_second(held: Pages, percent_an_hour: u32) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "at most 2^28 pages")]
    let held = held.0 as f64;
    held * f64::from(percent_an_hour) / 100.0 / 3600.0
}

/// Has the page table know what the guest itself has brought or opened of a slice.
fn settle(vm: &Vm, slice: Range<u32>) {
    if let Some(claims) = vm.table.claims() {
        let done = slice.map(Gfn).filter(|gfn| claims.is_done(*gfn));
        // To lock a page is to settle it.
        done.for_each(|gfn| drop(vm.try_lock(gfn)));
    }
}

/// Freezes the pages of a slice that are open.
fn watch(vm: &Vm, slice: Range<u32>) -> Result<(), EngineError> {
    // Each page that opens again may take a mapping of its own.
    if vm.engine.kind() == EngineKind::Mprotect && remap::room(vm) < slice.len() {
        return Ok(());
    }
    let is_open = |entry: Entry| entry.home() == Home::Resident && !entry.is_frozen();
    let mut pages: Vec<PageGuard<'_>> = Vec::new();
    take(vm, slice.map(Gfn), usize::MAX, is_open, &mut pages);
    if !pages.is_empty() {
        // A refusal is none of our business: the pages count as touched, and the next round tries again.
        remap::freeze(vm, pages.iter())?;
    }
    Ok(())
}
