//! Five guests that boot at once on a host that is too small for them.

use std::time::{Duration, Instant};

use memvisor::telemetry::{FreeState, HostStatus};
use memvisor::units::Pages;

use super::rig::{Host, eventually};
use super::{PATIENCE, check, end, mib, shown, touched};

in_one_engine!(guests_that_boot_at_once_bring_the_host_to_low_and_nothing_fails);

/// Size of each guest and how much of it the guest fills, in MiB: the sizes of OSDI 2002, figure 8, divided by 8.
const GUESTS: [(&str, u64, u64); 5] = [
    ("first", 32, 29),
    ("second", 32, 29),
    ("third", 40, 36),
    ("fourth", 40, 36),
    ("fifth", 40, 36),
];

/// The paper's columns: allocated, active, ballooned and shared memory, and what is really swapped.
fn row(engine: &str, when: Duration, status: &HostStatus) {
    let active = status.vms.iter().filter_map(|vm| vm.activity.active_pages);
    let active = Pages(active.map(|pages| pages.0).sum());
    let homes = &status.totals.homes;
    eprintln!(
        "{engine}: {when:5.1?} {:4} {:6.1} allocated {:6.1} active {:5.1} balloon {:5.1} shared \
         {:5.1} zero {:5.1} compressed {:5.1} swapped",
        status.free_state,
        shown(status.totals.consumed_pages),
        shown(active),
        shown(homes.ballooned_pages),
        shown(homes.shared_pages),
        shown(homes.zero_pages),
        shown(homes.compressed_pages),
        shown(homes.swapped_pages),
    );
}

/// The states that the host has logged. Looking at its status alone would miss those that it leaves at once.
fn logged(host: &Host) -> Vec<FreeState> {
    let known = [
        FreeState::High,
        FreeState::Clear,
        FreeState::Soft,
        FreeState::Hard,
        FreeState::Low,
    ];
    let log = host.log();
    let lines = log.lines().filter(|line| line.contains("free state"));
    let states = lines.filter_map(|line| {
        known
            .into_iter()
            .find(|state| line.contains(&format!("to={state} ")))
    });
    states.collect()
}

/// Each guest reserves half of its size, and shares are in proportion to sizes, as in the paper. The host of the
/// paper had 1024 MB for guests of 1472 MB with an overhead of 160 MB, an overcommitment of more than 60 %. The
/// overhead is small here, so the host has 112 MiB for guests of 184 MiB.
fn guests_that_boot_at_once_bring_the_host_to_low_and_nothing_fails(engine: &str) {
    let args = [
        "--set",
        "Mem.SamplePeriod=1",
        "--set",
        "Mem.BalancePeriod=0.5",
    ];
    let host = Host::start(engine, "112M", &args);
    let since = Instant::now();
    let guests: Vec<_> = GUESTS
        .iter()
        .enumerate()
        .map(|(at, (name, size, fills))| {
            // Each guest has content of its own. Otherwise sharing alone would save the host.
            let words = format!(
                "--memory {size}M --reservation {}M --seed {at} \
                 --workload toucher,size={fills}M,active=4M,rate=8M,content=random",
                size / 2
            );
            host.guest(name, &words)
        })
        .collect();
    let mut worst = FreeState::High;
    let mut next = Duration::ZERO;
    let what = "all have filled their memory, and the host has recovered";
    let recovered = eventually(what, PATIENCE, || {
        let status = host.status();
        check(&status);
        if status.free_state > worst || since.elapsed() >= next {
            row(engine, since.elapsed(), &status);
            next = since.elapsed() + Duration::from_secs(1);
        }
        worst = worst.max(status.free_state);
        let filled = |(name, _, fills): &(&str, u64, u64)| {
            super::of(&status, name).is_some_and(|vm| touched(vm) >= mib(*fills))
        };
        let done = GUESTS.iter().all(filled) && status.free_state <= FreeState::Soft;
        done.then_some(status)
    });
    row(engine, since.elapsed(), &recovered);
    let states = logged(&host);
    eprintln!(
        "{engine}: {states:?}, recovered after {:.1?}",
        since.elapsed()
    );
    worst = states.into_iter().fold(worst, FreeState::max);
    assert_eq!(worst, FreeState::Low, "the worst state");
    end(host, guests, &["wait for memory"]);
}
