//! What no host could beat, and what a host without a policy would do.
//!
//! **The optimum.** Whoever knows the future evicts the page that is accessed last of all (Belady, 1966), and brings back
//! the fewest pages that can be brought back with that memory, whosever they are. Here the future is known: the next
//! access of each page is found by going through the story from its end. No compression cache stands in it, because no
//! page that is in a cache is in RAM, and a page that comes back is counted wherever it was.
//!
//! **The fair split.** Memory is divided by shares once and for all ([`split`](super::split)). With
//! the optimum in each part, that is the least that any static division brings back: what is between it and the optimum
//! is what moving memory between VMs is worth. With the page that was not used for longest in each part, it is what one
//! could have without a hypervisor.
//!
//! All pages count as different, so with shared pages the numbers would be too high; a replay shares none.

use std::collections::BinaryHeap;

use super::story::{Doing, Story};

/// No access of that page comes any more; or, in a list, nothing.
const NEVER: u32 = u32::MAX;

/// The accesses of a story, page by page.
#[derive(Debug)]
pub(super) struct Accesses {
    /// Which page, numbered over all VMs.
    pages: Vec<u32>,
    /// Where the same page is accessed next, by the place in `pages`.
    next: Vec<u32>,
    /// The number of the first page of each VM, and behind the last one the number of all pages.
    first: Vec<u32>,
}

impl Accesses {
    /// Those of a story; `None`: there are too many to be numbered.
    pub(super) fn of(story: &Story) -> Option<Self> {
        let mut first = vec![0_u32];
        for vm in &story.vms {
            let before = first.last().copied().unwrap_or_default();
            first.push(before.checked_add(vm.facts.pages)?);
        }
        let steps = (story.steps.iter()).filter(|it| matches!(it.what, Doing::Read | Doing::Write));
        let pages: Vec<u32> = steps
            .map(|step| first[usize::from(step.vm)] + step.gfn)
            .collect();
        u32::try_from(pages.len()).ok().filter(|len| *len < NEVER)?;
        let next = next_uses(&pages, first.last().copied().unwrap_or_default());
        Some(Self { pages, next, first })
    }

    /// The fewest pages that are brought back in `frames` pages of memory.
    pub(super) fn optimum(&self, frames: u64) -> u64 {
        let all = self.first.last().copied().unwrap_or_default();
        optimum(&self.pages, &self.next, all, frames)
    }

    /// The same where each VM has a part of its own.
    pub(super) fn split_optimum(&self, frames: &[u64]) -> u64 {
        let each = frames.iter().enumerate().map(|(vm, frames)| {
            let (pages, all) = self.of_vm(vm);
            optimum(&pages, &next_uses(&pages, all), all, *frames)
        });
        each.sum()
    }

    /// The pages that are brought back where each VM has a part of its own, and evicts what was not used for longest.
    pub(super) fn split_lru(&self, frames: &[u64]) -> u64 {
        let each = frames.iter().enumerate().map(|(vm, frames)| {
            let (pages, all) = self.of_vm(vm);
            lru(&pages, all, *frames)
        });
        each.sum()
    }

    /// How many different pages each VM accesses.
    pub(super) fn footprints(&self) -> Vec<u64> {
        let mut seen = vec![false; self.first.last().copied().unwrap_or_default() as usize];
        let mut footprints = vec![0; self.first.len() - 1];
        for &page in &self.pages {
            if !std::mem::replace(&mut seen[page as usize], true) {
                footprints[self.first.partition_point(|first| *first <= page) - 1] += 1;
            }
        }
        footprints
    }

    /// The accesses of one VM, by its own page numbers, and how many pages it has.
    fn of_vm(&self, vm: usize) -> (Vec<u32>, u32) {
        let (from, to) = (self.first[vm], self.first[vm + 1]);
        let own = self.pages.iter().filter(|page| (from..to).contains(page));
        (own.map(|page| page - from).collect(), to - from)
    }
}

fn next_uses(pages: &[u32], all: u32) -> Vec<u32> {
    let mut coming = vec![NEVER; all as usize];
    let mut next = vec![NEVER; pages.len()];
    let mut at = u32::try_from(pages.len()).expect("checked where they come from");
    for (next, &page) in next.iter_mut().zip(pages).rev() {
        at -= 1;
        *next = std::mem::replace(&mut coming[page as usize], at);
    }
    next
}

