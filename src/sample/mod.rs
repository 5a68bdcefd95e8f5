//! Estimating how much of its memory a guest uses.
//!
//! # The problem
//!
//! A host that must take memory from somebody wants to take it from who does not use it. It does not
//! see the guest's loads and stores, a guest that is asked answers what it likes, and looking at the
//! accessed bits of all page tables costs time in proportion to memory.
//!
//! # The structure
//!
//! So a few pages stand for all, as in ESX (OSDI 2002 section 5.3). In each period of the VM's running time
//! 100 of its pages are drawn, uniformly from all of them whatever their homes, and marked in the page
//! table. The mark says: count the next access. How an access becomes visible depends on the home:
//!
//! | home | what the next access meets |
//! |---|---|
//! | resident | it is frozen: a minor fault, or SIGSEGV |
//! | shared | its mapping is closed: SIGSEGV, of reads as well |
//! | untouched, zero, compressed, swapped | the fault that it meets anyway |
//! | ballooned | nothing: a guest that gave a page away does not use it |
//!
//! The fault thread clears the mark and counts ([`Activity`]). At the end of the period what is still
//! marked was not touched; it is unmarked, and opened again where a page that stays closed would cost a
//! mapping. A mark that got lost on the way, because the page was merged or came with its neighbours,
//! counts neither way. The fraction that was touched, times the size of the VM, is a sample of its
//! working set: within 10 percentage points in 19 of 20 periods.
//!
//! A period costs the guest at most 100 minor faults, and the memory thread of its shim one command or
//! two. Where every closed page costs a mapping and none is left, nothing is sampled: the estimate stays
//! what it was.
//!
//! *Running time* is time in which no thread of the VM stood still because of us: a guest that waits touches nothing, and
//! that says nothing about what it needs. Else a guest that is short of memory would look idle, be taxed for
//! it and become shorter still. But of a guest of many threads one always waits for something. So at least a
//! quarter of the time counts as running.
//!
//! # A second opinion
//!
//! The kernel keeps an accessed bit for each page that a process has mapped. Clearing all of them and
//! counting them a period later says exactly what was touched, at the price of walking the guest's page
//! tables twice; so it is done only while somebody looks ([`Process::accessed`]), and the policy does not
//! use it. It counts the whole process: the few MiB of the guest's own program, too.
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

/// At least the time that passed, divided by this, counts as running time, however long the VM stood still.
const SLOWEST: u32 = 4;

/// What an inline guest says of its stalls is heard so late at most: it is no running time of what passes next.
const HEARSAY: Duration = Duration::from_millis(500);

/// The samples of one VM; belongs to its worker. See the module text.
#[derive(Debug)]
pub struct Sampler {
    rng: StdRng,
    /// Whose page tables are asked, if there are any.
    process: Option<Arc<Process>>,
    /// Whether the accessed bits were cleared when the period began.
    cleared: bool,
    /// What was marked in the period that runs, ascending.
    marked: Vec<Gfn>,
    /// Running time of the period so far.
    ran: Duration,
    seen: Instant,
    /// For how long the VM had stood still then.
    stood: Duration,
    /// How much of that has counted as running time before it was heard of.
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
    pub fn due(&self, now: Instant, period: Duration) -> Instant {
        let left = period.saturating_sub(self.ran);
        // Of a VM that stands still little is left for long.
        now + if left.is_zero() {
            left
        } else {
            left.max(period / 16)
        }
    }

    /// Lets time pass; when the period is over, closes it and begins the next. A period of zero switches
    /// sampling off.
    ///
    /// A gap longer than a period counts as one period: whoever slept that long saw nothing of it.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub fn tick(&mut self, vm: &Vm, now: Instant, period: Duration) -> Result<(), EngineError> {
        // Of the same moment: whoever calls has done other things since `now`.
        let (stood, now) = vm.stalls.stood_still(now);
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
        self.owed = still.saturating_sub(passed - ran).min(HEARSAY);
        self.ran += ran;
        if self.began {
            if self.ran < period {
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
        // A guest that ends, or a /proc that may not be read, leaves the estimate alone.
        let pages = accessed.and_then(|bytes| Some(bytes.ok()?.pages().min(size)));
        vm.activity.set_referenced(pages);
        self.cleared = process.clear_accessed().is_ok();
    }

    /// Draws and marks pages; how many. Pages that are busy are left out.
    fn mark(&mut self, vm: &Vm) -> Result<u32, EngineError> {
        let pages = vm.table.pages();
        let count = pages.min(SAMPLES);
        if remap::room(vm) < count as usize {
            return Ok(0);
        }
        let drawn = index::sample(&mut self.rng, pages as usize, count as usize);
        let mut gfns: Vec<Gfn> = drawn.iter().map(|gfn| Gfn(gfn as u32)).collect();
        gfns.sort_unstable();
        let (mut resident, mut shared) = (Vec::new(), Vec::new());
        for page in gfns.into_iter().filter_map(|gfn| vm.try_lock(gfn)) {
            match page.home() {
                // Left over from the period before, and noted already.
                _ if page.entry().is_sampled() => {}
                Home::Resident => resident.push(page),
                Home::Shared(_) => shared.push(page),
                _ => {
                    page.set_sampled(true);
                    self.marked.push(page.gfn());
                }
            }
        }
        if remap::freeze(vm, resident.iter())? {
            resident.iter().for_each(|page| page.set_sampled(true));
            self.marked.extend(resident.iter().map(PageGuard::gfn));
        }
        drop(resident);
        self.marked.extend(shared.iter().map(PageGuard::gfn));
        remap::close(vm, &shared)?;
        drop(shared);
        self.marked.sort_unstable();
        Ok(u32::try_from(self.marked.len()).unwrap_or(u32::MAX))
    }

    /// Takes the marks away that are left; how many there were. Pages that are busy, or that the
    /// guest's kernel refuses to open, stay marked for the next time: their faults are served as ever.
    fn unmark(&mut self, vm: &Vm) -> Result<u32, EngineError> {
        let mut untouched = 0;
        let mut busy = Vec::new();
        let (mut shared, mut frozen) = (Vec::new(), Vec::new());
        for gfn in std::mem::take(&mut self.marked) {
            if !vm.table.entry(gfn).is_sampled() {
                continue;
            }
            let Some(page) = vm.try_lock(gfn) else {
                busy.push(gfn);
                continue;
            };
            if !page.entry().is_sampled() {
                continue;
            }
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
