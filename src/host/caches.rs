//! How large the compression cache of each VM may be. The settings give its cap; what it is worth gives its limit.

use std::time::{Duration, Instant};

use super::member::Member;
use crate::compress::{Refills, Saves, Seen, Worth};
use crate::reclaim::Job;
use crate::settings::{CacheKeeps, HostSettings};
use crate::telemetry::ZipStatus;
use crate::units::Pages;
use crate::vm::{Cause, Stalled, Vm};

/// Tells the cache how large it may be now, where a page of memory would save so much elsewhere. The worker shrinks it
/// if it is larger.
pub(super) fn apply(
    member: &Member,
    settings: &HostSettings,
    saves: (&Stalled, Duration),
    now: Instant,
) {
    if bound(&member.vm, &mut member.worth(), settings, saves, now) {
        member.worker.suggest(Job::Wake);
    }
}

/// The same, for whoever has what a cache was found to be worth. Returns whether the cache is larger now than it may be.
pub(crate) fn bound(
    vm: &Vm,
    worth: &mut Worth,
    settings: &HostSettings,
    (stalled, elsewhere): (&Stalled, Duration),
    now: Instant,
) -> bool {
    let cap = cap(vm, settings);
    vm.zip.lock().set_max_pages(cap);
    let limit = if settings.cache_keeps == CacheKeeps::Paying {
        // Not under the lock of the cache, which `seen` takes too.
        worth.note(now, seen(vm, stalled, elsewhere));
        worth.limit()
    } else {
        // What was learned would be out of date when the setting is turned on again.
        *worth = Worth::default();
        None
    };
    let mut zip = vm.zip.lock();
    zip.set_limit(limit);
    zip.is_above_limit()
}

/// What a page of memory saves on average on this host: the time in each second for which threads would not stand
/// still. Given the VMs and their limits; a VM at its limit has no use for a page.
pub(crate) fn price<'a>(vms: impl Iterator<Item = (&'a Vm, Option<Pages>)>) -> Duration {
    let can_grow = |(vm, limit): &(&Vm, Option<Pages>)| limit.is_none_or(|limit| vm.held() < limit);
    let sums = vms.filter(can_grow).fold((0, 0), |(us, pages), (vm, _)| {
        let refaults = &vm.refaults;
        (us + refaults.us_per_s(), pages + refaults.remembered().0)
    });
    Duration::from_nanos(sums.0.saturating_mul(1000) / sums.1.max(1))
}

/// The most pages that the cache may have: a part of the VM's size (`Mem.MemZipMaxPct`) and of what the VM
/// holds (`Mem.MemZipMaxAllocPct`), whichever is less.
fn cap(vm: &Vm, settings: &HostSettings) -> u32 {
    let size = u64::from(vm.params.pages);
    let held = vm.held().0 + u64::from(vm.zip.lock().pages_used());
    let by_size = size * u64::from(settings.mem_zip_max_pct) / 100;
    let by_held = held * u64::from(settings.mem_zip_max_alloc_pct) / 100;
    u32::try_from(by_size.min(by_held)).unwrap_or(u32::MAX)
}

fn seen(vm: &Vm, stalled: &Stalled, elsewhere: Duration) -> Seen {
    let refills = |pages, cause| Refills {
        pages,
        stood: stalled.threads[cause],
    };
    let zip = refills(vm.stats.refill_zip.get(), Cause::RefillZip);
    let swap = refills(vm.stats.refill_swap.get(), Cause::RefillSwap);
    let cache = vm.zip.lock();
    Seen {
        used: cache.pages_used(),
        cap: cache.max_pages(),
        stored: cache.stored(),
        edge: cache.edge(),
        left: vm.ghosts.left(),
        returned: vm.ghosts.returned(),
        zip,
        swap,
        swap_takes: !vm.is_swap_failing() && vm.swap.room() > Pages(0),
        elsewhere,
    }
}

