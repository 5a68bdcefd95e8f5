//! Resource pools: who gets memory by the tree, limits of pools, moves, and everything that is refused.

use memvisor::settings::PoolPatch;
use memvisor::telemetry::PoolStatus;
use memvisor::units::Pages;

use super::rig::{Host, eventually};
use super::{PATIENCE, check, end, filled, host, line, mib};

in_one_engine!(
    guests_in_pools_get_memory_by_the_tree_and_move_while_they_run,
    limit_of_a_pool_binds_its_guests_together_in_the_high_state,
);

fn patch(words: &str) -> PoolPatch {
    PoolPatch::from_words(words.split_whitespace()).expect("settings of a pool")
}

fn add(host: &Host, name: &str, words: &str) -> PoolStatus {
    let added = host.client().add_pool(name, &patch(words));
    added.unwrap_or_else(|error| panic!("{name}: {words}: {error}"))
}

fn pool(host: &Host, name: &str) -> PoolStatus {
    let mut pools = host.status().pools.into_iter();
    pools.find(|pool| pool.name == name).expect("a pool")
}

/// What the VMs are to hold by the policy, in MiB.
fn targets(host: &Host, names: &[&str]) -> Vec<u64> {
    let status = host.status();
    check(&status);
    let target = |name: &&str| super::of(&status, name).map(|vm| vm.allocation.target_pages.0 >> 8);
    names.iter().filter_map(target).collect()
}

/// Waits until the targets are near these numbers of MiB, and the VMs hold no more than that.
fn comes_to(host: &Host, what: &str, names: &[&str], expected: &[u64]) {
    let near = |is: u64, to: u64| is.abs_diff(to) <= 3;
    let status = eventually(what, PATIENCE, || {
        let targets = targets(host, names);
        let are = targets.len() == expected.len()
            && targets.iter().zip(expected).all(|(is, to)| near(*is, *to));
        let status = host.status();
        let held = |(name, most): (&&str, &u64)| {
            super::of(&status, name).is_some_and(|vm| vm.consumed_pages <= mib(most + 8))
        };
        (are && names.iter().zip(expected).all(held)).then_some(status)
    });
    eprintln!("{what}: {}", line(&status));
}

fn guests_in_pools_get_memory_by_the_tree_and_move_while_they_run(engine: &str) {
    // No page counts as idle, so that only shares decide.
    let host = host(engine, "96M", &["Mem.IdleTax=0"]);
    add(&host, "two", "shares=1000");
    add(&host, "one", "shares=1000");
    let work = "--memory 64M --workload toucher,size=56M,rate=24M,content=random";
    let in_pool = |name, pool| host.guest(name, &format!("{work} --pool {pool}"));
    let guests = vec![
        in_pool("a", "two"),
        in_pool("b", "two"),
        in_pool("c", "one"),
    ];
    eventually("all are powered on", PATIENCE, || {
        (host.status().vms.len() == 3).then_some(())
    });
    let available = eventually("there is a plan", PATIENCE, || {
        let root = pool(&host, "root").target_pages;
        (host.status().vms.len() == 3 && root > Pages(0)).then_some(root.0 >> 8)
    });
    for name in ["a", "b", "c"] {
        filled(&host, name, 54);
    }
    // In a pool of as many shares as the other, two guests have half of what is given to the one there.
    let (quarter, half) = (available / 4, available / 2);
    comes_to(
        &host,
        "by the tree",
        &["a", "b", "c"],
        &[quarter, quarter, half.min(56)],
    );
    eventually(
        "it is explained by the level that is short",
        PATIENCE,
        || {
            let why = host.client().why("a").ok()?;
            assert_eq!(why["levels"][0]["pool"], "two", "{why}");
            why["levels"][1]["plan"]["price"].as_f64()
        },
    );
    host.set_vm("b", "pool=one");
    comes_to(
        &host,
        "after the move",
        &["a", "b", "c"],
        &[half.min(56), quarter, quarter],
    );
    let counts = ["root", "two", "one"].map(|name| pool(&host, name).vms);
    assert_eq!(counts, [3, 1, 2]);
    end(host, guests, &[]);
}

