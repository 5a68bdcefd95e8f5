//! Balloons: they are given back to guests that need the memory, and never take what is reserved.

use std::time::Instant;

use memvisor::telemetry::Reading;
use memvisor::units::Pages;

use super::rig::{Host, eventually};
use super::{PATIENCE, check, end, filled, host, line, mib, of, touched};

in_both_engines!(
    balloons_of_guests_full_of_zeroes_are_given_back,
    balloon_set_by_hand_takes_nothing_of_a_reservation,
);

/// The host cannot know that all pages are zero before it has scanned them, so it inflates balloons at first. Then
/// it has half of its memory free, and the guests get their balloons back as they page in.
fn balloons_of_guests_full_of_zeroes_are_given_back(engine: &str) {
    let host = Host::start(engine, "64M", &[]);
    let names = ["a", "b"];
    let words = "--memory 64M --workload toucher,size=60M,active=60M,write=0,content=zero,rate=8M";
    let guests = names.map(|name| host.guest(name, words));
    let since = Instant::now();
    let what = "there were balloons";
    eventually(what, PATIENCE, || {
        let status = host.status();
        check(&status);
        (status.totals.homes.ballooned_pages > mib(8)).then_some(())
    });
    let what = "all memory is in use and no balloon is left";
    let status = eventually(what, PATIENCE, || {
        let status = host.status();
        check(&status);
        let used = |name: &str| of(&status, name).is_some_and(|vm| touched(vm) >= mib(56));
        let returned = status.totals.homes.ballooned_pages < mib(8);
        (names.iter().all(|name| used(name)) && returned).then_some(status)
    });
    eprintln!(
        "{engine}: {what} after {:.1?}: {}",
        since.elapsed(),
        line(&status)
    );
    end(host, guests, &["wait for memory"]);
}

/// A guest reserves three quarters of its memory. Its balloon may take the last quarter, and `why` says so.
fn balloon_set_by_hand_takes_nothing_of_a_reservation(engine: &str) {
    let host = host(engine, "128M", &[]);
    let words =
        "--memory 32M --reservation 24M --workload toucher,size=28M,rate=40M,content=random";
    let guest = host.guest("g", words);
    filled(&host, "g", 28);
    eventually("its agent is there", PATIENCE, || {
        host.vm("g").balloon.agent.then_some(())
    });
    let client = host.client();
    assert_eq!(host.vm("g").balloon.max_pages, mib(8));
    client
        .set_balloon("g", Some(mib(9).bytes()))
        .expect_err("that is reserved");
    client
        .set_balloon("g", Some(mib(8).bytes()))
        .expect("it may");
    let full = |size: Pages| {
        eventually("its balloon has what was set", PATIENCE, || {
            let vm = host.vm("g");
            assert!(vm.balloon.size_pages <= vm.balloon.max_pages, "{vm:#?}");
            // The guest wants the last pages for itself, and may get them before the balloon does.
            (vm.balloon.size_pages.0 + 32 >= size.0).then_some(())
        });
    };
    full(mib(8));
    let why = eventually("the plan knows of it", PATIENCE, || {
        let why = client.why("g").ok()?;
        (why["plan"]["why"] == "by-hand").then_some(why)
    });
    assert_eq!(why["balloon"]["by_hand"], mib(8).0, "{why:#}");
    assert_eq!(why["balloon"]["bound"], "reservation", "{why:#}");
    assert_eq!(why["plan"]["balloon_target"], mib(8).0, "{why:#}");
    // The balloon is as full as it can be: that is high, and said where the plan is explained and in the status.
    assert!(why["host_health"]["why"].is_string(), "{why:#}");
    let status = host.status();
    assert_eq!(status.reserved_pages, mib(24), "{status:#?}");
    let vm = host.vm("g");
    assert!(vm.health.reading >= Reading::Hmm, "{vm:#?}");
    assert!(status.health.reading >= Reading::Hmm, "{status:#?}");
    let session = &vm.balloon.session;
    let held = session
        .inflated_pages
        .saturating_sub(session.deflated_pages);
    assert!(held >= Pages(mib(8).0 - 32), "{vm:#?}");
    // The size set by hand stays in force, but gives way to the new reservation.
    host.set_vm("g", "reservation=30M");
    assert_eq!(host.vm("g").balloon.max_pages, mib(2));
    eventually("it gives way", PATIENCE, || {
        (host.vm("g").balloon.size_pages <= mib(4)).then_some(())
    });
    end(host, [guest], &[]);
}
