//! One fault, served by the home its page has now.

use thiserror::Error;

use crate::compress::ZipError;
use crate::engine::{Content, EngineError, EngineKind, Provided, Reply};
use crate::page::{Home, KeptPage, PageGuard, Urgency};
use crate::swap::SwapError;
use crate::units::{FrameId, Gfn, GfnRun, PageBuf, SlotId};
use crate::vm::Vm;

/// What the guest tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A read, or an access of which the kernel does not say what it was: the page was not there.
    Any,
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
pub struct Pending(Vec<KeptPage>);

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
    if !vm.table.contains(gfn) {
        return Err(FaultError::Outside {
            gfn,
            pages: vm.table.pages(),
        });
    }
    let page = loop {
        match vm.table.try_lock(gfn) {
            Some(page) => break page,
            None if vm.table.park(gfn) => return Ok(Outcome::Busy),
            // It was unlocked in between.
            None => {}
        }
    };
    match page.home() {
        Home::Resident => present(vm, page),
        Home::Shared(frame) if access == Access::Write => break_shared(vm, page, frame),
        Home::Shared(_) => {
            vm.engine.wake(gfn);
            Ok(Outcome::Served)
        }
        Home::Untouched | Home::Zero | Home::Ballooned => touch(vm, page),
        Home::Compressed(slot) => refill_zip(vm, page, slot),
        Home::Swapped(slot) => refill_swap(vm, page, slot),
    }
}

/// The page is there: another thread's fault brought it, or it was frozen and the move given up.
fn present(vm: &Vm, page: PageGuard<'_>) -> Result<Outcome, FaultError> {
    if page.entry().is_open() {
        return Ok(Outcome::Served);
    }
    let provided = provide(vm, &page, Content::Present)?;
    Ok(hand_over(page, provided))
}

/// A page of zeroes. Touching a ballooned page pops the balloon: the guest's agent does not know
/// its own pages any more, which the balloon session tells it.
fn touch(vm: &Vm, page: PageGuard<'_>) -> Result<Outcome, FaultError> {
    if !vm.charge(Urgency::Touch) {
        return Ok(Outcome::Starved);
    }
    let counter = match page.home() {
        Home::Ballooned => &vm.stats.pops,
        _ => &vm.stats.first_touch,
    };
    fill(vm, page, Content::Zero, counter)
}

fn refill_zip(vm: &Vm, page: PageGuard<'_>, slot: SlotId) -> Result<Outcome, FaultError> {
    if !vm.charge(Urgency::Refill) {
        return Ok(Outcome::Starved);
    }
    let mut content = PageBuf::zeroed();
    let loaded = vm.zip.lock().load(slot, &mut content);
    if let Err(source) = loaded {
        vm.budget.give(1);
        return Err(FaultError::Zip {
            gfn: page.gfn(),
            source,
        });
    }
    let outcome = fill(vm, page, Content::Bytes(&content), &vm.stats.refill_zip)?;
    vm.release_zip(slot);
    Ok(outcome)
}

fn refill_swap(vm: &Vm, page: PageGuard<'_>, slot: SlotId) -> Result<Outcome, FaultError> {
    if !vm.charge(Urgency::Refill) {
        return Ok(Outcome::Starved);
    }
    let mut content = PageBuf::zeroed();
    if let Err(source) = vm.swap.read(slot, &mut content) {
        vm.budget.give(1);
        return Err(FaultError::Swap {
            gfn: page.gfn(),
            source,
        });
    }
    let outcome = fill(vm, page, Content::Bytes(&content), &vm.stats.refill_swap)?;
    vm.swap.free(slot);
    Ok(outcome)
}

/// Makes a page resident whose memory is charged already.
fn fill(
    vm: &Vm,
    page: PageGuard<'_>,
    content: Content<'_>,
    counter: &crate::vm::Counter,
) -> Result<Outcome, FaultError> {
    match provide(vm, &page, content) {
        Ok(provided) => {
            page.set_home(Home::Resident);
            counter.one();
            Ok(hand_over(page, provided))
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
    if vm.vmas.is_exceeded() {
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
        vm.pool.read(frame, &mut content);
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
    vm.vmas.note(1);
    let count = u32::try_from(kept.len()).unwrap_or(u32::MAX);
    let start = kept.first().map_or(Gfn(0), KeptPage::gfn);
    Outcome::Ask(Reply::Private(GfnRun::new(start, count)), Pending(kept))
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
        let Some(page) = continues(step).and_then(|gfn| vm.table.try_lock(gfn)) else {
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

fn hand_over(page: PageGuard<'_>, provided: Provided) -> Outcome {
    match provided {
        Provided::Done => Outcome::Served,
        Provided::Ask(reply) => Outcome::Ask(reply, Pending(vec![page.keep()])),
    }
}

/// The faulting thread has confirmed its mapping (or is gone): the pages are resident and open, and
/// what they shared is released. Dropping the locks wakes who waits for them.
pub fn complete(vm: &Vm, pending: Pending) {
    for kept in pending.0 {
        let page = vm.table.resume(kept);
        if let Home::Shared(frame) = page.home() {
            page.set_home(Home::Resident);
            vm.release_frame(frame);
            vm.table.back_off(page.gfn());
            vm.stats.breaks.one();
        }
        // With userfaultfd a mapping can be lost behind our back (the kernel swaps, or could not
        // populate it), and the fault that follows must be served.
        page.set_open(vm.engine.kind() == EngineKind::Mprotect);
    }
}
