//! One fault, served by the home its page has now.

use thiserror::Error;

use super::open::ask_open;
use crate::compress::ZipError;
use crate::engine::{Content, EngineError, EngineKind, Provided, Reply};
use crate::page::{Home, KeptPage, PageGuard, Urgency};
use crate::swap::SwapError;
use crate::units::{FrameId, Gfn, GfnRun, PageBuf};
use crate::vm::{Counter, Unlocked, Vm};

/// What the guest tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// An access that waits in the kernel, which does not say what it was: the page was not there.
    Any,
    /// A read of a page that the guest may not read; its thread asks over a channel.
    Read,
    /// A write to a page that the guest may not write.
    Write,
}

/// How a fault ended for now.
#[derive(Debug)]
pub enum Outcome {
    /// The guest can access the page.
    Served,
    /// The faulting thread must do this and confirm it.
    Ask(Reply, Pending),
    /// The page is being moved; its unlock calls the fault thread.
    Busy,
    /// There is no memory for this VM now.
    Starved,
}

/// Pages that stay locked until the faulting thread has confirmed their mapping.
#[derive(Debug)]
#[must_use = "complete it, or its pages are locked for ever"]
pub struct Pending {
    pages: Vec<KeptPage>,
    /// Whether they stay shared: they were only closed.
    revealed: bool,
}

impl Pending {
    /// How many of its pages are behind `gfn`.
    pub(super) fn behind(&self, gfn: Gfn) -> u32 {
        let last = self.pages.last().map_or(gfn, KeptPage::gfn);
        last.0.saturating_sub(gfn.0)
    }
}

/// Why a VM cannot go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FaultError {
    /// The guest touched what is not its RAM.
    #[error("the guest asked for {gfn}, and it has {pages} pages")]
    Outside {
        /// The page it asked for.
        gfn: Gfn,
        /// How many it has.
        pages: u32,
    },
    /// A page of the compression cache is damaged.
    #[error("{gfn} is lost")]
    Zip {
        /// Which page.
        gfn: Gfn,
        /// What is wrong with it.
        #[source]
        source: ZipError,
    },
    /// A page of the swap file is damaged or cannot be read.
    #[error("{gfn} is lost")]
    Swap {
        /// Which page.
        gfn: Gfn,
        /// What is wrong with it.
        #[source]
        source: SwapError,
    },
    /// The page could not be handed over.
    #[error("{gfn} cannot be given to the guest")]
    Engine {
        /// Which page.
        gfn: Gfn,
        /// Why.
        #[source]
        source: EngineError,
    },
}

/// Serves a fault, or says what it waits for. Never blocks, except to read the swap file.
///
/// # Errors
/// [`FaultError`]: the guest cannot go on.
pub fn resolve(vm: &Vm, gfn: Gfn, access: Access) -> Result<Outcome, FaultError> {
    resolve_row(vm, gfn, access, 0)
}

/// As [`resolve`]; where the faulting thread has to open the page, it opens up to `behind` pages behind it
/// too, as far as they are in the same home.
///
/// # Errors
/// As [`resolve`].
pub(super) fn resolve_row(
    vm: &Vm,
    gfn: Gfn,
    access: Access,
    behind: u32,
) -> Result<Outcome, FaultError> {
    if !vm.table.contains(gfn) {
        return Err(FaultError::Outside {
            gfn,
            pages: vm.table.pages(),
        });
    }
    let page = loop {
        match vm.lock(gfn) {
            Ok(page) => break page,
            // Tried again, the access finds the page there or waits for the thread that brings it.
            Err(Unlocked::Claimed) => {
                vm.engine.wake(GfnRun::single(gfn));
                return Ok(Outcome::Served);
            }
            Err(Unlocked::Busy) if vm.table.park(gfn) => return Ok(Outcome::Busy),
            // It was unlocked in between.
            Err(Unlocked::Busy) => {}
        }
    };
    match page.home() {
        Home::Shared(frame) if access == Access::Write => break_shared(vm, page, frame),
        // It stays marked until the guest has opened it: the mark says that it is closed.
        Home::Shared(_) if access == Access::Read && page.entry().is_sampled() => {
            Ok(ask_reveal(vm, page))
        }
        // It was mapped since, or is to be asked for over a channel: either way, tried again.
        Home::Shared(_) => {
            vm.engine.wake(GfnRun::single(gfn));
            Ok(Outcome::Served)
        }
        // Another thread's fault brought it.
        Home::Resident if page.entry().is_open() => Ok(Outcome::Served),
        home => match give_touched(vm, page)? {
            Given::Ready(_, Provided::Done) => Ok(Outcome::Served),
            Given::Ready(page, Provided::Ask(_)) => ask_open(vm, page, home, behind),
            Given::Starved => Ok(Outcome::Starved),
        },
    }
}

