//! Giving a guest a page, and its neighbours with it.
//!
//! A fault costs far more than the page that it is about. Where neighbours are worth having too (the pages behind a
//! sequential fault, the rest of a shared run, a block where every mapping counts), one fault brings them all.
//! [`resolve`](super::resolve()) says which neighbours are wanted. What happens to a neighbour is decided here:
//!
//! - It is *locked*, if that succeeds at once. A page that is busy, not wanted or sampled ends the run, because the run
//!   must be in one piece. The next access to a sampled page is to be counted, and the guest has not accessed this one.
//! - It is *charged* like the page that was asked for. Where memory is short, the run ends.
//! - Its content is *read* like that of the page that was asked for. Swapped pages side by side come with one read.
//! - If it cannot be read, nothing is lost yet: the run ends, and the page stays as it is until somebody asks for it.
//!
//! With userfaultfd the page that was asked for is given last. Its thread goes on as soon as it has that page, and
//! would fault on neighbours that are not there yet. Where the faulting thread must change a mapping, all pages stay
//! locked until it has confirmed that.

use super::resolve::{Access, FaultError, Outcome, ask, cause_at};
use crate::engine::{Content, EngineKind, Reply};
use crate::page::{Entry, Home, PageGuard};
use crate::seeded::Seeded;
use crate::units::{Gfn, GfnRun, PageBuf};
use crate::vm::{Counter, Vm};

/// Gives the guest the page `requested`, and the pages of `range` around it that are `wanted`. Either all pages of the
/// run are shared, and each gets a copy of its own, or none is.
///
/// # Errors
/// [`FaultError`]: the page that was asked for is lost, or cannot be handed over.
pub(super) fn give<'a>(
    vm: &'a Vm,
    requested: PageGuard<'a>,
    range: GfnRun,
    wanted: &dyn Fn(Gfn, Entry) -> bool,
) -> Result<Outcome, FaultError> {
    let is_break = matches!(requested.home(), Home::Shared(_));
    let asks = is_break || vm.engine.kind() == EngineKind::Mprotect;
    // Before the neighbours, which must not take the last free page from the one that a thread waits for.
    if !charge(vm, requested.home()) {
        return Ok(Outcome::Starved);
    }
    let gfn = requested.gfn();
    // That of a sampled page is noted where it is counted.
    if requested.home() == Home::Resident
        && !requested.entry().is_sampled()
        && let Some(witness) = vm.table.witness()
    {
        witness.accessed(gfn);
    }
    let behind = lock_run(vm, range.iter().filter(|next| *next > gfn), wanted);
    // Away from the page in both directions: a page that ends the run must not leave a gap next to the requested one.
    let before = lock_run(vm, range.iter().rev().filter(|next| *next < gfn), wanted);
    let swapped = vm.read_together(&requested, &behind);
    let mut requested = requested;
    // First, because only its error ends the attempt: copies of shared neighbours that were charged before it would be
    // neither completed nor given back.
    if asks {
        requested = place(vm, requested, swapped.first())?;
    }
    let behind = place_run(vm, behind, swapped.get(1..).unwrap_or_default());
    let before = place_run(vm, before, &[]);
    if !asks {
        let page = place(vm, requested, swapped.first())?;
        vm.note_touch(&page);
        return Ok(Outcome::Served {
            behind: count(&behind),
        });
    }
    let run = GfnRun {
        start: before.last().map_or(gfn, PageGuard::gfn),
        count: count(&before) + 1 + count(&behind),
    };
    let pages = before.into_iter().rev().chain([requested]).chain(behind);
    let reply = match is_break {
        true => Reply::Private(run),
        false => Reply::Open(run),
    };
    Ok(ask(vm, reply, pages))
}

fn count(pages: &[PageGuard<'_>]) -> u32 {
    u32::try_from(pages.len()).unwrap_or(u32::MAX)
}

/// Locks pages one after the other, up to the first one that ends the run.
fn lock_run<'a>(
    vm: &'a Vm,
    gfns: impl Iterator<Item = Gfn>,
    wanted: &dyn Fn(Gfn, Entry) -> bool,
) -> Vec<PageGuard<'a>> {
    let is_wanted = |gfn: Gfn| {
        let entry = vm.table.entry(gfn);
        wanted(gfn, entry) && !entry.is_sampled()
    };
    // Before the lock, because a look is cheaper than a lock; and again under it, when the page cannot change any more.
    let lock = |gfn| {
        let page = is_wanted(gfn).then(|| vm.try_lock(gfn)).flatten();
        page.filter(|page| is_wanted(page.gfn()))
    };
    gfns.map_while(lock).collect()
}

