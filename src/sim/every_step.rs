//! One story of a host with two guests, repeated with a failure at each step in turn: the guest dies, or the disk of
//! its swap file or of the host cache refuses a write.

use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use super::random_steps::{Request, serve};
use super::scenario::{KINDS, order};
use super::worker::{FAST, PAUSE};
use super::{Guest, Host, Spec};
use crate::compress::samples;
use crate::engine::{EngineError, EngineKind};
use crate::share::AttachRequest;
use crate::units::{Gfn, GfnRun, PAGE_SIZE, PageBuf, Pages};

const PAGES: u32 = 24;
/// More steps than the story has.
const ENDLESS: u32 = 1000;
/// So few pages of the host cache that most of those that come there are demoted.
const CACHED: u64 = 4;

/// A host on which both guests have written all their pages: some zero, some equal to others, some that compress and
/// some that do not.
/// The host cache has room for `cached` pages.
fn prologue(kind: EngineKind, cached: u64) -> (Host, [Guest; 2]) {
    let host = Host::roomy();
    host.cache.set_size(Pages(cached));
    let guests = [1, 2].map(|id| {
        let spec = Spec {
            zip_pages: 3,
            ..Spec::of(kind, PAGES)
        };
        let mut guest = host.start(id, spec);
        guest.write_all(|gfn| match gfn {
            0..4 => PageBuf::zeroed(),
            4..12 => PageBuf([gfn as u8; PAGE_SIZE]),
            12..18 => samples::mixed(u64::from(gfn + id * PAGES), 1800),
            _ => samples::random(u64::from(gfn + id * PAGES)),
        });
        guest
    });
    let [first, mut second] = guests;
    // The scan leaves hints, so that the first guest finds pages equal to its own.
    second.scan();
    (host, [first, second])
}

/// Everything that a worker does with its guest: scan, sample, evict, attach, inflate, deflate, trim, change pools.
fn story(host: &Host, guest: &mut Guest) -> Result<(), EngineError> {
    let (vm, handle) = (Arc::clone(&guest.vm), guest.worker.handle.clone());
    handle.change(|it| (it.scan_rate, it.sample_period) = (FAST, PAUSE));
    for _ in 0..3 {
        guest.worker.try_wait(PAUSE)?;
    }
    handle.change(|it| it.scan_rate = 0);
    for _ in 0..8 {
        order(&vm, 3);
        guest.worker.try_wait(PAUSE)?;
    }
    let (pages, source) = (GfnRun::new(Gfn(0), 3), Gfn(12));
    let attach = Request::Attach(AttachRequest { pages, source });
    serve(host, guest, vec![attach])?;
    for run in [GfnRun::new(Gfn(3), 3), GfnRun::new(Gfn(16), 4)] {
        guest.worker.try_wait(PAUSE)?;
        let both = vec![Request::Inflate(run), Request::Deflate(run)];
        serve(host, guest, both)?;
    }
    guest.worker.try_wait(PAUSE)?;
    vm.zip.lock().set_max_pages(1);
    guest.worker.try_wait(PAUSE)?;
    for pool in [None, Some(0)] {
        host.join(&handle, pool);
        guest.worker.try_wait(PAUSE)?;
    }
    order(&vm, 8);
    guest.worker.try_wait(PAUSE)?;
    order(&vm, 0);
    handle.change(|it| it.sample_period = Duration::ZERO);
    guest.worker.try_wait(PAUSE)
}

/// Has a guest die after this many steps, and checks that it leaves nothing and that the other guest keeps every byte.
/// Whether the guest died before the story ended.
pub(super) fn die_after(kind: EngineKind, cached: u64, steps: u32) -> bool {
    let (host, [mut doomed, mut other]) = prologue(kind, cached);
    doomed.space.life.set(steps);
    let told = story(&host, &mut doomed);
    let is_dead = doomed.space.life.is_over();
    assert!(is_dead || told.is_ok(), "{told:?}");
    host.bury(doomed);
    host.check(&[&other]);
    story(&host, &mut other).expect("it lives");
    (0..PAGES).for_each(|gfn| other.read(gfn));
    host.end([other]);
    is_dead
}

#[test]
fn guest_that_dies_at_any_step_leaves_nothing_and_takes_nothing_along() {
    for (kind, cached) in KINDS
        .into_iter()
        .zip([0, CACHED])
        .chain([(KINDS[0], CACHED)])
    {
        let lived = (0..ENDLESS).find(|steps| !die_after(kind, cached, *steps));
        let steps = lived.expect("the story ends");
        assert!(steps > 10, "only {steps} steps in {kind:?}");
    }
}

/// Has a disk, of the host cache or of the swap file, take `steps` writes and then fail for `writes` of them, and checks
/// that no byte is lost. Whether it failed at all.
fn fail_after(of_cache: bool, kind: EngineKind, steps: u32, (writes, errno): (u32, Errno)) -> bool {
    let (host, [mut guest, other]) = prologue(kind, if of_cache { CACHED } else { 0 });
    let disk = if of_cache {
        &guest.cache_disk
    } else {
        &guest.disk
    };
    disk.fail_after(steps, writes, Some(errno));
    story(&host, &mut guest).expect("a disk is no guest");
    host.check(&[&guest, &other]);
    (0..PAGES).for_each(|gfn| guest.read(gfn));
    let stats = &guest.vm.stats;
    let has_failed = stats.swap_errors.get() + stats.cache_errors.get() > 0;
    host.end([guest, other]);
    has_failed
}

#[test]
fn disk_that_fails_at_any_write_loses_no_byte() {
    let faults = [(1, Errno::EIO), (1, Errno::ENOSPC), (ENDLESS, Errno::EIO)];
    for of_cache in [false, true] {
        for (kind, fault) in KINDS
            .into_iter()
            .flat_map(|kind| faults.map(|it| (kind, it)))
        {
            let whole = (0..ENDLESS).find(|step| !fail_after(of_cache, kind, *step, fault));
            let steps = whole.expect("the story ends");
            assert!(steps > 2, "only {steps} writes in {kind:?}");
        }
    }
}
