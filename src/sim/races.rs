//! Races that guests and workers seldom have by themselves, staged and played in any schedule.

use shuttle::thread::{self, yield_now};

use super::scenario::{ZIP, finish, order, serve};
use super::{Guest, Host, Op, Spec};
use crate::engine::EngineKind;
use crate::page::Home;
use crate::sync::{self, AtomicU32, Ordering};
use crate::units::{FrameId, Gfn, PAGE_SIZE, PageBuf, Pages};

const SCHEDULES: usize = 1_000;
const PAGES: u32 = 6;

fn spec(kind: EngineKind) -> Spec {
    Spec {
        zip_pages: 2,
        ahead: 0,
        ..Spec::of(kind, PAGES)
    }
}

/// Two guests whose pages hold what `content` says, with memory for all.
fn guests(first: Spec, content: fn(u32) -> u8) -> (Host, [Guest; 2]) {
    let host = Host::roomy();
    let guests = [(1, first), (2, spec(EngineKind::Mprotect))].map(|(id, spec)| {
        let mut guest = host.start(id, spec);
        guest.write_all(|gfn| PageBuf([content(gfn); PAGE_SIZE]));
        guest
    });
    (host, guests)
}

/// Both workers want to make a frame of the same content; one of them comes too late.
#[test]
fn workers_with_equal_pages_in_any_schedule_make_one_frame() {
    sync::model(SCHEDULES, || {
        let (host, mut guests) = guests(spec(EngineKind::Uffd), |_| 7);
        // Each worker finds equal pages in its own guest, and no shared frame yet.
        thread::scope(|scope| {
            for guest in &mut guests {
                scope.spawn(|| {
                    guest.scan();
                    guest.scan();
                });
            }
        });
        assert_eq!(host.pools[0].counts().frames, Pages(1));
        host.end(guests);
    });
}

/// Short of VMAs, a break locks the run behind its page while the worker evicts a page out of that run.
#[test]
fn break_of_a_run_beside_its_eviction_in_any_schedule_breaks_what_is_shared() {
    // More schedules than elsewhere: the eviction must fall between two consecutive steps of the fault thread.
    sync::model(4 * SCHEDULES, || {
        let (host, [mut first, mut second]) = guests(spec(EngineKind::Uffd), |gfn| gfn as u8 + 1);
        first.scan();
        second.scan();
        second.scan();
        first.scan();
        assert_eq!(first.vm.table.count(Home::Shared(FrameId(0))), 6);
        first.vm.vmas.set_budget(1);
        drop(first.vm.vmas.change(1));
        // Only one page, so that the run goes on behind the gap.
        order(&first.vm, 1);
        first.threads[0].begin(Gfn(0), Op::Write(Box::new(PageBuf([9; PAGE_SIZE]))));
        thread::scope(|scope| {
            scope.spawn(|| first.worker.step());
            while !first.threads[0].poll() {
                first.faults.turn().expect("the guest can go on");
                yield_now();
            }
        });
        first.turn();
        host.end([first, second]);
    });
}

/// Two threads of a guest read the same compressed page while its worker wants to spill it.
#[test]
fn threads_at_one_page_in_any_schedule_bring_it_once() {
    sync::model(SCHEDULES, || {
        let itself = Spec {
            threads: 2,
            inline: true,
            ..spec(EngineKind::Uffd)
        };
        let (host, [mut first, second]) = guests(itself, |gfn| gfn as u8 + 1);
        assert_eq!(first.evict_by(6, ZIP), 6);
        first.vm.grant_credits(4);
        first.vm.zip.lock().set_max_pages(0);
        let running = &AtomicU32::new(3);
        thread::scope(|scope| {
            scope.spawn(|| {
                first.worker.step();
                first.vm.take_back_credits();
                running.fetch_sub(1, Ordering::SeqCst);
            });
            for reader in &mut first.threads {
                scope.spawn(move || {
                    for gfn in [Gfn(0), Gfn(1)] {
                        finish(reader, gfn, Op::Read);
                    }
                    running.fetch_sub(1, Ordering::SeqCst);
                });
            }
            serve(running, || {
                first.faults.turn().expect("the guest can go on")
            });
        });
        first.vm.take_back_credits();
        first.vm.settle_done();
        assert_eq!(first.vm.table.entry(Gfn(0)).home(), Home::Resident);
        host.end([first, second]);
    });
}