/// Places pages one after the other until memory runs out or a page cannot be placed, and returns those that were
/// placed. `read` holds the contents of the first ones, as far as these have been read.
fn place_run<'a>(vm: &'a Vm, pages: Vec<PageGuard<'a>>, read: &[PageBuf]) -> Vec<PageGuard<'a>> {
    let place = |(at, page): (usize, PageGuard<'a>)| {
        charge(vm, page.home())
            .then(|| place(vm, page, read.get(at)).ok())
            .flatten()
    };
    pages.into_iter().enumerate().map_while(place).collect()
}

/// Charges the memory that a page with this home needs to become resident. A shared page needs it for its copy.
fn charge(vm: &Vm, home: Home) -> bool {
    home == Home::Resident || vm.charge(cause_at(home, Access::Write).urgency())
}

/// Puts the content of a charged page in its place in RAM, and gives the charge back if that fails. `read` is the
/// content if it has been read already.
///
/// A shared page keeps its home until the guest has mapped the copy, because until then the guest reads the frame.
fn place<'a>(
    vm: &'a Vm,
    page: PageGuard<'a>,
    read: Option<&PageBuf>,
) -> Result<PageGuard<'a>, FaultError> {
    let (gfn, home) = (page.gfn(), page.home());
    let mut buffer = None;
    let content = load(vm, home, read, &mut buffer);
    let placed = content.and_then(|content| match (home, content) {
        (Home::Shared(_), Content::Bytes(bytes)) => Ok(vm.engine.write_back(gfn, bytes)?),
        (_, content) => Ok(vm.engine.provide(gfn, content)?),
    });
    if let Err(error) = placed {
        vm.budget.give(u64::from(home != Home::Resident));
        return Err(error);
    }
    if Seeded::EarlyRelease.is_sown() && matches!(home, Home::Shared(_)) {
        vm.release(home);
    }
    if let Some(counter) = counter(vm, home) {
        vm.stats.cold_back.add(page.entry().is_cold().into());
        // The slot is released after the home has changed: a free slot can get another page's bytes while the entry
        // names it.
        page.set_home(Home::Resident);
        if matches!(home, Home::Compressed(_) | Home::Swapped(_)) {
            page.set_refilled();
        }
        vm.release_wanted(gfn, home);
        counter.one();
    }
    // Otherwise the guest's thread must map the page, and `complete` opens it when that is confirmed.
    if vm.engine.kind() == EngineKind::Uffd && page.home() == Home::Resident {
        page.set_open();
    }
    Ok(page)
}

/// The counter for pages that become resident from this home when they are placed; `None` for homes that they keep.
fn counter(vm: &Vm, home: Home) -> Option<&Counter> {
    let stats = &vm.stats;
    match home {
        Home::Untouched | Home::Zero => Some(&stats.first_touch),
        // The guest accessed a page that its balloon holds. The balloon's session will tell the agent of it.
        Home::Ballooned => Some(&stats.pops),
        Home::Compressed(_) => Some(&stats.refill_zip),
        Home::Swapped(_) => Some(&stats.refill_swap),
        // A resident page was frozen for a move that was given up. A shared page becomes resident in `complete`.
        Home::Resident | Home::Shared(_) => None,
    }
}

/// The content of a page with this home. `read` is that content if it was read before; otherwise `buffer` receives it.
fn load<'b>(
    vm: &Vm,
    home: Home,
    read: Option<&'b PageBuf>,
    buffer: &'b mut Option<PageBuf>,
) -> Result<Content<'b>, FaultError> {
    if let Some(content) = read {
        return Ok(Content::Bytes(content));
    }
    // Each arm makes the buffer itself, so that a first touch, the most frequent fault, does not clear one in vain.
    let content = match home {
        Home::Resident => return Ok(Content::Present),
        Home::Untouched | Home::Zero | Home::Ballooned => return Ok(Content::Zero),
        Home::Shared(frame) => {
            let content = buffer.insert(PageBuf::zeroed());
            vm.pool().read(frame, content);
            content
        }
        Home::Compressed(slot) => {
            let content = buffer.insert(PageBuf::zeroed());
            vm.zip.lock().load(slot, content)?;
            content
        }
        Home::Swapped(slot) => {
            let content = buffer.insert(PageBuf::zeroed());
            vm.swap.read(slot, content)?;
            content
        }
    };
    Ok(Content::Bytes(content))
}
