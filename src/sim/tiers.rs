//! The host cache in front of swap files: what goes where, and what is left when a disk fills or fails.

use std::time::Duration;

use nix::errno::Errno;

use super::scenario::{self, KINDS, SWAP, noise};
use super::worker::PAUSE;
use super::{Guest, Host, Spec};
use crate::fault::{Access, FaultError, resolve};
use crate::page::Home;
use crate::swap::{CacheFile, SwapError};
use crate::units::{Gfn, Pages};

const PAGES: u32 = 64;
/// Longer than a cache that has failed is left alone.
const LATER: Duration = Duration::from_secs(11);

/// Runs `story` with a guest of each kind, whose host has a cache of `pages`.
fn each(pages: u64, story: impl Fn(&Host, &mut Guest)) {
    let specs = Spec::all(PAGES).map(|spec| Spec { ahead: 0, ..spec });
    scenario::each(specs, |host, guest| {
        host.cache.set_size(Pages(pages));
        story(host, guest);
    });
}

fn cache(guest: &Guest) -> &CacheFile {
    guest.vm.swap.cache.as_ref().expect("it has one")
}

/// How many of its pages are in the cache, and how many in the swap file.
fn places(guest: &Guest) -> (usize, usize) {
    let slots = guest.homes().filter_map(|(_, home)| match home {
        Home::Swapped(slot) => Some(slot.is_cached()),
        _ => None,
    });
    let (cached, filed): (Vec<bool>, Vec<bool>) = slots.partition(|is_cached| *is_cached);
    (cached.len(), filed.len())
}

/// The `number`th page that is used. No two in a row are neighbours, so no guest brings any ahead.
const fn gfn(number: u32) -> u32 {
    number * 5 % PAGES
}

/// Writes pages and has them swapped out one after the other.
fn swap_out(guest: &mut Guest, numbers: std::ops::Range<u32>) {
    for gfn in numbers.map(gfn) {
        guest.write(gfn, noise(gfn));
        assert_eq!(guest.evict_by(1, SWAP), 1);
    }
}

#[test]
fn oldest_pages_are_demoted_behind_the_back_of_the_guest() {
    each(16, |host, guest| {
        swap_out(guest, 0..14);
        guest.worker.wait(PAUSE);
        assert_eq!(places(guest), (14, 0));
        swap_out(guest, 14..32);
        guest.worker.wait(PAUSE);
        host.check(&[guest]);
        // An eighth of it is kept free for the pages that come next.
        assert_eq!(places(guest), (14, 18));
        for number in 0..32 {
            let Home::Swapped(slot) = guest.home(gfn(number)) else {
                panic!("{number} is {:?}", guest.home(gfn(number)));
            };
            assert_eq!(
                slot.is_cached(),
                number >= 18,
                "{number}: the oldest have left"
            );
        }
        assert_eq!(guest.vm.stats.demoted.get(), 18);
        let reads = (guest.disk.reads(), guest.cache_disk.reads());
        (30..32).for_each(|number| guest.read(gfn(number)));
        assert_eq!(guest.disk.reads(), reads.0, "the slow disk is left alone");
        assert!(guest.cache_disk.reads() > reads.1);
    });
}

#[test]
fn cache_that_fails_loses_nothing_and_comes_back() {
    for errno in [Errno::EIO, Errno::ENOSPC, Errno::EROFS] {
        each(32, |host, guest| {
            swap_out(guest, 0..8);
            assert_eq!(places(guest), (8, 0));
            guest.cache_disk.set_failing(Some(errno));
            swap_out(guest, 8..12);
            assert!(guest.vm.stats.cache_errors.get() > 0);
            assert!(!guest.vm.is_swap_failing(), "the swap file takes them");
            host.check(&[guest]);
            guest.worker.wait(PAUSE);
            assert_eq!(
                places(guest),
                (0, 12),
                "what can be read is brought to safety"
            );
            assert_eq!(host.cache.taken(), Pages(0));
            let errors = guest.vm.stats.cache_errors.get();
            swap_out(guest, 12..16);
            assert_eq!(
                guest.vm.stats.cache_errors.get(),
                errors,
                "it is left alone"
            );
            guest.cache_disk.set_failing(None);
            guest.worker.wait(LATER);
            swap_out(guest, 16..20);
            assert_eq!(places(guest), (4, 16));
        });
    }
}

