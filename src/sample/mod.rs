//! Estimating how much of its memory a guest uses.
//!
//! # The problem
//!
//! A host that must take memory from a guest wants to take it from one that does not use it. But it cannot
//! see a guest's loads and stores, a guest that is asked answers what it likes, and looking at the
//! accessed bits of all page tables costs time in proportion to memory.
//!
//! # The structure
//!
//! So a few pages stand for all, as in ESX (OSDI 2002 section 5.3). In each period of the VM's running time
//! 100 of its pages are drawn uniformly, whatever their homes, and marked in the page table. The mark
//! says: count the next access. How an access becomes visible depends on the home:
//!
//! | home | what the next access meets |
//! |---|---|
//! | resident | it is frozen: a minor fault, or SIGSEGV |
//! | shared | its mapping is closed: SIGSEGV, of reads as well |
//! | untouched, zero, compressed, swapped | the fault that it meets anyway |
//! | ballooned | nothing: a guest that gave a page away does not use it |
//!
//! The fault thread clears the mark and counts ([`Activity`]). A guest that serves itself opens a frozen page without
//! the daemon; the access is counted when the page is settled, a little later (`HEARD`). Pages that are still
//! marked at the end of the period were not touched. They are unmarked, and opened again where a page that stays
//! closed would cost a mapping. A mark that was lost on the way, because the page was merged or came with its
//! neighbours, counts neither way. The fraction that was touched, times the size of the VM, is a sample of its
//! working set: within 10 percentage points in 19 of 20 periods.
//!
//! A period costs the guest at most 100 minor faults, and the memory thread of its shim one command or
//! two. Where every closed page costs a mapping and none is left, nothing is sampled: the estimate stays
//! what it was.
//!
//! *Running time* is time in which no thread of the VM stood still because of the daemon. A guest that waits touches
//! nothing, and that says nothing about what it needs: if such time counted, a guest that is short of memory would look
//! idle, be taxed for it and become shorter still. But in a guest of many threads one thread always waits for
//! something. So at least a quarter of the time counts as running.
//!
//! # A second opinion
//!
//! The kernel keeps an accessed bit for each page that a process has mapped. Clearing all of these bits and
//! counting them a period later says exactly what was touched, at the price of walking the guest's page
//! tables twice. So it is done only while somebody looks at that VM ([`Process::accessed`]), and the policy
//! does not use it. It counts the whole process, including the few MiB of the guest's own program.
//!
//! # Locks
//!
//! The sampler belongs to the worker. It holds the locks of the drawn pages, ascending, while the shim
//! freezes and closes them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index;

use crate::engine::EngineError;
use crate::page::{Home, PageGuard};
use crate::remap;
use crate::sys::Process;
use crate::units::{Gfn, Pages};
use crate::vm::Vm;

#[cfg(doc)]
use crate::vm::Activity;

/// Pages drawn for each period. OSDI 2002 section 5.3.
pub const SAMPLES: u32 = 100;

/// At least this part of the time that passed, one in so many, counts as running time, however long the VM stood still.
const SLOWEST: u32 = 4;

/// What an inline guest says about its stalls is known at most this much later. Such stalls have counted as running
/// time by then, so up to this much is taken off the running time that follows.
const STALL_REPORT_LAG: Duration = Duration::from_millis(500);

/// The estimate counts an access that the guest has served itself at most this much later, or a part of the period
/// later, one in so many, if that is longer. The policy looks four times a second, so it would hardly gain by less.
const HEARD: (Duration, u32) = (Duration::from_millis(250), 8);

/// The samples of one VM; belongs to its worker. See the module text.
#[derive(Debug)]
pub struct Sampler {
    rng: StdRng,
    /// The process whose page tables are asked, if there is one.
    process: Option<Arc<Process>>,
    /// Whether the accessed bits were cleared when the period began.
    cleared: bool,
    /// The pages that were marked in the current period, ascending.
    marked: Vec<Gfn>,
    /// Running time of the period so far.
    ran: Duration,
    seen: Instant,
    /// For how long the VM had stood still at `seen`.
    stood: Duration,
    /// How much of that time has counted as running time, before it was known.
    owed: Duration,
    began: bool,
}

