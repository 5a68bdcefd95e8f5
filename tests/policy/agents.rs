//! What becomes of memory whose guest cannot be asked for it: one without an agent, one that stands still.

use std::time::Instant;

use memvisor::telemetry::VmStatus;
use memvisor::units::Pages;

use super::common::eventually;
use super::{PATIENCE, check, end, filled, host, line, mib, of, pair};

in_both_engines!(
    guest_without_an_agent_is_paged_where_one_with_an_agent_is_ballooned,
    guest_that_stands_still_holds_up_nobody_and_is_ballooned_when_it_goes_on,
);

fn stored(vm: &VmStatus) -> Pages {
    Pages(vm.homes.swapped_pages.0 + vm.homes.compressed_pages.0)
}

fn guest_without_an_agent_is_paged_where_one_with_an_agent_is_ballooned(engine: &str) {
    let host = host(engine, "72M", &[]);
    let names = ["with", "without"];
    let workload = ["toucher,size=44M,active=12M,rate=40M,content=random"];
    let guests = [
        host.guest(names[0], "48M", &workload, &["--seed", "1"]),
        host.guest(names[1], "48M", &workload, &["--seed", "2", "--no-agent"]),
    ];
    let since = Instant::now();
    // 88 MiB of which no two pages are equal do not fit 67.
    let what = "one is ballooned and the other is paged";
    let status = eventually(what, PATIENCE, || {
        let status = host.status();
        check(&status);
        let [with, without] = pair(&status, names)?;
        assert_eq!(without.homes.ballooned_pages, Pages(0), "{without:#?}");
        let done = with.balloon.size_pages >= mib(8) && stored(without) >= mib(6);
        // What was taken from both in the rush comes back, or is still idle; the host has enough.
        (done && status.free_pages > status.thresholds.soft_pages).then_some(status)
    });
    eprintln!(
        "{engine}: {what} after {:.1?}: {}",
        since.elapsed(),
        line(&status)
    );
    end(host, guests, &[]);
}

fn guest_that_stands_still_holds_up_nobody_and_is_ballooned_when_it_goes_on(engine: &str) {
    let host = host(engine, "72M", &[]);
    let idle = "toucher,size=40M,active=1M,rate=4M,content=random";
    let still = host.guest("still", "48M", &[idle], &[]);
    filled(&host, "still", 40);
    let stopped = still.suspend();
    let since = Instant::now();
    // It would be the one to give: it uses nothing. 40 of 67 MiB are out of reach, and there are 24 for
    // 2 times 20.
    let workload = ["toucher,size=20M,rate=20M,content=random"];
    let others = ["a", "b"].map(|name| host.guest(name, "28M", &workload, &[]));
    for name in ["a", "b"] {
        filled(&host, name, 20);
    }
    eprintln!(
        "{engine}: others have filled their memory after {:.1?}: {}",
        since.elapsed(),
        line(&host.status())
    );
    // They go on, and one more comes and goes.
    let visit = ["toucher,size=8M,rate=20M,content=random"];
    let visitor = host.guest("visitor", "12M", &visit, &["--duration", "2s"]);
    let report = visitor.finish(PATIENCE);
    assert!(report.pages_verified > mib(8).0, "{report:#?}");
    let stuck = host.vm("still");
    assert_eq!(stuck.homes.ballooned_pages, Pages(0), "{stuck:#?}");

    drop(stopped);
    let since = Instant::now();
    let what = "it is ballooned when it goes on";
    let status = eventually(what, PATIENCE, || {
        let status = host.status();
        check(&status);
        let vm = of(&status, "still")?;
        (vm.balloon.size_pages >= mib(12)).then_some(status)
    });
    eprintln!(
        "{engine}: {what} after {:.1?}: {}",
        since.elapsed(),
        line(&status)
    );
    end(
        host,
        others.into_iter().chain([still]),
        &["wait for memory"],
    );
}