/// The cache's bounds as status shows them.
pub(super) fn status(member: &Member) -> ZipStatus {
    let (cap, limit) = {
        let zip = member.vm.zip.lock();
        (zip.max_pages(), zip.limit())
    };
    let Saves {
        edge, left, ram, ..
    } = member.worth().saves();
    ZipStatus {
        cap_pages: Pages(cap.into()),
        limit_pages: Pages(limit.unwrap_or(cap).min(cap).into()),
        oldest_save_us: each_mib(edge.max(left)),
        ram_saves_us: each_mib(ram),
    }
}

/// Microseconds that a MiB saves in each second, if a page saves the part `page` of a second.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative, and a float that is too large becomes the most"
)]
fn each_mib(page: f64) -> u64 {
    (page * 256.0 * 1e6).round() as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::rig::{Rig, hello};
    use super::*;
    use crate::page::{Home, Urgency};
    use crate::settings::Profile;
    use crate::units::{Gfn, SlotId};

    /// A page saves what one of those that left lately costs; what a VM at its limit would save counts for nothing.
    #[test]
    fn price_is_that_of_the_vms_that_can_grow() {
        let rig = Rig::new(None);
        let vm = &rig.run(&hello("a", 4096)).vm;
        assert_eq!(price([(&**vm, None)].into_iter()), Duration::ZERO);
        let start = Instant::now();
        let _ = vm.stalled(|| 1, start);
        (0..4).for_each(|gfn| vm.refaults.left(Gfn(gfn), Pages(64)));
        for (gfn, slot) in [(0, 0), (1, 1)] {
            vm.refaults.came_back(Gfn(gfn), Home::Swapped(SlotId(slot)));
            vm.stats.refill_swap.one();
        }
        let stall = vm.stalls.begin(Cause::RefillSwap, start);
        vm.stalls.end(stall, start + Duration::from_millis(80));
        let _ = vm.stalled(|| 1, start + Duration::from_secs(100));
        // 800 us in each second for 4 pages.
        let price = |limit| price([(&**vm, limit)].into_iter());
        assert_eq!(price(None), Duration::from_micros(200));
        assert_eq!(price(Some(Pages(1))), Duration::from_micros(200));
        assert_eq!(price(Some(vm.held())), Duration::ZERO);
    }

    /// Arena pages of the cache. Two payloads fill a page.
    const USED: u32 = 300;

    #[test]
    fn limit_follows_what_is_measured_while_the_setting_says_so() {
        let rig = Rig::new(None);
        let vm = rig.run(&hello("a", 4096));
        assert!(rig.budget.take(USED.into(), Urgency::Reclaim));
        for gfn in 0..2 * USED {
            let stored = vm.vm.zip.lock().store(Gfn(gfn), &[1; 2048], 0, true);
            stored.expect("room");
        }
        let mut settings = HostSettings::profile(Profile::Throughput);
        settings.mem_zip_max_alloc_pct = 100;
        let mut stalled = vm.stalled();
        let start = Instant::now();
        let limit_after = |after, settings: &HostSettings, stalled: &Stalled| {
            let now = start + Duration::from_secs(after);
            apply(&vm, settings, (stalled, Duration::ZERO), now);
            let limit = vm.vm.zip.lock().limit();
            let told = status(&vm);
            assert_eq!(told.cap_pages, Pages(USED.into()));
            assert_eq!(told.limit_pages, Pages(limit.unwrap_or(USED).into()));
            (limit, told)
        };
        assert_eq!(limit_after(0, &settings, &stalled).0, None);
        // The guest wants all of the cache but its edge again and again.
        vm.vm.stats.refill_zip.add(10_000);
        stalled.threads[Cause::RefillZip] += Duration::from_secs(1);
        let (limit, told) = limit_after(3, &settings, &stalled);
        assert_eq!(limit, Some(USED - USED / 8));
        // Threads stood still for 1 s in 3 s, for the 450 pages that are wanted.
        assert_eq!((told.oldest_save_us, told.ram_saves_us / 1000), (0, 189));
        settings.cache_keeps = CacheKeeps::All;
        let (limit, told) = limit_after(6, &settings, &stalled);
        assert_eq!((limit, told.ram_saves_us), (None, 0));
        vm.vm.zip.lock().set_max_pages(0);
        rig.budget.give(USED.into());
    }
}
