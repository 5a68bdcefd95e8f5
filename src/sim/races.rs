//! Meetings that guests and workers left to themselves seldom have, in any schedule.

use std::sync::Arc;

use shuttle::thread::{self, yield_now};

use super::{Guest, Host, Op, Spec};
use crate::engine::EngineKind;
use crate::page::Home;
use crate::reclaim::{Evictor, trim_cache};
use crate::sync::{self, AtomicU32, Ordering};
use crate::units::{FrameId, Gfn, PAGE_SIZE, PageBuf, Pages, VmId};
use crate::vm::Means;

const SCHEDULES: usize = 1_000;
const PAGES: u32 = 6;

/// Two guests whose pages hold what `content` says, with memory for all.
fn two_guests(content: fn(u32) -> u8) -> (Host, [Guest; 2]) {
    guests(content, false, 1)
}

fn guests(content: fn(u32) -> u8, inline: bool, threads: usize) -> (Host, [Guest; 2]) {
    let host = Host::new(100, 2, 1, 64);
    let guests = [(1, EngineKind::Uffd), (2, EngineKind::Mprotect)].map(|(id, kind)| {
        let spec = Spec {
            kind,
            pages: PAGES,
            salt: 0,
            swap_slots: PAGES,
            zip_pages: 2,
            vma_budget: 100,
            threads,
            inline: inline && kind == EngineKind::Uffd,
            ahead: 0,
        };
        let mut guest = host.power_on(VmId(id), spec).expect("there is memory");
        for gfn in 0..PAGES {
            let page = Box::new(PageBuf([content(gfn); PAGE_SIZE]));
            guest.threads[0].begin(Gfn(gfn), Op::Write(page));
            assert!(guest.drive(0), "there is memory");
        }
        guest
    });
    (host, guests)
}

fn end(host: &Host, guests: [Guest; 2]) {
    host.check(&guests.each_ref());
    guests.into_iter().for_each(|guest| host.bury(guest));
    host.check_empty();
}

/// Both workers make a frame of the same content; one of them is too late.
#[test]
fn workers_with_equal_pages_in_any_schedule_make_one_frame() {
    sync::model(SCHEDULES, || {
        let (host, guests) = two_guests(|_| 7);
        // Each finds a page that is like another of its own, and nothing shared.
        let workers = guests.map(|mut guest| {
            thread::spawn(move || {
                guest.scan();
                guest.scan();
                guest
            })
        });
        let guests = workers.map(|worker| worker.join().expect("a worker ends"));
        assert_eq!(host.pools[0].counts().frames, Pages(1));
        end(&host, guests);
    });
}

/// Short of VMAs, a break locks the run behind its page, while the worker evicts pages out of it.
#[test]
fn break_of_a_run_beside_its_eviction_in_any_schedule_breaks_what_is_shared() {
    // The eviction must come between two steps of the fault thread that follow each other.
    sync::model(4 * SCHEDULES, || {
        let (host, [mut first, mut second]) = two_guests(|gfn| gfn as u8 + 1);
        first.scan();
        second.scan();
        second.scan();
        first.scan();
        assert_eq!(first.vm.table.count(Home::Shared(FrameId(0))), 6);
        drop(first.vm.vmas.change(1000));

        let vm = Arc::clone(&first.vm);
        let mut evictor = Evictor::new(1);
        let ended = Arc::new(AtomicU32::new(0));
        let worker = thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                // One, so that the run has a gap and goes on behind it.
                evictor
                    .evict(&vm, Pages(1), Means::ALL)
                    .expect("the session lives");
                ended.store(1, Ordering::SeqCst);
            }
        });
        first.threads[0].begin(Gfn(0), Op::Write(Box::new(PageBuf([9; PAGE_SIZE]))));
        while !first.threads[0].poll() || ended.load(Ordering::SeqCst) == 0 {
            first.turn();
            yield_now();
        }
        worker.join().expect("a worker ends");
        first.turn();
        end(&host, [first, second]);
    });
}

/// Two threads of a guest read one compressed page, which its worker wants too.
#[test]
fn threads_at_one_page_in_any_schedule_bring_it_once() {
    sync::model(SCHEDULES, || {
        let (host, [mut first, second]) = guests(|gfn| gfn as u8 + 1, true, 2);
        let means = Means {
            compress: true,
            swap: false,
        };
        assert_eq!(first.evict_by(6, means), 6);
        first.vm.grant_credits(4);
        let ended = Arc::new(AtomicU32::new(0));
        let worker = thread::spawn({
            let (vm, ended) = (Arc::clone(&first.vm), Arc::clone(&ended));
            move || {
                vm.zip.lock().set_max_pages(0);
                trim_cache(&vm, 6);
                vm.take_back_credits();
                ended.fetch_add(1, Ordering::SeqCst);
            }
        });
        let readers: Vec<_> = first
            .threads
            .drain(..)
            .map(|mut reader| {
                let ended = Arc::clone(&ended);
                thread::spawn(move || {
                    for gfn in [Gfn(0), Gfn(1)] {
                        reader.begin(gfn, Op::Read);
                        while !reader.poll() {
                            yield_now();
                        }
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                })
            })
            .collect();
        while ended.load(Ordering::SeqCst) < 3 {
            first.turn();
            yield_now();
        }
        worker.join().expect("a worker ends");
        for reader in readers {
            reader.join().expect("a thread ends");
        }
        first.turn();
        first.vm.take_back_credits();
        first.vm.settle_done();
        assert_eq!(first.vm.table.entry(Gfn(0)).home(), Home::Resident);
        end(&host, [first, second]);
    });
}
