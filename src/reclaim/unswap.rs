//! Bringing pages back from the swap file before their guest asks for them.
//!
//! What a short spell of pressure has swapped out stays out until its guest touches it, however much memory is free
//! afterwards, and then the guest waits for the disk page by page. So, as in later versions of ESX, an operator can have
//! a VM's swapped pages brought back (`memvisor vm unswap`), and `Memvisor.UnswapRate` does that for
//! all VMs when memory has stayed free for a while. Either brings back a bounded number of pages a second, because the
//! disk is the guests' too, and only while more is free than reclaim aims at, with a margin: otherwise pages that
//! nobody asked for would push out others, and be pushed out again.
//!
//! Pages that left because they were cold do not come by themselves: they would only have to be taken again. An
//! operator's order brings them too.

use std::time::{Duration, Instant};

use crate::engine::{Content, EngineKind};
use crate::page::{Home, PageGuard, Urgency};
use crate::units::{Gfn, GfnRun, PageBuf, Pages, SlotId};
use crate::vm::Vm;

/// Slices a second.
const SLICES: u32 = 10;
/// For how long memory has to stay free before pages come back by themselves.
const FREE_FOR: Duration = Duration::from_secs(10);
/// How long to wait for free memory.
const PAUSE: Duration = Duration::from_secs(1);
/// How long to wait after a walk that brought nothing: pages that are sampled can come when their period is over.
const NEXT_WALK: Duration = Duration::from_secs(10);
/// After so many walks in a row that brought nothing an order ends, although pages are left. That takes longer than the
/// longest period of sampling, 180 s, so those pages are damaged.
const WALKS_IN_VAIN: u32 = 20;
/// Free memory beyond what reclaim aims at, one page in so many of the budget, that is left alone.
const MARGIN: u64 = 64;
/// Pages that are read together at most.
const AT_ONCE: u32 = 16;
/// Entries of the page table that one slice looks at, at most.
const LOOKED_AT: u32 = 1 << 18;

/// What brings back the swapped pages of one VM.
#[derive(Debug, Default)]
pub(super) struct Unswapper {
    cursor: u32,
    /// Pages that came in this walk through the VM.
    came: u32,
    /// Walks in a row that brought nothing.
    in_vain: u32,
    /// Whether an operator had ordered it in the latest step.
    is_ordered: bool,
    free_since: Option<Instant>,
    due: Option<Instant>,
}

impl Unswapper {
    /// When there is something to do again; `None` when nothing is.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Brings back a slice of pages if it is time: as many a second as the operator has ordered, otherwise `rate`.
    pub(super) fn step(&mut self, vm: &Vm, now: Instant, rate: u32) {
        let order = vm.orders.unswap();
        let rate = order.unwrap_or(rate);
        if rate == 0 || vm.table.count(Home::Swapped(SlotId(0))) == 0 {
            vm.orders.end_unswap(order);
            *self = Self::default();
            return;
        }
        if self.is_ordered != order.is_some() {
            // An order is not kept waiting by what was due without it.
            (self.is_ordered, self.due) = (order.is_some(), None);
        }
        if self.due.is_some_and(|due| now < due) {
            return;
        }
        if !is_free(vm) {
            (self.free_since, self.due) = (None, Some(now + PAUSE));
            return;
        }
        let free_since = *self.free_since.get_or_insert(now);
        if !self.is_ordered && now < free_since + FREE_FOR {
            self.due = Some(now + PAUSE);
            return;
        }
        self.slice(vm, now, rate);
    }

    fn slice(&mut self, vm: &Vm, now: Instant, rate: u32) {
        let most = (rate / SLICES).max(1);
        let end = vm.table.pages();
        let (mut came, mut looked_at) = (0, 0);
        while came < most && looked_at < LOOKED_AT && self.cursor < end && is_free(vm) {
            let count = AT_ONCE.min(most - came).min(end - self.cursor);
            let run = GfnRun::new(Gfn(self.cursor), count);
            let now_came = bring_back(vm, run, self.is_ordered);
            came += now_came;
            self.cursor += now_came.max(1);
            looked_at += now_came.max(1);
        }
        self.came = self.came.saturating_add(came);
        let is_short = !is_free(vm);
        self.due = Some(match is_short {
            true => now + PAUSE,
            false => now + Duration::from_secs(1) * came.max(1) / rate,
        });
        if self.cursor < end {
            return;
        }
        self.cursor = 0;
        if std::mem::take(&mut self.came) > 0 || is_short {
            self.in_vain = 0;
            return;
        }
        self.in_vain += 1;
        self.due = Some(now + NEXT_WALK);
        if self.in_vain >= WALKS_IN_VAIN {
            // They are for their guest to ask for, which is then told.
            vm.orders.end_unswap(vm.orders.unswap());
        }
    }
}

/// Whether so much is free, and the VM holds so little, that pages may come which nobody has asked for.
fn is_free(vm: &Vm) -> bool {
    vm.budget.beyond_aim() > Pages(vm.budget.total().0 / MARGIN) && vm.has_room()
}

/// Brings back the first page of `run` if it is in the swap file, and those behind it that follow it there. Returns how
/// many came. A page that is busy, sampled or damaged stays where it is until its guest touches it.
fn bring_back(vm: &Vm, run: GfnRun, is_ordered: bool) -> u32 {
    let can_come = |page: &PageGuard<'_>| {
        let entry = page.entry();
        let comes = is_ordered || !entry.is_cold();
        matches!(entry.home(), Home::Swapped(_)) && !entry.is_sampled() && comes
    };
    let lock = |gfn| {
        let is_swapped = matches!(vm.table.entry(gfn).home(), Home::Swapped(_));
        let page = is_swapped.then(|| vm.try_lock(gfn)).flatten();
        page.filter(can_come)
    };
    let pages: Vec<_> = run.iter().map_while(lock).collect();
    let Some((first, behind)) = pages.split_first() else {
        return 0;
    };
    let mut read = vm.read_together(first, behind);
    if read.is_empty() {
        let mut page = PageBuf::zeroed();
        let is_read = match first.home() {
            Home::Swapped(slot) => vm.swap.read(slot, &mut page).is_ok(),
            _ => false,
        };
        read.extend(is_read.then_some(page));
    }
    let come = pages.iter().zip(&read);
    let come = come.take_while(|(page, content)| vm.has_room() && place(vm, page, content));
    let come = u32::try_from(come.count()).unwrap_or(u32::MAX);
    vm.stats.unswapped.add(come.into());
    come
}

/// Makes a locked page resident that is in the swap file. Whether memory and the engine allowed it. It counts neither as
/// a refill nor as wanted back, because nobody has wanted it.
fn place(vm: &Vm, page: &PageGuard<'_>, content: &PageBuf) -> bool {
    let budget = &vm.budget;
    // As a first touch, it leaves the whole reserve to faults, and faults that wait come first.
    if budget.is_awaited(Urgency::Touch) || !budget.take(1, Urgency::Touch) {
        return false;
    }
    let content = Content::Bytes(content);
    if vm.engine.provide(page.gfn(), content).is_err() {
        budget.give(1);
        return false;
    }
    let old = page.home();
    page.set_home(Home::Resident);
    vm.release(old);
    if vm.engine.kind() == EngineKind::Uffd {
        page.set_open();
    }
    true
}
