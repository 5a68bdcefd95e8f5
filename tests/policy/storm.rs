//! Memory that is kept free for guests that write what they share.

use memvisor::units::Pages;

use super::rig::{Host, PATIENCE, eventually};
use super::{end, mib};

in_one_engine!(part_of_what_clones_share_is_kept_free_while_they_share_it);

/// Two clones share 32 MiB that nobody takes from them, and another guest has all other memory until a part of it is to be kept free.
fn part_of_what_clones_share_is_kept_free_while_they_share_it(engine: &str) {
    let quick = [
        "--share-scan-time",
        "1s",
        "--set",
        "Mem.SamplePeriod=1",
        "--set",
        "Mem.BalancePeriod=0.5",
    ];
    let host = Host::start(engine, "192M", &quick);
    let clone = "--memory 48M --reservation 40M --seed 7 --workload idle,size=32M,content=random";
    let clones = ["a", "b"].map(|name| host.guest(name, clone));
    let share = host.rest(&["a", "b"], PATIENCE).share;
    assert!(share.saved_pages >= mib(31), "{share:?}");
    assert_eq!(share.break_cost_pages, share.saved_pages);
    assert_eq!(
        share.reserve_pages,
        Pages(0),
        "nothing is kept unless it is set"
    );
    for name in ["a", "b"] {
        let vm = host.vm(name);
        // If one of them writes all that it shares, the other keeps the frames.
        assert_eq!(vm.break_cost_pages, vm.homes.shared_pages, "{vm:#?}");
    }
    let hog = "--memory 192M --workload toucher,size=148M,rate=100M,content=random";
    let hog = host.guest("hog", hog);
    let full = eventually("the host is full", PATIENCE, || {
        let status = host.status();
        (status.free_pages < mib(16)).then_some(status)
    });
    host.set("Memvisor.ShareReserve", "100");
    let kept = eventually("what is kept free is there", PATIENCE, || {
        let status = host.status();
        let reserve = status.share.reserve_pages;
        // The balloon of the hog brings it; up to where soft ends it may take its time.
        (reserve >= mib(30) && status.free_pages >= reserve).then_some(status)
    });
    let more = kept.thresholds.min_free_pages.0 - full.thresholds.min_free_pages.0;
    assert!(Pages(more) >= mib(30), "{kept:#?}");
    host.set("Memvisor.ShareReserve", "default");
    eventually("the hog has it back", PATIENCE, || {
        let status = host.status();
        (status.free_pages < mib(20) && status.share.reserve_pages == Pages(0)).then_some(())
    });
    end(host, clones.into_iter().chain([hog]), &[]);
}
