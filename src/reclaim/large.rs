//! Large pages of a VM: when they are made, and when they are broken.
//!
//! # The problem
//!
//! A processor finds a page of 4 KiB by four steps through page tables, and in a virtual machine each of them takes four
//! more. It remembers some thousand translations, so a program that jumps about in a GiB pays for most of its accesses.
//! One translation of a large page does for 512 small ones. But a large page can be neither shared nor evicted in part:
//! its 512 pages would all have to equal others, or be idle.
//!
//! # The structure
//!
//! So memory is in large pages as long as there is plenty of it, as in ESX. While the host is high and has what it wants
//! free ([`LargePages::Grow`]), a hand goes round the regions of the VM and makes large pages of those whose pages are
//! all resident, one by one, at a pace that leaves the worker and the guest most of their time. The scanner goes on
//! reading their pages and leaves its hints, and shares nothing of them. Nobody takes a page of them.
//!
//! Below high ([`LargePages::Break`]) they are broken at the same pace, the coldest first, and the pages of each are
//! scanned at once, because there are hints of those that others have too. An order to evict breaks as many as it needs at once, where few small pages are left. A page that the
//! guest's balloon wants, or that is to be attached, breaks the large page that it is in.
//!
//! A page that is sampled must be frozen alone, so its region is torn: mapped page by page. The hand mends that when
//! the page was touched, or its period is over.

use std::time::{Duration, Instant};

use crate::engine::EngineError;
use crate::page::Home;
use crate::remap::{Enlarged, break_up, enlarge};
use crate::units::{GfnRun, Pages};
use crate::vm::{Region, Vm};

/// How long to wait after a region. To copy its 2 MiB takes one or two milliseconds, in which its pages are locked: a
/// tenth of a processor, and a GiB in ten seconds.
const PACE: Duration = Duration::from_millis(20);
/// How long to wait where nothing could be done in a whole round.
const PAUSE: Duration = Duration::from_secs(1);
/// How long to wait where the guest's kernel refused: mostly it holds some of the pages for a moment.
const REFUSED: Duration = Duration::from_millis(100);
/// Regions that are looked at in one step. To look at one takes a microsecond if all of it is resident.
const LOOKS: u32 = 256;
/// Small pages that an eviction can choose from; where there are fewer, large pages are broken for it.
const CHOICE: u64 = 1024;
/// Large pages that are broken for one batch of evictions. Each takes about a millisecond.
const AT_ONCE: usize = 4;

/// What becomes of the large pages of a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LargePages {
    /// They are broken.
    #[default]
    Break,
    /// They stay, and none is made.
    Keep,
    /// More are made. `all`: of frozen pages too.
    Grow {
        /// Frozen pages are opened for it. Where cold pages are looked for, they are frozen to be watched.
        all: bool,
    },
}

/// The hand of one VM. See the module text.
#[derive(Debug, Default)]
pub(super) struct LargeHand {
    /// The next region that it looks at.
    at: u32,
    /// Regions since it last did something.
    in_vain: u32,
    /// When it goes on.
    after: Option<Instant>,
    wants: LargePages,
}

impl LargeHand {
    /// When it goes on; `None` when there is nothing to do.
    pub(super) fn due(&self, vm: &Vm, wants: LargePages) -> Option<Instant> {
        let works = match wants {
            LargePages::Break => vm.large.count() > 0,
            LargePages::Keep => false,
            LargePages::Grow { .. } => vm.large.regions() > 0,
        };
        self.after.filter(|_| works)
    }

    /// Makes a large page, or breaks one, if it is time. Returns the pages of one that was broken: their hints are there,
    /// so they are worth a scan at once.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub(super) fn step(
        &mut self,
        vm: &Vm,
        now: Instant,
        wants: LargePages,
    ) -> Result<Option<GfnRun>, EngineError> {
        if std::mem::replace(&mut self.wants, wants) != wants {
            (self.after, self.in_vain) = (None, 0);
        }
        if self.after.is_some_and(|after| now < after) {
            return Ok(None);
        }
        let mut broken = None;
        let wait = match wants {
            LargePages::Keep => PAUSE,
            LargePages::Break => {
                broken = break_coldest(vm, 1)?;
                broken.map_or(PAUSE, |_| PACE)
            }
            LargePages::Grow { all } => self.grow(vm, all)?,
        };
        self.after = Some(now + wait);
        Ok(broken)
    }

    /// Makes the next region large that can be. Returns how long to wait then.
    fn grow(&mut self, vm: &Vm, all: bool) -> Result<Duration, EngineError> {
        let regions = vm.large.regions();
        for _ in 0..LOOKS.min(regions) {
            if self.in_vain >= regions {
                self.in_vain = 0;
                return Ok(PAUSE);
            }
            let region = Region(self.at % regions);
            (self.at, self.in_vain) = (region.0 + 1, self.in_vain + 1);
            if vm.large.is_large(region) && !vm.large.is_torn(region) {
                continue;
            }
            match enlarge(vm, region, all)? {
                Enlarged::Yes => {
                    self.in_vain = 0;
                    return Ok(PACE);
                }
                // It has cost the guest its mappings.
                Enlarged::Refused => return Ok(REFUSED),
                Enlarged::NotNow => {}
            }
        }
        Ok(PACE)
    }
}

/// Breaks large pages, the coldest first. Returns the pages of the last one.
fn break_coldest(vm: &Vm, count: usize) -> Result<Option<GfnRun>, EngineError> {
    let mut broken = None;
    for region in vm.large.coldest(count) {
        if break_up(vm, region)? {
            broken = Some(vm.large.run(region));
        }
    }
    Ok(broken)
}

/// Breaks large pages for an order to evict `pages` pages, where few small ones are left to choose from.
///
/// # Errors
/// [`EngineError`] when the guest or its session is gone.
pub(super) fn make_choice(vm: &Vm, Pages(pages): Pages) -> Result<(), EngineError> {
    let small = vm
        .table
        .count(Home::Resident)
        .saturating_sub(vm.large.pages().0);
    if small < pages.min(CHOICE) {
        break_coldest(vm, AT_ONCE)?;
    }
    Ok(())
}