/// Counts the access to a sampled page.
pub(super) fn note_touch(vm: &Vm, page: &PageGuard<'_>) {
    if page.entry().is_sampled() {
        page.set_sampled(false);
        vm.activity.touch();
    }
}

fn give_touched<'a>(vm: &'a Vm, page: PageGuard<'a>) -> Result<Given<'a>, FaultError> {
    let given = give(vm, page)?;
    if let Given::Ready(page, _) = &given {
        note_touch(vm, page);
    }
    Ok(given)
}

/// What became of a page that the guest needs.
pub(super) enum Given<'a> {
    /// It is resident; what is left to do.
    Ready(PageGuard<'a>, Provided),
    /// There is no memory for it now.
    Starved,
}

/// Makes a page resident that is not shared.
pub(super) fn give<'a>(vm: &'a Vm, page: PageGuard<'a>) -> Result<Given<'a>, FaultError> {
    let stats = &vm.stats;
    match page.home() {
        // It was frozen, and the move was given up.
        Home::Resident | Home::Shared(_) => {
            let provided = provide(vm, &page, Content::Present)?;
            Ok(Given::Ready(page, provided))
        }
        Home::Untouched | Home::Zero => fill(vm, page, Urgency::Touch, &stats.first_touch, |_| {
            Ok(Content::Zero)
        }),
        // The guest's agent does not know its own pages any more, which its session will tell it.
        Home::Ballooned => fill(vm, page, Urgency::Touch, &stats.pops, |_| Ok(Content::Zero)),
        Home::Compressed(slot) => {
            let gfn = page.gfn();
            fill(vm, page, Urgency::Refill, &stats.refill_zip, |content| {
                let loaded = vm.zip.lock().load(slot, content);
                loaded.map_err(|source| FaultError::Zip { gfn, source })?;
                Ok(Content::Bytes(content))
            })
        }
        Home::Swapped(slot) => {
            let gfn = page.gfn();
            fill(vm, page, Urgency::Refill, &stats.refill_swap, |content| {
                let read = vm.swap.read(slot, content);
                read.map_err(|source| FaultError::Swap { gfn, source })?;
                Ok(Content::Bytes(content))
            })
        }
    }
}

/// Takes a page of memory, fills it with what `load` brings, and releases the old home.
pub(super) fn fill<'a>(
    vm: &'a Vm,
    page: PageGuard<'a>,
    urgency: Urgency,
    counter: &Counter,
    load: impl FnOnce(&mut PageBuf) -> Result<Content<'_>, FaultError>,
) -> Result<Given<'a>, FaultError> {
    if !vm.charge(urgency) {
        return Ok(Given::Starved);
    }
    let mut buffer = PageBuf::zeroed();
    match load(&mut buffer).and_then(|content| provide(vm, &page, content)) {
        Ok(provided) => {
            let old = page.home();
            page.set_home(Home::Resident);
            if matches!(old, Home::Compressed(_) | Home::Swapped(_)) {
                page.set_refilled();
            }
            vm.release(old);
            counter.one();
            Ok(Given::Ready(page, provided))
        }
        Err(error) => {
            vm.budget.give(1);
            Err(error)
        }
    }
}

