//! Control laws that lead the balloons of real guests. `esx` is what all other tests run.

use memvisor::settings::Key;
use memvisor::telemetry::FreeState;

use super::rig::{Host, eventually};
use super::{PATIENCE, check, end, filled, line, mib, pair};

in_one_engine!(
    pid_takes_what_is_missing_and_is_exchanged_while_it_runs,
    senpai_takes_from_a_guest_that_does_not_wait_while_the_host_has_enough,
    guests_that_want_more_than_there_is_are_served_under_each_law,
);

/// Two guests fill more than there is. Balloons bring what is missing; then another law takes over from these targets.
fn pid_takes_what_is_missing_and_is_exchanged_while_it_runs(engine: &str) {
    let args = [
        "--set",
        "Memvisor.BalloonLaw=pid",
        "--set",
        "Mem.ShareRateMax=0",
    ];
    let host = Host::start(engine, "48M", &args);
    assert_eq!(host.status().balloon_law, "pid");
    let words = "--memory 32M --workload toucher,size=28M,rate=20M,content=random,active=4M";
    let guests = ["a", "b"].map(|name| host.guest(name, words));
    let settled = eventually("balloons have brought enough", PATIENCE, || {
        let status = host.status();
        check(&status);
        let [a, b] = pair(&status, ["a", "b"])?;
        let held = a.balloon.size_pages.0 + b.balloon.size_pages.0;
        (held >= mib(8).0).then_some(status)
    });
    eprintln!("{engine}: {}", line(&settled));
    let why = host.client().why("a").expect("it is planned for");
    assert_eq!(why["balloon"]["law"], "pid", "{why:#}");
    assert_eq!(why["plan"]["law"]["target"], why["plan"]["balloon_target"]);
    let client = host.client();
    client.set_setting(Key::BalloonLaw, "esx").expect("a law");
    eventually("the other law leads them", PATIENCE, || {
        let why = client.why("a").ok()?;
        (why["balloon"]["law"] == "esx").then_some(())
    });
    assert_eq!(host.status().balloon_law, "esx");
    client
        .set_setting(Key::BalloonLaw, "pdi")
        .expect_err("no law");
    end(host, guests, &[]);
}

/// Nobody needs the memory. A guest that touches little has some of it taken all the same; when it touches all of it, and
/// waits for its own swap device, it is given most of that back.
fn senpai_takes_from_a_guest_that_does_not_wait_while_the_host_has_enough(engine: &str) {
    let args = [
        "--set",
        "Memvisor.BalloonLaw=senpai",
        "--set",
        "Memvisor.SenpaiInterval=1s",
        "--set",
        "Memvisor.SenpaiProbe=10",
        "--set",
        "Mem.ShareRateMax=0",
    ];
    let host = Host::start(engine, "128M", &args);
    let words = "--memory 48M --workload \
                 toucher,size=40M,rate=40M,content=random,active=1M,then=40M@15s";
    let guest = host.guest("g", words);
    filled(&host, "g", 40);
    let balloon = |host: &Host| {
        let status = host.status();
        check(&status);
        assert_eq!(
            status.free_state,
            FreeState::High,
            "nobody needs the memory"
        );
        host.vm("g").balloon.size_pages
    };
    // More than it has free, so that the guest has paged for it.
    let before = eventually("it is probed", PATIENCE, || {
        Some(balloon(&host)).filter(|size| *size > mib(12))
    });
    let after = eventually("it is given back", PATIENCE, || {
        Some(balloon(&host)).filter(|size| *size < mib(6))
    });
    eprintln!(
        "{engine}: {} were taken, then {}",
        before.bytes(),
        after.bytes()
    );
    end(host, [guest], &[]);
}

/// The promises of the states, under each law: guests that together want half as much again as there is go on, read
/// what they wrote, and what balloons do not bring is swapped.
fn guests_that_want_more_than_there_is_are_served_under_each_law(engine: &str) {
    for law in ["esx", "pid", "senpai"] {
        let set = format!("Memvisor.BalloonLaw={law}");
        let args = ["--set", &set, "--set", "Mem.ShareRateMax=0"];
        let host = Host::start(engine, "40M", &args);
        let words =
            "--memory 32M --reservation 8M --workload toucher,size=28M,rate=40M,content=random";
        let guests = ["a", "b"].map(|name| host.guest(name, words));
        for name in ["a", "b"] {
            filled(&host, name, 28);
        }
        let status = host.status();
        check(&status);
        for vm in &status.vms {
            assert!(
                vm.balloon.size_pages <= vm.balloon.max_pages,
                "{law}: {vm:#?}"
            );
        }
        eprintln!("{engine}, {law}: {}", line(&status));
        end(host, guests, &["wait for memory"]);
    }
}
