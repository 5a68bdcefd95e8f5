//! Large pages: made while memory is plentiful, whole as long as they are large, broken where somebody wants a part.

use std::time::Duration;

use super::scenario::{LARGE_PAGE, each, noise};
use super::worker::ask;
use super::{Guest, Spec};
use crate::page::{Home, Urgency};
use crate::reclaim::{Job, LargePages};
use crate::units::{Gfn, GfnRun, PageBuf};
use crate::vm::Region;

/// Eight large pages, and a page that is left over.
const PAGES: u32 = 8 * LARGE_PAGE + 1;
const LARGE: u32 = 8;
/// More than the hand needs to go round.
const LONG: Duration = Duration::from_secs(1);

fn specs() -> [Spec; 3] {
    Spec::all(PAGES).map(|spec| Spec {
        ahead: 0,
        swap_slots: PAGES,
        ..spec
    })
}

impl Guest {
    /// Lets some time pass, in which large pages are made or broken.
    fn large(&mut self, large: LargePages) {
        self.worker.handle.change(|it| it.large = large);
        (0..20).for_each(|_| self.worker.wait(LONG));
    }

    fn grow(&mut self) {
        self.large(LargePages::Grow { all: true });
    }
}

/// Does something with guests of each kind whose pages, as different as `content` makes them, are all in large pages.
fn each_large(content: impl Fn(u32) -> PageBuf + Copy, act: impl Fn(&super::Host, &mut Guest)) {
    each(specs(), |host, guest| {
        guest.write_all(content);
        guest.grow();
        assert_eq!(guest.vm.large.count(), LARGE);
        act(host, guest);
    });
}

fn equal(_: u32) -> PageBuf {
    PageBuf([7; 4096])
}

#[test]
fn region_becomes_large_once_all_of_it_is_resident() {
    each(specs(), |host, guest| {
        (0..LARGE_PAGE - 1).for_each(|gfn| guest.write(gfn, noise(gfn)));
        guest.grow();
        // Without userfaultfd a fault brings the neighbours too.
        let all = u32::from(guest.home(LARGE_PAGE - 1) == Home::Resident);
        assert_eq!(guest.vm.large.count(), all);
        guest.write(LARGE_PAGE - 1, noise(1));
        guest.grow();
        assert_eq!(guest.vm.large.count(), 1);
        assert_eq!(guest.vm.stats.enlarged.get(), 1);
        // It costs what its pages cost.
        host.check(&[guest]);
        guest.read_all();
    });
}

#[test]
fn none_is_made_where_the_kernel_would_have_both_copies_and_no_room_for_them() {
    each(specs(), |host, guest| {
        guest.write_all(noise);
        let free = host.budget.spare().0;
        assert!(
            host.budget
                .take(free - u64::from(LARGE_PAGE) + 1, Urgency::Touch)
        );
        guest.grow();
        assert_eq!(guest.vm.large.count(), 0);
        host.budget.give(free - u64::from(LARGE_PAGE) + 1);
        guest.grow();
        assert_eq!(guest.vm.large.count(), LARGE);
    });
}

#[test]
fn nothing_is_shared_of_large_pages_and_all_of_it_once_they_are_broken() {
    each_large(equal, |host, guest| {
        guest.scan();
        guest.scan();
        let shared = |guest: &Guest| {
            let shared = guest.homes();
            shared
                .filter(|(_, home)| matches!(home, Home::Shared(_)))
                .count()
        };
        assert!(shared(guest) <= 1, "the page that is left over");
        guest.large(LargePages::Keep);
        assert_eq!(guest.vm.large.count(), LARGE);
        guest.large(LargePages::Break);
        assert_eq!(guest.vm.large.count(), 0);
        assert_eq!(guest.vm.stats.broken.get(), u64::from(LARGE));
        // Without userfaultfd a page that never changed is looked at in every 8th pass.
        for _ in 0..40 {
            // A page that its guest has brought itself is not there for the scanner until it is settled.
            guest.vm.settle_done();
            guest.scan();
            // The page that is left over was scanned alone, and is told of the frame that it equals.
            guest.worker.wait(Duration::ZERO);
        }
        let private = guest
            .homes()
            .filter(|(_, home)| !matches!(home, Home::Shared(_)));
        assert_eq!(private.collect::<Vec<_>>(), []);
        host.check(&[guest]);
    });
}

