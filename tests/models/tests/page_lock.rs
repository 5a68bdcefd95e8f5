//! The page lock: its holder sees what the holder before did, and a fault that waits for it is called.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering};
use memvisor_models::page::{Home, PageTable, Parking};
use memvisor_models::units::{FrameId, Gfn};
use memvisor_models::{explore, join, spawn};

const PAGE: Gfn = Gfn(0);

fn table() -> (Arc<PageTable>, Arc<Parking>) {
    let parking = Arc::new(Parking::new().expect("an eventfd"));
    (
        Arc::new(PageTable::new(1, Arc::clone(&parking)).expect("memory")),
        parking,
    )
}

/// Moves the page under its lock, if the lock is free. `content` stands for bytes that only the lock protects.
fn bump(table: &PageTable, content: &AtomicU64) -> u64 {
    let Some(page) = table.try_lock(PAGE) else {
        return 0;
    };
    let seen = content.load(Ordering::Relaxed);
    page.set_sampled(seen.is_multiple_of(2));
    content.store(seen + 1, Ordering::Relaxed);
    1
}

#[test]
fn holder_of_the_lock_sees_what_the_one_before_did() {
    explore(|| {
        let (table, _) = table();
        let content = Arc::new(AtomicU64::new(0));
        let movers = [(); 2].map(|()| {
            let (table, content) = (Arc::clone(&table), Arc::clone(&content));
            spawn(move || bump(&table, &content) + bump(&table, &content))
        });
        // The scanner's notes change the same word without the lock.
        table.back_off(PAGE);
        let moved: u64 = movers.into_iter().map(join).sum();
        assert!(moved > 0, "somebody had the lock");
        assert_eq!(content.load(Ordering::Relaxed), moved, "a move was lost");
    });
}

/// Whoever sees a home without the lock also sees the bytes that were written before the home was set.
#[test]
fn home_comes_after_its_bytes() {
    explore(|| {
        let (table, _) = table();
        let frame = Arc::new(AtomicU64::new(0));
        let mover = {
            let (table, frame) = (Arc::clone(&table), Arc::clone(&frame));
            spawn(move || {
                let page = table.try_lock(PAGE).expect("nobody else locks");
                frame.store(7, Ordering::Relaxed);
                page.set_home(Home::Shared(FrameId(3)));
            })
        };
        table.note_written(PAGE);
        if table.entry(PAGE).home() == Home::Shared(FrameId(3)) {
            assert_eq!(frame.load(Ordering::Relaxed), 7);
        }
        join(mover);
    });
}

/// A fault parks at a locked page, or is served at once if the page is free. A parked fault is never forgotten, and
/// finds the page free and moved when it is called.
#[test]
fn parked_fault_is_called_when_the_page_is_free() {
    explore(|| {
        let (table, parking) = table();
        let content = Arc::new(AtomicU64::new(0));
        let kept = table.try_lock(PAGE).expect("free").keep();
        let mover = {
            let (table, content) = (Arc::clone(&table), Arc::clone(&content));
            spawn(move || {
                let page = table.resume(kept);
                content.store(7, Ordering::Relaxed);
                page.set_home(Home::Resident);
            })
        };
        let scanner = {
            let table = Arc::clone(&table);
            spawn(move || {
                table.mark_seen(PAGE);
                table.note_hash(PAGE, 5)
            })
        };
        let parked = table.park(PAGE);
        if !parked || parking.pop().is_some() {
            let page = table.try_lock(PAGE).expect("who is called finds it free");
            assert_eq!(page.home(), Home::Resident);
            assert_eq!(content.load(Ordering::Relaxed), 7);
            return;
        }
        join(mover);
        join(scanner);
        assert_eq!(parking.pop(), Some(PAGE), "nobody calls it");
    });
}

/// A scanner notes the hash of its page and then looks for a hint. Another one drops the hint and then asks whether the
/// page has that hash. One of them must see what the other did, or the page would be known to nobody.
#[test]
fn dropped_hint_is_found_missing_or_its_page_found_known() {
    explore(|| {
        let (table, _) = table();
        table.try_lock(PAGE).expect("free").set_home(Home::Resident);
        let hint = Arc::new(AtomicU64::new(1));
        let dropper = {
            let (table, hint) = (Arc::clone(&table), Arc::clone(&hint));
            spawn(move || {
                hint.store(0, Ordering::Relaxed);
                table.known_hash(PAGE) == Some(9)
            })
        };
        let locker = {
            let table = Arc::clone(&table);
            spawn(move || drop(table.try_lock(PAGE)))
        };
        table.note_hash(PAGE, 9);
        let is_there = hint.load(Ordering::Relaxed) == 1;
        let is_known = join(dropper);
        join(locker);
        // A page that was being moved is looked at again.
        let noted = table.entry(PAGE).last_hash() == 9;
        assert!(
            !noted || !is_there || is_known,
            "the page is known to nobody"
        );
    });
}

/// A look clears UNSEEN before it reads, so bytes written later set it again, and it stays set.
#[test]
fn write_during_a_look_stays_unseen() {
    explore(|| {
        let (table, _) = table();
        table.try_lock(PAGE).expect("free").set_home(Home::Resident);
        let content = Arc::new(AtomicU64::new(0));
        let writer = {
            let (table, content) = (Arc::clone(&table), Arc::clone(&content));
            spawn(move || {
                content.store(1, Ordering::Relaxed);
                table.note_written(PAGE);
            })
        };
        table.mark_seen(PAGE);
        let read = content.load(Ordering::Relaxed);
        table.settle(PAGE, true);
        join(writer);
        let is_due = table.due_for_scan(PAGE, true) == memvisor_models::page::Due::Now;
        assert!(read == 1 || is_due, "bytes that nobody looks at any more");
    });
}