/// Gives the guest a copy of its own of a page that it shares. The page keeps its home until the
/// guest has mapped the copy: until then it still reads the frame.
fn break_shared(vm: &Vm, page: PageGuard<'_>, frame: FrameId) -> Result<Outcome, FaultError> {
    let mut pages = vec![page];
    if vm.vmas.is_exceeded(&vm.table) {
        extend_to_end_of_run(vm, &mut pages, frame);
    }
    let mut content = PageBuf::zeroed();
    let mut kept = Vec::with_capacity(pages.len());
    for page in pages {
        let Home::Shared(frame) = page.home() else {
            continue;
        };
        if !vm.charge(Urgency::Refill) {
            break;
        }
        vm.pool().read(frame, &mut content);
        if let Err(source) = vm.engine.write_back(page.gfn(), &content) {
            vm.budget.give(1);
            let error = FaultError::Engine {
                gfn: page.gfn(),
                source,
            };
            return if kept.is_empty() {
                Err(error)
            } else {
                Ok(ask_private(vm, kept))
            };
        }
        kept.push(page.keep());
    }
    if kept.is_empty() {
        Ok(Outcome::Starved)
    } else {
        Ok(ask_private(vm, kept))
    }
}

fn ask_private(vm: &Vm, kept: Vec<KeptPage>) -> Outcome {
    vm.vmas.begin(1);
    ask(Reply::Private, kept)
}

/// Neighbouring pages, in order, that stay locked until the faulting thread has remapped them.
pub(super) fn ask(reply: impl FnOnce(GfnRun) -> Reply, kept: Vec<KeptPage>) -> Outcome {
    let count = u32::try_from(kept.len()).unwrap_or(u32::MAX);
    let start = kept.first().map_or(Gfn(0), KeptPage::gfn);
    let pending = Pending {
        pages: kept,
        revealed: false,
    };
    Outcome::Ask(reply(GfnRun::new(start, count)), pending)
}

/// Has the faulting thread open a frame that it may not even read.
fn ask_reveal(vm: &Vm, page: PageGuard<'_>) -> Outcome {
    vm.vmas.begin(1);
    let run = GfnRun::single(page.gfn());
    let pending = Pending {
        pages: vec![page.keep()],
        revealed: true,
    };
    Outcome::Ask(Reply::Reveal(run), pending)
}

/// The longest end of a run that is broken at once, 128 KiB.
const MAX_BREAK: u32 = 32;

/// Near the limit of VMAs, a page broken out of the middle of a run would cost two more. Breaking
/// everything behind it too costs none. A longer rest is left: then the split is worth it.
fn extend_to_end_of_run<'a>(vm: &'a Vm, pages: &mut Vec<PageGuard<'a>>, frame: FrameId) {
    let Some(first) = pages.first().map(PageGuard::gfn) else {
        return;
    };
    let continues = |step: u32| {
        let gfn = first
            .checked_add(step)
            .filter(|gfn| vm.table.contains(*gfn))?;
        let next = Home::Shared(FrameId(frame.0.checked_add(step)?));
        (vm.table.entry(gfn).home() == next).then_some(gfn)
    };
    if continues(MAX_BREAK).is_some() {
        return;
    }
    for step in 1..MAX_BREAK {
        let Some(page) = continues(step).and_then(|gfn| vm.try_lock(gfn)) else {
            return;
        };
        if page.home() != Home::Shared(FrameId(frame.0 + step)) {
            return;
        }
        pages.push(page);
    }
}

fn provide(vm: &Vm, page: &PageGuard<'_>, content: Content<'_>) -> Result<Provided, FaultError> {
    let gfn = page.gfn();
    vm.engine
        .provide(gfn, content)
        .map_err(|source| FaultError::Engine { gfn, source })
}

/// The faulting thread has confirmed its mapping (or is gone): the pages are resident and open, and
/// what they shared is released. Dropping the locks wakes who waits for them.
pub fn complete(vm: &Vm, pending: Pending) {
    // With its last shared page gone, the VM may leave the pool at any moment.
    let pool = vm.pool();
    for kept in pending.pages {
        let page = vm.table.resume(kept);
        note_touch(vm, &page);
        if pending.revealed {
            continue;
        }
        if let Home::Shared(frame) = page.home() {
            page.set_home(Home::Resident);
            vm.release_frame_of(&pool, frame);
            vm.table.back_off(page.gfn());
            vm.stats.breaks.one();
        }
        // With userfaultfd a mapping can be lost behind our back (the kernel swaps, or could not
        // populate it), and the fault that follows must be served.
        page.set_open(vm.engine.kind() == EngineKind::Mprotect);
    }
    vm.vmas.end(1);
}
