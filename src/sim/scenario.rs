//! What the tests of this room have in common: hosts and guests that are short of nothing, what guests are told to do,
//! and the state in which a test must end.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Mutex as StdMutex;

use proptest::prelude::ProptestConfig;
use proptest::strategy::Strategy;
use proptest::test_runner::TestRunner;
use shuttle::thread::yield_now;

use super::{Guest, GuestThread, Host, Op, Spec};
use crate::compress::samples;
use crate::engine::EngineKind;
use crate::page::Home;
use crate::sync::{AtomicU32, Ordering};
use crate::units::{Gfn, PageBuf, Pages, VmId};
use crate::vm::{Eviction, Means, Vm};

/// Both engines.
pub(super) const KINDS: [EngineKind; 2] = [EngineKind::Uffd, EngineKind::Mprotect];
/// Eviction into the cache alone.
pub(super) const ZIP: Means = Means {
    compress: true,
    swap: false,
};
/// Eviction into the swap file alone.
pub(super) const SWAP: Means = Means {
    compress: false,
    swap: true,
};

/// The pages of a large page, unless a test says otherwise: small guests have several.
pub(super) const LARGE_PAGE: u32 = 8;
/// Pages of the host that are kept for refills and reclaim.
pub(super) const RESERVE: u64 = 4;

impl Spec {
    /// A guest with one thread that is short of nothing.
    pub(super) const fn of(kind: EngineKind, pages: u32) -> Self {
        Self {
            kind,
            pages,
            salt: 0,
            swap_slots: pages,
            zip_pages: 16,
            vma_budget: 1000,
            threads: 1,
            inline: false,
            ahead: 15,
            large_page: LARGE_PAGE,
        }
    }

    /// The same for a guest of engine uffd that serves some of its faults itself.
    pub(super) const fn inline(pages: u32) -> Self {
        Self {
            inline: true,
            ..Self::of(EngineKind::Uffd, pages)
        }
    }

    /// Guests of all kinds: one of each engine, and one that serves itself.
    pub(super) fn all(pages: u32) -> [Self; 3] {
        let [uffd, mprotect] = KINDS.map(|kind| Self::of(kind, pages));
        [uffd, mprotect, Self::inline(pages)]
    }
}

/// A page that compresses well; different for each gfn.
pub(super) fn small(gfn: u32) -> PageBuf {
    samples::mixed(gfn.into(), 500)
}

/// A page that does not compress; different for each gfn.
pub(super) fn noise(gfn: u32) -> PageBuf {
    samples::random(u64::from(gfn) + 1)
}

impl Host {
    /// A host with memory for a few guests.
    pub(super) fn roomy() -> Self {
        Self::new(400, RESERVE, 2, 128)
    }

    /// Powers a guest on; the host must have memory for it.
    pub(super) fn start(&self, id: u32, spec: Spec) -> Guest {
        self.power_on(VmId(id), spec).expect("there is memory")
    }

    /// Checks that the guests have lost nothing, ends them, and checks that they leave nothing behind.
    pub(super) fn end(&self, guests: impl IntoIterator<Item = Guest>) {
        let guests: Vec<Guest> = guests.into_iter().collect();
        self.check(&guests.iter().collect::<Vec<_>>());
        guests.into_iter().for_each(|guest| self.bury(guest));
        self.check_empty();
    }
}

/// Orders a VM's worker to evict this many pages from now on, by all means.
pub(super) fn order(vm: &Vm, pages: u64) {
    let eviction = Eviction::at_once(Pages(pages), Means::ALL);
    vm.orders.set_evict(eviction);
}

/// Runs `story` with a guest that has its host to itself. Afterwards the guest reads all that it wrote, and must have
/// lost nothing.
pub(super) fn alone(spec: Spec, story: impl FnOnce(&Host, &mut Guest)) {
    // Shown only if the test fails.
    println!("{spec:?}");
    let host = Host::roomy();
    let mut guest = host.start(1, spec);
    story(&host, &mut guest);
    host.check(&[&guest]);
    guest.read_all();
    host.end([guest]);
}

/// The same for each of these guests, one after the other.
pub(super) fn each(specs: impl IntoIterator<Item = Spec>, story: impl Fn(&Host, &mut Guest)) {
    specs.into_iter().for_each(|spec| alone(spec, &story));
}

impl Guest {
    pub(super) fn write(&mut self, gfn: u32, page: PageBuf) {
        self.run(gfn, Op::Write(Box::new(page)));
    }

    pub(super) fn read(&mut self, gfn: u32) {
        self.run(gfn, Op::Read);
    }