fn limit_of_a_pool_binds_its_guests_together_in_the_high_state(engine: &str) {
    let host = host(engine, "192M", &[]);
    add(&host, "small", "limit=48M");
    let work = "--memory 48M --pool small --workload toucher,size=36M,rate=16M,content=random";
    let guests = vec![host.guest("a", work), host.guest("b", work)];
    let held = || {
        let status = host.status();
        check(&status);
        let vms = status.vms.iter();
        Pages(vms.map(|vm| vm.consumed_pages.0).sum())
    };
    eventually("they want more than the limit", PATIENCE, || {
        let small = pool(&host, "small");
        // What is on its way out and in caches is seen with a delay; each guest may always hold 1 MiB.
        assert!(held() <= mib(48 + 8), "{}", held().bytes());
        let vms = host.status().vms;
        let swapped: u64 = vms
            .iter()
            .map(|vm| vm.homes.swapped_pages.0 + vm.balloon.size_pages.0)
            .sum();
        (small.limited && vms.len() == 2 && swapped > 0 && held() > mib(40)).then_some(())
    });
    host.client()
        .set_pool("small", &patch("limit=none"))
        .expect("nothing is against it");
    filled(&host, "a", 34);
    filled(&host, "b", 34);
    eventually("both have all they want", PATIENCE, || {
        (held() > mib(66)).then_some(())
    });
    assert!(!pool(&host, "small").limited);
    end(host, guests, &[]);
}

/// What is asked of `memvisor pool` while the VM `vm1`, which reserves 8 MiB, is in `web` in `prod`, and what is said.
const REFUSED: &[(&[&str], &[&str])] = &[
    (&["add", "prod"], &["`prod` already", "pool set prod"]),
    (&["add", "root"], &["`root` already"]),
    (&["add", "a/b"], &["`a/b`", "1 to 63 letters"]),
    (&["add", "x", "--parent", "prdo"], &["`prdo`", "near: prod"]),
    (
        &["add", "x", "--shares", "many"],
        &["shares", "`many`", "low, normal, high"],
    ),
    (
        &["add", "x", "--reservation", "2M", "--limit", "1M"],
        &["2.0 MiB", "at most 1.0 MiB"],
    ),
    (
        &["add", "x", "--reservation", "80M"],
        &["reservation 80.0 MiB", "exceed the unreserved"],
    ),
    (
        &["add", "x", "--parent", "prod", "--reservation", "30M"],
        &["`prod`", "6.0 MiB is missing", "at most 24.0 MiB"],
    ),
    (
        &["set", "prod", "parent=web"],
        &["circle", "`prod`", "`web`"],
    ),
    (
        &["set", "prod", "reservation=4M"],
        &["`prod` has promised 8.0 MiB", "4.0 MiB is missing"],
    ),
    (
        &["set", "prod", "limit=16M"],
        &["32.0 MiB is more than the limit of 16.0 MiB"],
    ),
    (
        &["set", "root", "limit=16M"],
        &["`root`", "allowed: scalable-shares"],
    ),
    (&["set", "tset", "shares=1"], &["`tset`", "near: test"]),
    (&["set", "test", "share=1"], &["`share`", "allowed: shares"]),
    (
        &["rm", "web"],
        &["`web` is not empty: VMs vm1", "vm set vm1 pool=root"],
    ),
    (
        &["rm", "prod"],
        &["`prod` is not empty: pools web", "pool set web parent=root"],
    ),
    (&["rm", "root"], &["`root`"]),
    (&["rm", "nothing"], &["`nothing`", "root, "]),
];

/// Each thing that is refused changes nothing, and says what is wrong and what is allowed.
#[test]
fn what_is_no_tree_or_does_not_fit_is_refused_and_nothing_is_lost() {
    let host = host("mprotect", "96M", &[]);
    add(&host, "prod", "reservation=32M expandable=no");
    add(&host, "web", "parent=prod");
    add(&host, "test", "");
    let work = "--workload toucher,size=2M,content=random --memory 48M";
    let guest = host.guest("vm1", &format!("{work} --pool web --reservation 8M"));
    host.vm("vm1");
    let before = host.status().pools;
    let refused = |words: &[&str], parts: &[&str]| {
        let output = host.command("pool").args(words).output().expect("start");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{words:?}");
        for part in parts {
            assert!(error.contains(part), "{words:?}: no `{part}` in {error}");
        }
    };
    for (words, parts) in REFUSED {
        refused(words, parts);
    }
    let vm_set = |words: &str| {
        let command = format!("vm set vm1 {words}");
        let output = host.command(&command).output().expect("start");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (_, error) = vm_set("pool=prdo");
    assert!(
        error.contains("no resource pool `prdo`") && error.contains("near: prod"),
        "{error}"
    );
    let (_, error) = vm_set("reservation=40M");
    assert!(
        error.contains("`prod`") && error.contains("at most 32.0 MiB"),
        "{error}"
    );
    assert_eq!(host.status().pools, before, "nothing has changed");
    let mut unknown = host.guest("vm2", &format!("{work} --pool prdo"));
    unknown.fails(1, "`prdo` near: prod");

    // What is refused where there is no room is done where there is.
    assert_eq!(vm_set("pool=test reservation=40M"), (true, String::new()));
    assert_eq!(vm_set("pool=root"), (true, String::new()));
    for name in ["web", "prod", "test"] {
        host.client().remove_pool(name).expect("it is empty");
    }
    assert_eq!(host.status().pools.len(), 1);
    end(host, vec![guest], &["a guest was not powered on"]);
}