impl Sampler {
    /// A sampler whose draws follow from `seed`.
    #[must_use]
    pub fn new(seed: u64, now: Instant, process: Option<Arc<Process>>) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            process,
            cleared: false,
            marked: Vec::new(),
            ran: Duration::ZERO,
            seen: now,
            stood: Duration::ZERO,
            owed: Duration::ZERO,
            began: false,
        }
    }

    /// When the sampler wants to be called again.
    #[must_use]
    pub fn due(&self, vm: &Vm, now: Instant, period: Duration) -> Instant {
        let mut left = period.saturating_sub(self.ran);
        if vm.table.claims().is_some() {
            left = left.min(HEARD.0.max(period / HEARD.1));
        }
        // A VM that stands still hardly comes closer to the end of its period: look again after a sixteenth at the
        // earliest.
        now + if left.is_zero() {
            left
        } else {
            left.max(period / 16)
        }
    }

    /// Lets time pass. When the period is over, ends it and begins the next one. A period of zero switches
    /// sampling off.
    ///
    /// A gap longer than a period counts as one period: a worker that slept that long has seen nothing of it.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub fn tick(&mut self, vm: &Vm, now: Instant, period: Duration) -> Result<(), EngineError> {
        // Both of one moment: the caller has done other things since its `now`, and stalls may have been noted later.
        let (stood, now) = vm.stalls.stood_still(now);
        // A worker that comes late must not end several periods at once.
        let passed = now.saturating_duration_since(self.seen).min(period);
        self.seen = now;
        let still = stood.saturating_sub(std::mem::replace(&mut self.stood, stood));
        if period.is_zero() {
            if self.began {
                self.unmark(vm)?;
                vm.activity.forget();
                self.began = false;
            }
            return Ok(());
        }
        let still = still + self.owed;
        let ran = passed.saturating_sub(still).max(passed / SLOWEST);
        self.owed = still.saturating_sub(passed - ran).min(STALL_REPORT_LAG);
        self.ran += ran;
        if self.began {
            if self.ran < period {
                self.count_opened(vm);
                return Ok(());
            }
            let untouched = self.unmark(vm)?;
            vm.activity.end(untouched);
        }
        self.ask_page_tables(vm);
        (self.ran, self.began) = (Duration::ZERO, true);
        let drawn = self.mark(vm)?;
        vm.activity.begin(drawn);
        Ok(())
    }

    /// Counts the accesses that the guest has served itself.
    fn count_opened(&self, vm: &Vm) {
        if let Some(claims) = vm.table.claims() {
            let done = self.marked.iter().filter(|gfn| claims.is_done(**gfn));
            done.for_each(|gfn| drop(vm.try_lock(*gfn)));
        }
    }

    /// Counts the accessed pages of the period that ends, and clears them for the next one.
    fn ask_page_tables(&mut self, vm: &Vm) {
        let process = self.process.as_ref().filter(|_| vm.activity.is_watched());
        let Some(process) = process else {
            self.cleared = false;
            vm.activity.set_referenced(None);
            return;
        };
        let size = Pages(u64::from(vm.table.pages()));
        let accessed = self.cleared.then(|| process.accessed());
        // An error, because the guest ends or /proc may not be read, only leaves the number unknown.
        let pages = accessed.and_then(|bytes| Some(bytes.ok()?.pages().min(size)));
        vm.activity.set_referenced(pages);
        // If the bits are not cleared now, what is counted next would be of more than one period.
        self.cleared = process.clear_accessed().is_ok();
    }

    /// Draws and marks pages, and returns how many. Busy pages are left out.
    fn mark(&mut self, vm: &Vm) -> Result<u32, EngineError> {
        let pages = vm.table.pages();
        let count = pages.min(SAMPLES);
        // Each drawn page may take a mapping of its own. Where these run short, sampling gives way.
        if remap::room(vm) < count as usize {
            return Ok(0);
        }
        let drawn = index::sample(&mut self.rng, pages as usize, count as usize);
        let mut gfns: Vec<Gfn> = drawn.iter().map(|gfn| Gfn(gfn as u32)).collect();
        // Whoever locks several pages takes them in ascending order.
        gfns.sort_unstable();
        free_of_large(vm, &mut gfns)?;
        let (mut resident, mut shared) = (Vec::new(), Vec::new());
        for page in gfns.into_iter().filter_map(|gfn| vm.try_lock(gfn)) {
            match page.home() {
                // It is left over from an earlier period, and is in `marked` already.
                _ if page.entry().is_sampled() => {}
                Home::Resident => resident.push(page),
                Home::Shared(_) => shared.push(page),
                _ => {
                    page.set_sampled(true);
                    self.marked.push(page.gfn());
                }
            }
        }
        // Marked only if they are frozen: an open page would be touched unseen, and count as idle.
        if remap::freeze(vm, resident.iter())? {
            resident.iter().for_each(|page| page.set_sampled(true));
            self.marked.extend(resident.iter().map(PageGuard::gfn));
        }
        // Unlocked before the next command: a guest that touches them must not wait for it.
        drop(resident);
        self.marked.extend(shared.iter().map(PageGuard::gfn));
        remap::close(vm, &shared)?;
        drop(shared);
        self.marked.sort_unstable();
        Ok(u32::try_from(self.marked.len()).unwrap_or(u32::MAX))
    }

    /// Removes the marks that are left, and returns how many there were. Pages that are busy, or that the
    /// guest's kernel refuses to open, stay marked until the next time; faults on them are served as usual.
    fn unmark(&mut self, vm: &Vm) -> Result<u32, EngineError> {
        let mut untouched = 0;
        let mut busy = Vec::new();
        let (mut shared, mut frozen) = (Vec::new(), Vec::new());
        for gfn in std::mem::take(&mut self.marked) {
            let is_untouched = vm.table.entry(gfn).is_sampled();
            vm.large.note_sample(gfn, !is_untouched);
            if !is_untouched {
                continue;
            }
            let Some(page) = vm.try_lock(gfn) else {
                busy.push(gfn);
                continue;
            };
            if !page.entry().is_sampled() {
                continue;
            }
            // Counted even if it cannot be opened again below: its period is over either way.
            untouched += 1;
            match page.home() {
                Home::Shared(_) => shared.push(page),
                Home::Resident if !page.entry().is_open() => frozen.push(page),
                _ => page.set_sampled(false),
            }
        }
        if !remap::reveal(vm, &shared)? {
            busy.extend(shared.iter().map(PageGuard::gfn));
        }
        if remap::thaw(vm, &frozen)? {
            frozen.iter().for_each(|page| page.set_sampled(false));
        } else {
            busy.extend(frozen.iter().map(PageGuard::gfn));
        }
        self.marked = busy;
        Ok(untouched)
    }
}

/// Has the pages that are in large pages mapped one by one, so that each can be frozen alone, and drops those of which
/// that cannot be done.
fn free_of_large(vm: &Vm, gfns: &mut Vec<Gfn>) -> Result<(), EngineError> {
    let mut kept = Vec::with_capacity(gfns.len());
    for &gfn in &*gfns {
        let is_free = match vm.large.large_at(gfn) {
            Some(region) => remap::tear(vm, region)?,
            None => true,
        };
        if is_free {
            kept.push(gfn);
        }
    }
    *gfns = kept;
    Ok(())
}