#[test]
fn swap_file_that_fails_leaves_pages_in_the_cache() {
    each(16, |host, guest| {
        swap_out(guest, 0..14);
        guest.disk.set_failing(Some(Errno::EIO));
        swap_out(guest, 14..16);
        guest.worker.wait(PAUSE);
        host.check(&[guest]);
        assert_eq!(places(guest), (16, 0));
        assert!(guest.vm.is_swap_failing());
        guest.write(gfn(20), noise(20));
        assert_eq!(guest.evict_by(1, SWAP), 0, "neither has room");
        host.check(&[guest]);
        guest.disk.set_failing(None);
        guest.worker.wait(LATER);
        assert_eq!(places(guest), (14, 2));
        assert_eq!(guest.evict_by(1, SWAP), 1);
        guest.read_all();
    });
}

#[test]
fn cache_of_another_size_keeps_what_fits() {
    each(32, |host, guest| {
        swap_out(guest, 0..32);
        for (size, cached) in [(8, 7), (0, 0)] {
            host.cache.set_size(Pages(size));
            // As the host tells it with its next plan.
            cache(guest).set_cap(u32::try_from(size).expect("few"));
            guest.worker.wait(PAUSE);
            host.check(&[guest]);
            assert!(places(guest).0 <= cached, "{:?}", places(guest));
            assert_eq!(host.cache.taken().0, size);
        }
        host.cache.set_size(Pages(32));
        cache(guest).set_cap(u32::MAX);
        (0..4).for_each(|number| guest.read(gfn(number)));
        swap_out(guest, 0..4);
        assert_eq!(places(guest), (4, 28));
    });
}

/// A page that cannot be read back ends its guest, as one of a swap file does. To demote it changes nothing about that.
#[test]
fn damaged_page_of_the_cache_ends_its_guest_and_loses_nothing_else() {
    each(16, |_, guest| {
        swap_out(guest, 0..8);
        guest.damage(gfn(3));
        cache(guest).set_cap(0);
        guest.worker.wait(PAUSE);
        assert_eq!(places(guest), (1, 7));
        let error = resolve(&guest.vm, Gfn(gfn(3)), Access::Any, 0).expect_err("damaged");
        let FaultError::Swap(SwapError::Cache { source, .. }) = &error else {
            panic!("{error:?}");
        };
        assert!(matches!(**source, SwapError::Corrupt { .. }), "{source}");
        (0..3)
            .chain(4..8)
            .for_each(|number| guest.read(gfn(number)));
        guest.damage(gfn(3));
        guest.worker.wait(LATER);
        assert_eq!(places(guest).0, 0, "it is whole again");
    });
}

/// As a reservation is raised: fewer pages may be swapped than are.
#[test]
fn cache_takes_no_page_beyond_what_may_be_swapped() {
    each(16, |host, guest| {
        swap_out(guest, 0..12);
        guest.vm.swap.file.resize(4).expect("a disk");
        guest.write(gfn(20), noise(20));
        assert_eq!(guest.evict_by(1, SWAP), 0);
        cache(guest).set_cap(0);
        guest.worker.wait(PAUSE);
        host.check(&[guest]);
        assert_eq!(places(guest), (8, 4), "the file has no place for more");
        (0..8).for_each(|number| guest.read(gfn(number)));
        guest.worker.wait(LATER);
        assert_eq!(places(guest).0, 0);
    });
}

#[test]
fn guests_take_from_one_bound_and_leave_it_when_they_end() {
    let host = Host::roomy();
    host.cache.set_size(Pages(24));
    let mut guests =
        [(1, KINDS[0]), (2, KINDS[1])].map(|(id, kind)| host.start(id, Spec::of(kind, PAGES)));
    swap_out(&mut guests[0], 0..20);
    swap_out(&mut guests[1], 0..20);
    let all = |guests: &[Guest; 2]| guests.each_ref().map(|guest| places(guest).0);
    assert_eq!(all(&guests), [20, 0], "who comes first has it");
    // As the host divides it with its next plan.
    guests.iter().for_each(|guest| cache(guest).set_cap(12));
    guests.iter_mut().for_each(|guest| guest.worker.wait(PAUSE));
    host.check(&guests.each_ref());
    swap_out(&mut guests[1], 20..40);
    guests.iter_mut().for_each(|guest| guest.worker.wait(PAUSE));
    assert_eq!(all(&guests), [11, 11]);
    let [first, second] = guests;
    host.bury(first);
    assert_eq!(host.cache.taken(), Pages(12));
    host.end([second]);
    assert_eq!(host.cache.taken(), Pages(0));
}