#[test]
fn what_is_written_in_a_large_page_is_shared_by_what_it_is_then() {
    each_large(noise, |host, guest| {
        guest.scan();
        (0..PAGES).for_each(|gfn| guest.write(gfn, equal(gfn)));
        guest.large(LargePages::Break);
        // Changed since the last scan: looked at again, and then shared.
        for _ in 0..8 {
            guest.scan();
        }
        let shared = guest
            .homes()
            .filter(|(_, home)| matches!(home, Home::Shared(_)));
        assert!(shared.count() > 1);
        host.check(&[guest]);
    });
}

#[test]
fn order_to_evict_breaks_as_many_as_it_needs() {
    each_large(noise, |host, guest| {
        guest.large(LargePages::Keep);
        let mut evicted = 0;
        while evicted < 3 * u64::from(LARGE_PAGE) {
            evicted += guest.evict(4);
        }
        let left = guest.vm.large.count();
        assert!((1..LARGE).contains(&left), "{left} are left");
        host.check(&[guest]);
        while guest.vm.table.count(Home::Resident) > 0 {
            guest.evict(PAGES.into());
        }
        assert_eq!(guest.vm.large.count(), 0);
        guest.read_all();
    });
}

#[test]
fn balloon_takes_a_page_of_a_large_one_and_breaks_no_other() {
    each_large(noise, |host, guest| {
        let run = GfnRun::new(Gfn(LARGE_PAGE + 2), 1);
        guest.space.set_unwanted(run, true);
        let answer = ask(&guest.worker.handle, |answer| {
            Job::Inflate(vec![run], answer)
        });
        guest.worker.wait(Duration::ZERO);
        assert!(answer.try_recv().is_ok());
        guest.space.set_unwanted(run, false);
        guest.space.memory()[run.start.index()] = PageBuf::zeroed();
        assert_eq!(guest.home(run.start.0), Home::Ballooned);
        assert!(!guest.vm.large.holds(Gfn(LARGE_PAGE)));
        assert_eq!(guest.vm.large.count(), LARGE - 1);
        host.check(&[guest]);
    });
}

#[test]
fn what_sampling_tears_is_mended_and_what_it_finds_untouched_is_broken_first() {
    each_large(noise, |_, guest| {
        const PERIOD: Duration = Duration::from_secs(4);
        guest.worker.handle.change(|it| it.sample_period = PERIOD);
        guest.worker.wait(PERIOD);
        let torn = |guest: &Guest| {
            let regions = (0..LARGE).map(Region);
            regions.filter(|it| guest.vm.large.is_torn(*it)).count()
        };
        assert!(torn(guest) > 0, "all its pages are drawn");
        let used = 3 * LARGE_PAGE..4 * LARGE_PAGE;
        for _ in 0..200 {
            guest.worker.wait(PERIOD / 20);
            used.clone().for_each(|gfn| guest.read(gfn));
        }
        guest
            .worker
            .handle
            .change(|it| it.sample_period = Duration::ZERO);
        guest.grow();
        assert_eq!(torn(guest), 0);
        assert_eq!(guest.vm.large.count(), LARGE, "none was broken for that");
        guest.large(LargePages::Keep);
        guest.evict(PAGES.into());
        let left = guest.vm.large.count();
        assert!((1..LARGE).contains(&left), "{left} are left");
        assert!(
            guest.vm.large.holds(Gfn(used.start)),
            "the one that is used"
        );
    });
}

#[test]
fn frozen_pages_are_in_the_way_where_cold_pages_are_looked_for() {
    each(specs(), |_, guest| {
        guest.write_all(noise);
        guest.cold(Duration::from_secs(1000), 1);
        // The hand has frozen some pages, and goes on slowly.
        guest.worker.wait(Duration::from_secs(10));
        guest.large(LargePages::Grow { all: false });
        let before = guest.vm.large.count();
        assert!(before < LARGE);
        guest.cold(Duration::ZERO, 1);
        guest.grow();
        assert_eq!(guest.vm.large.count(), LARGE);
    });
}

#[test]
fn guest_whose_kernel_refuses_keeps_its_small_pages() {
    each(specs(), |host, guest| {
        guest.write_all(noise);
        guest.space.accepts.set(0);
        guest.grow();
        assert_eq!(guest.vm.large.count(), 0);
        host.check(&[guest]);
        guest.space.accepts.set(super::Countdown::NEVER);
        guest.grow();
        assert_eq!(guest.vm.large.count(), LARGE);
        // And one that cannot be broken stays whole.
        guest.space.accepts.set(0);
        guest.large(LargePages::Break);
        host.check(&[guest]);
        guest.space.accepts.set(super::Countdown::NEVER);
        guest.large(LargePages::Break);
        assert_eq!(guest.vm.large.count(), 0);
        guest.read_all();
    });
}
