//! Which pages of a VM are evicted: random ones, as in ESX, in short runs.
//!
//! Random because any other order can be the worst one: a guest that pages by least-recent use and a
//! host that does the same chase each other. In runs because a run of neighbours freezes, punches and
//! swaps for little more than one page.

use crate::page::{Home, PageGuard};
use crate::units::Gfn;
use crate::vm::Vm;

/// Pages taken from one random place: each run costs one step of the freeze, one read and one hole.
const RUN: u32 = 16;
/// The same when the guest is short of VMAs and its protection must not be cut any finer.
const RUN_SHORT_OF_VMAS: u32 = 128;
/// Random places tried before the rest is looked for one by one: enough to fill a batch of 64 when a
/// tenth of the pages qualify.
const TRIES: u32 = 96;

/// xorshift64*: victims need to be spread, not to be unpredictable.
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `end`, which must not be zero.
    pub(super) fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((high * u64::from(end)) >> 32) as u32
    }
}

/// Locks up to `want` pages whose home `qualifies`, in ascending order.
pub(super) fn choose<'a>(
    vm: &'a Vm,
    dice: &mut Dice,
    want: usize,
    qualifies: impl Fn(Home) -> bool,
) -> Vec<PageGuard<'a>> {
    let pages = vm.table.pages();
    let run = if vm.vmas.is_exceeded(&vm.table) {
        RUN_SHORT_OF_VMAS
    } else {
        RUN
    };
    let mut chosen = Vec::with_capacity(want);
    for _ in 0..TRIES {
        let start = dice.below(pages) / run * run;
        take(
            vm,
            start..start.saturating_add(run).min(pages),
            want,
            &qualifies,
            &mut chosen,
        );
        if chosen.len() == want {
            break;
        }
    }
    if chosen.len() < want {
        let start = dice.below(pages);
        take(vm, start..pages, want, &qualifies, &mut chosen);
        take(vm, 0..start, want, &qualifies, &mut chosen);
    }
    chosen.sort_unstable_by_key(PageGuard::gfn);
    chosen
}

fn take<'a>(
    vm: &'a Vm,
    range: std::ops::Range<u32>,
    want: usize,
    qualifies: &impl Fn(Home) -> bool,
    chosen: &mut Vec<PageGuard<'a>>,
) {
    for gfn in range.map(Gfn) {
        if chosen.len() == want {
            return;
        }
        if qualifies(vm.table.entry(gfn).home())
            && let Some(page) = vm.try_lock(gfn)
            && qualifies(page.home())
        {
            chosen.push(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dice_reach_every_side_about_equally() {
        let mut dice = Dice::new(7);
        let mut sides = [0u32; 6];
        for _ in 0..6_000 {
            sides[dice.below(6) as usize] += 1;
        }
        assert!(
            sides.iter().all(|count| (800..1200).contains(count)),
            "{sides:?}"
        );
    }
}