fn optimum(pages: &[u32], next: &[u32], all: u32, frames: u64) -> u64 {
    /// Where a page is.
    const UNSEEN: u32 = NEVER - 1;
    const OUT: u32 = NEVER - 2;
    // For each page its next access if it is there. Entries of the heap that say otherwise are out of date.
    let mut there = vec![UNSEEN; all as usize];
    let mut heap = BinaryHeap::new();
    let (mut held, mut refaults) = (0_u64, 0);
    for (&page, &next) in pages.iter().zip(next) {
        let state = &mut there[page as usize];
        let is_there = *state != UNSEEN && *state != OUT;
        refaults += u64::from(*state == OUT);
        *state = next;
        heap.push((next, page));
        if is_there {
            continue;
        }
        held += 1;
        while held > frames.max(1)
            && let Some((next, last)) = heap.pop()
        {
            // The page that is just accessed must be there, even if it is the one that is accessed last of all.
            if last == page {
                let other = next_there(&mut heap, &there, page);
                heap.push((next, page));
                let Some(other) = other else { break };
                there[other as usize] = OUT;
                held -= 1;
            } else if there[last as usize] == next {
                there[last as usize] = OUT;
                held -= 1;
            }
        }
    }
    refaults
}

/// Takes the page out of the heap that is there, is accessed last, and is not `page`.
fn next_there(heap: &mut BinaryHeap<(u32, u32)>, there: &[u32], page: u32) -> Option<u32> {
    while let Some((next, last)) = heap.pop() {
        if last != page && there[last as usize] == next {
            return Some(last);
        }
    }
    None
}

/// A list of pages in the order of their last access, by links between neighbours.
struct Order {
    newer: Vec<u32>,
    older: Vec<u32>,
    newest: u32,
    oldest: u32,
}

impl Order {
    fn take_out(&mut self, page: u32) {
        let (newer, older) = (self.newer[page as usize], self.older[page as usize]);
        match newer {
            NEVER => self.newest = older,
            newer => self.older[newer as usize] = older,
        }
        match older {
            NEVER => self.oldest = newer,
            older => self.newer[older as usize] = newer,
        }
    }

    fn put_first(&mut self, page: u32) {
        let second = std::mem::replace(&mut self.newest, page);
        (self.newer[page as usize], self.older[page as usize]) = (NEVER, second);
        match second {
            NEVER => self.oldest = page,
            second => self.newer[second as usize] = page,
        }
    }
}

fn lru(pages: &[u32], all: u32, frames: u64) -> u64 {
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Where {
        Unseen,
        There,
        Out,
    }
    let links = || vec![NEVER; all as usize];
    let mut order = Order {
        newer: links(),
        older: links(),
        newest: NEVER,
        oldest: NEVER,
    };
    let mut places = vec![Where::Unseen; all as usize];
    let (mut held, mut refaults) = (0_u64, 0);
    for &page in pages {
        match std::mem::replace(&mut places[page as usize], Where::There) {
            Where::There => order.take_out(page),
            before => {
                refaults += u64::from(before == Where::Out);
                held += 1;
            }
        }
        order.put_first(page);
        if held > frames.max(1) {
            let oldest = order.oldest;
            order.take_out(oldest);
            places[oldest as usize] = Where::Out;
            held -= 1;
        }
    }
    refaults
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The fewest refaults by trying every choice.
    fn by_trying(pages: &[u32], frames: usize, there: &mut Vec<u32>, seen: &mut Vec<u32>) -> u64 {
        let Some((page, rest)) = pages.split_first() else {
            return 0;
        };
        if there.contains(page) {
            return by_trying(rest, frames, there, seen);
        }
        let refault = u64::from(seen.contains(page));
        let (mut there, mut seen) = (there.clone(), seen.clone());
        seen.push(*page);
        there.push(*page);
        if there.len() <= frames {
            return refault + by_trying(rest, frames, &mut there, &mut seen);
        }
        let without = |at| {
            let mut left = there.clone();
            left.remove(at);
            by_trying(rest, frames, &mut left, &mut seen.clone())
        };
        refault + (0..there.len() - 1).map(without).min().expect("a victim")
    }

    fn lru_by_list(pages: &[u32], frames: usize) -> u64 {
        let (mut there, mut seen, mut refaults) = (Vec::new(), Vec::new(), 0);
        for page in pages {
            match there.iter().position(|it| it == page) {
                Some(at) => drop(there.remove(at)),
                None => refaults += u64::from(seen.contains(page)),
            }
            there.push(*page);
            seen.push(*page);
            if there.len() > frames {
                there.remove(0);
            }
        }
        refaults
    }

    proptest! {
        #[test]
        fn optimum_is_the_least_of_all_choices(
            pages in proptest::collection::vec(0_u32..6, 0..12),
            frames in 1_usize..5,
        ) {
            let next = next_uses(&pages, 6);
            let found = optimum(&pages, &next, 6, frames as u64);
            let least = by_trying(&pages, frames, &mut Vec::new(), &mut Vec::new());
            prop_assert_eq!(found, least);
        }

        #[test]
        fn least_recently_used_is_as_by_a_list_and_never_better_than_the_optimum(
            pages in proptest::collection::vec(0_u32..20, 0..200),
            frames in 1_usize..15,
        ) {
            let found = lru(&pages, 20, frames as u64);
            prop_assert_eq!(found, lru_by_list(&pages, frames));
            prop_assert!(optimum(&pages, &next_uses(&pages, 20), 20, frames as u64) <= found);
        }
    }
}
