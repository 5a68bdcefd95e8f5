//! Random pages, as in ESX, because any other order can be the worst one: a guest that pages by least-recent use and a
//! host that does the same chase each other. They come in short runs, because to freeze, punch and swap a run of
//! neighbours costs little more than one page.

use rand::RngExt;
use rand::rngs::StdRng;

use super::{Victims, round, take};
use crate::engine::EngineError;
use crate::page::{Entry, Home, PageGuard};
use crate::units::Gfn;
use crate::vm::Vm;

/// Pages taken from one random place. Each run costs one step of the freeze, one read and one hole.
const RUN: u32 = 16;
/// The same when the guest is short of VMAs: its mappings must not be split more than needed.
const RUN_SHORT_OF_VMAS: u32 = 128;
/// Random places tried before the missing victims are searched for page by page: enough to fill a batch of 64
/// when a tenth of the pages qualify.
const TRIES: u32 = 96;

/// See the module text. It remembers nothing.
#[derive(Debug)]
pub(super) struct Random;

impl Victims for Random {
    fn choose<'a>(
        &mut self,
        vm: &'a Vm,
        dice: &mut StdRng,
        want: usize,
    ) -> Result<Vec<PageGuard<'a>>, EngineError> {
        Ok(random(vm, dice, want, |home| home == Home::Resident))
    }
}

/// Locks up to `want` pages whose home `qualifies`, in ascending order.
pub(in super::super) fn random<'a>(
    vm: &'a Vm,
    dice: &mut StdRng,
    want: usize,
    qualifies: impl Fn(Home) -> bool + Copy,
) -> Vec<PageGuard<'a>> {
    let qualifies = |entry: Entry| qualifies(entry.home());
    let pages = vm.table.pages();
    let run = if vm.vmas.is_exceeded(&vm.table) {
        RUN_SHORT_OF_VMAS
    } else {
        RUN
    };
    let mut chosen = Vec::with_capacity(want);
    for _ in 0..TRIES {
        let start = dice.random_range(0..pages) / run * run;
        let end = start.saturating_add(run).min(pages);
        take(vm, (start..end).map(Gfn), want, qualifies, &mut chosen);
        if chosen.len() == want {
            break;
        }
    }
    // Where few pages qualify, dice hardly ever hit them, and a host that is short of memory needs them all.
    if chosen.len() < want {
        let all = round(vm, dice.random_range(0..pages));
        take(vm, all, want, qualifies, &mut chosen);
    }
    chosen.sort_unstable_by_key(PageGuard::gfn);
    chosen
}
