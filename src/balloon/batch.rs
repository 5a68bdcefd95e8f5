//! The only place where the pages that an agent names are checked.
//!
//! The form of a batch is checked when it is decoded ([`RangeBatch`]). Here its pages are checked against the VM.
//! Pages outside RAM are `INVALID`. Pages for which the balloon has no room are `NOT_NEEDED`, or `ALREADY_LOCKED`
//! if the balloon holds them, so that the agent does not take those for its own again. Only the other pages reach
//! the page table.

use memvisor_wire::balloon::{PageStatus, RangeBatch, StatusRun, covers, push_status};

use super::BalloonVm;
use super::counters::add;
use crate::units::{Gfn, GfnRun, RunsExt};

/// How far a balloon may grow past its target, 2 MiB: the target may have fallen while the agent
/// was allocating, and an agent does not deflate for a gap of this size either.
pub const SLACK_PAGES: u64 = 512;

/// Takes those pages of `batch` that are in the VM's RAM, as far as its balloon has room.
pub(super) fn lock(vm: &dyn BalloonVm, batch: &RangeBatch) -> Vec<StatusRun> {
    let most = vm
        .target()
        .saturating_add(SLACK_PAGES)
        .min(vm.balloon_max());
    let room = most.saturating_sub(vm.locked());

    let (inside, outside) = split_at_gfn(batch.runs(), vm.total_pages());
    let (offered, excess) = split_at_page(&inside, room);
    let mut answer = ask(&offered, |runs| vm.lock(runs));
    add(&vm.counters().inflated_pages, pages_ok(&answer));
    answer.extend(
        excess
            .iter()
            .flat_map(|run| run.iter())
            .map(|gfn| StatusRun {
                run: GfnRun::single(gfn),
                status: if vm.holds(gfn) {
                    PageStatus::AlreadyLocked
                } else {
                    PageStatus::NotNeeded
                },
            }),
    );
    finish(vm, batch, answer, &outside)
}

/// Gives back those pages of `batch` that are in the balloon.
pub(super) fn unlock(vm: &dyn BalloonVm, batch: &RangeBatch) -> Vec<StatusRun> {
    let (inside, outside) = split_at_gfn(batch.runs(), vm.total_pages());
    let answer = ask(&inside, |runs| vm.unlock(runs));
    add(&vm.counters().deflated_pages, pages_ok(&answer));
    finish(vm, batch, answer, &outside)
}

/// Drops the content of those pages that are in the VM's RAM and not in its balloon: they read as zeroes afterwards.
/// Pages that are busy stay as they are.
pub(super) fn drop_content(vm: &dyn BalloonVm, batch: &RangeBatch) {
    let (inside, outside) = split_at_gfn(batch.runs(), vm.total_pages());
    add(&vm.counters().invalid_pages, outside.pages());
    let taken = ask(&inside, |runs| vm.lock(runs));
    let taken = taken.iter().filter(|part| part.status == PageStatus::Ok);
    let taken: Vec<GfnRun> = taken.map(|part| part.run).collect();
    // Into the balloon and out again: what drops a page's memory is the same, and the balloon keeps none of them.
    ask(&taken, |runs| vm.unlock(runs));
    add(&vm.counters().reported_pages, taken.pages());
}

fn finish(
    vm: &dyn BalloonVm,
    batch: &RangeBatch,
    mut answer: Vec<StatusRun>,
    outside: &[GfnRun],
) -> Vec<StatusRun> {
    add(&vm.counters().invalid_pages, outside.pages());
    answer.extend(all(outside, PageStatus::Invalid));
    add(
        &vm.counters().refused_pages,
        batch.pages() - pages_ok(&answer),
    );
    debug_assert!(covers(&answer, batch), "{batch:?}: {answer:?}");
    join(answer)
}

/// The same answer in the fewest runs: the VM may answer page by page.
fn join(answer: Vec<StatusRun>) -> Vec<StatusRun> {
    let mut joined = Vec::new();
    answer
        .into_iter()
        .for_each(|part| push_status(&mut joined, part));
    joined
}

fn ask(runs: &[GfnRun], vm: impl FnOnce(&[GfnRun]) -> Vec<StatusRun>) -> Vec<StatusRun> {
    // Not asked in vain: each request waits for the VM's worker.
    if runs.is_empty() {
        return Vec::new();
    }
    vm(runs)
}

fn all(runs: &[GfnRun], status: PageStatus) -> impl Iterator<Item = StatusRun> {
    runs.iter().map(move |&run| StatusRun { run, status })
}

pub(super) fn pages_ok(answer: &[StatusRun]) -> u64 {
    let ok = answer.iter().filter(|part| part.status == PageStatus::Ok);
    ok.map(|part| u64::from(part.run.count)).sum()
}

/// Splits runs into the pages below `end` and the others.
fn split_at_gfn(runs: &[GfnRun], end: u64) -> (Vec<GfnRun>, Vec<GfnRun>) {
    split(runs, |run| end.saturating_sub(u64::from(run.start.0)))
}

/// Splits runs into the first `pages` pages and the others.
fn split_at_page(runs: &[GfnRun], pages: u64) -> (Vec<GfnRun>, Vec<GfnRun>) {
    let mut left = pages;
    split(runs, |run| {
        let take = left.min(u64::from(run.count));
        left -= take;
        take
    })
}

/// Splits each run after the number of pages that `take` returns for it.
fn split(runs: &[GfnRun], mut take: impl FnMut(GfnRun) -> u64) -> (Vec<GfnRun>, Vec<GfnRun>) {
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    for &run in runs {
        let count = u32::try_from(take(run)).unwrap_or(u32::MAX).min(run.count);
        if count > 0 {
            head.push(GfnRun::new(run.start, count));
        }
        if count < run.count {
            // No overflow: the run itself ends at or below the last gfn, and this is inside it.
            tail.push(GfnRun::new(Gfn(run.start.0 + count), run.count - count));
        }
    }
    (head, tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u32, count: u32) -> GfnRun {
        GfnRun::new(Gfn(start), count)
    }

    #[test]
    fn split_at_gfn_cuts_the_run_across_the_end_of_ram() {
        let runs = [run(1, 3), run(8, 4), run(20, 1)];
        let (inside, outside) = split_at_gfn(&runs, 10);
        assert_eq!(inside, [run(1, 3), run(8, 2)]);
        assert_eq!(outside, [run(10, 2), run(20, 1)]);
    }

    #[test]
    fn split_at_gfn_of_the_largest_ram_keeps_the_last_page() {
        let runs = [run(u32::MAX, 1)];
        assert_eq!(split_at_gfn(&runs, 1 << 32), (runs.to_vec(), vec![]));
    }

    #[test]
    fn split_at_page_takes_exactly_so_many() {
        let runs = [run(1, 3), run(8, 4)];
        let (offered, excess) = split_at_page(&runs, 5);
        assert_eq!(offered, [run(1, 3), run(8, 2)]);
        assert_eq!(excess, [run(10, 2)]);
        assert_eq!(split_at_page(&runs, 0), (vec![], runs.to_vec()));
    }
}