    fn run(&mut self, gfn: u32, op: Op) {
        let thread = gfn as usize % self.threads.len();
        assert!(self.attempt(thread, gfn, op), "{gfn} waits");
    }

    /// Reads every page that was written.
    pub(super) fn read_all(&mut self) {
        for gfn in 0..self.vm.table.pages() {
            if self.home(gfn) != Home::Untouched {
                self.read(gfn);
            }
        }
    }

    pub(super) fn write_all(&mut self, content: impl Fn(u32) -> PageBuf) {
        (0..self.vm.table.pages()).for_each(|gfn| self.write(gfn, content(gfn)));
    }

    /// Writes all its pages, and has them evicted by these means.
    pub(super) fn write_and_evict(&mut self, means: Means, content: impl Fn(u32) -> PageBuf) {
        self.write_all(content);
        while self.vm.table.count(Home::Resident) > 0 {
            assert!(self.evict_by(32, means) > 0);
        }
    }

    pub(super) fn home(&self, gfn: u32) -> Home {
        self.vm.table.entry(Gfn(gfn)).home()
    }

    /// The pages that are resident.
    pub(super) fn resident(&self) -> Vec<u32> {
        self.vm.settle_done();
        let resident = self.homes().filter(|(_, home)| *home == Home::Resident);
        resident.map(|(gfn, _)| gfn.0).collect()
    }

    /// Damages a page in its store. A second call makes it whole again.
    pub(super) fn damage(&self, gfn: u32) {
        match self.home(gfn) {
            Home::Compressed(slot) => self.vm.zip.lock().damage(slot),
            Home::Swapped(slot) if slot.is_cached() => self.cache_disk.damage(slot.in_file()),
            Home::Swapped(slot) => self.disk.damage(slot),
            home => panic!("{gfn} is {home:?}"),
        }
    }
}

/// A task that was not served after this many turns of all others never will be.
const PATIENCE: usize = 20_000;

/// Lets other tasks run until `who` has what it waits for.
pub(super) fn wait_for<W: Display, T>(mut who: W, look: impl Fn(&mut W) -> Option<T>) -> T {
    for _ in 0..PATIENCE {
        if let Some(it) = look(&mut who) {
            return it;
        }
        yield_now();
    }
    panic!("{who} waits, and nobody serves it");
}

/// Lets a thread do something while other tasks serve its faults.
pub(super) fn finish(guest: &mut GuestThread, gfn: Gfn, op: Op) {
    guest.begin(gfn, op);
    wait_for(guest, |guest| guest.poll().then_some(()));
}

/// Takes step after step, as a thread of the daemon does, until no thread of a guest runs and no step is left.
pub(super) fn serve(running: &AtomicU32, mut step: impl FnMut() -> bool) {
    loop {
        // Read before the step, so that what the last thread said before it ended is still served.
        let over = running.load(Ordering::SeqCst) == 0;
        if !step() {
            if over {
                return;
            }
            yield_now();
        }
    }
}

/// Multiplies the cases of every search: with 100 they take an hour, and find what a change breaks only rarely.
const SEARCH_FACTOR: &str = "MEMVISOR_SEARCH_FACTOR";

/// Tries this many values. If one fails, shrinks it and panics with the smallest that still does.
pub(super) fn search<S: Strategy>(cases: u32, values: S, test: impl Fn(S::Value)) {
    let factor = std::env::var(SEARCH_FACTOR).map_or(1, |it| it.parse().expect("a whole number"));
    let cases = cases.saturating_mul(factor);
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    });
    let result = runner.run(&values, |value| {
        test(value);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Counts what happened to all guests of a search together: what never happened was not tested.
#[derive(Debug, Default)]
pub(super) struct Coverage(StdMutex<BTreeMap<&'static str, u64>>);

impl Coverage {
    pub(super) fn note(&self, vm: &Vm) {
        let estimate = vm.activity.estimate();
        let estimates = u64::from(estimate.is_some_and(|e| e.fast > 0.0));
        let mut seen = self.0.lock().expect("no holder panicked");
        for (name, count) in vm.stats.all().into_iter().chain([("estimates", estimates)]) {
            *seen.entry(name).or_default() += count;
        }
    }

    /// # Panics
    /// When something never happened that is not in `never`.
    pub(super) fn check(&self, never: &[&str]) {
        let seen = self.0.lock().expect("no holder panicked");
        let is_missing = |(name, count): &(&&str, &u64)| **count == 0 && !never.contains(name);
        let missing: Vec<_> = seen.iter().filter(is_missing).collect();
        assert!(missing.is_empty(), "never tested: {missing:?}");
    }
}
