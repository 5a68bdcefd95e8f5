//! Power-on: what is promised, made and given back.

use std::collections::BTreeSet;
use std::process::Command;
use std::{env, fs};

use memvisor_wire::SeqPacket;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::super::rig::{Rig, hello};
use super::*;
use crate::chain::chain;
use crate::engine::{Link, MprotectProvider, ShimEngine};
use crate::units::PAGE_SIZE;
use crate::vm::Vm;

fn pages(mib: u64) -> u32 {
    u32::try_from(Bytes::from_mib(mib).pages().0).expect("small")
}

fn refused(rig: &Rig, hello: &Hello) -> String {
    chain(&rig.admission.admit(hello).expect_err("refused"))
}

#[test]
fn guest_that_is_not_powered_on_in_the_end_leaves_nothing() {
    let rig = Rig::new(None);
    let before = rig.budget.used();
    let admitted = rig.admission.admit(&hello("a", 1024)).expect("room");
    let promise = Promise {
        size: Pages(1024),
        reservation: Pages(0),
        pool: "root".to_owned(),
    };
    assert_eq!(rig.members.promised(), [("a".to_owned(), promise)]);
    let charged = rig.budget.used().saturating_sub(before);
    assert_eq!(charged, admitted.params.metadata());
    assert_eq!(rig.pools.all().len(), 1);
    drop(admitted);
    assert_eq!(rig.budget.used(), before);
    assert_eq!(rig.members.promised(), []);
    assert!(rig.pools.all().is_empty());
}

#[test]
fn two_guests_in_their_handshakes_are_not_promised_the_same_memory() {
    let rig = Rig::new(None);
    let reserving = |name: &str| Hello {
        reservation: pages(40),
        ..hello(name, pages(48))
    };
    let first = rig.admission.admit(&reserving("a")).expect("room");
    let error = refused(&rig, &reserving("b"));
    assert!(error.contains("40.0 MiB"), "{error}");
    assert_eq!(rig.members.promised().len(), 1, "the first holds");
    drop(first);
    rig.admission.admit(&reserving("b")).expect("room again");
}

#[test]
fn name_in_use_is_refused_by_name() {
    let rig = Rig::new(None);
    let _first = rig.admission.admit(&hello("a", 16)).expect("room");
    let error = refused(&rig, &hello("a", 16));
    assert!(error.contains("`a` is powered on already"), "{error}");
}

#[test]
fn guest_without_userfaultfd_falls_back_only_where_the_host_says_so() {
    let rig = Rig::with_engine(None, EngineKind::Uffd);
    let error = refused(&rig, &hello("a", 16));
    assert!(error.contains("userfaultfd"), "{error}");
    let engines = Engines {
        first: EngineKind::Uffd,
        may_fall_back: true,
        vma_budget: 1000,
    };
    let params = VmParams::check(&hello("a", 16)).expect("good");
    let chosen = engines.choose(false, &params).expect("falls back");
    assert_eq!(chosen, EngineKind::Mprotect);
}

#[test]
fn file_decides_about_what_the_guest_wants() {
    let rig = Rig::new(Some(
        "[vm.a]\nreservation = '60M'\n[vm.b]\nswap-dir = '/nowhere'\n",
    ));
    let error = refused(&rig, &hello("a", 16));
    assert!(error.contains("reservation 60.0 MiB"), "{error}");
    let before = rig.budget.used();
    let error = refused(&rig, &hello("b", 16));
    assert!(error.contains("/nowhere"), "{error}");
    assert_eq!(rig.budget.used(), before, "its metadata is given back");
    assert!(rig.members.wait_until_empty(Duration::ZERO), "and its name");
}

#[test]
fn change_of_a_running_vm_counts_as_promised_and_a_refused_one_changes_nothing() {
    let rig = Rig::new(None);
    let (a, b) = (
        rig.run(&hello("a", pages(48))),
        rig.run(&hello("b", pages(48))),
    );
    let patch = |words: &str| crate::settings::VmPatch::from_words([words]).expect("valid");
    let revision = rig.configuration.revision();
    rig.admission
        .change(&a, &patch("reservation=40M"))
        .expect("room");
    assert_eq!(rig.configuration.revision(), revision + 1);
    let error = rig.admission.change(&b, &patch("reservation=40M"));
    let error = error.expect_err("promised to the other").to_string();
    assert!(error.contains("40.0 MiB"), "{error}");
    let error = rig.admission.change(&b, &patch("swap-dir=/nowhere"));
    assert!(error.is_err_and(|error| error.to_string().contains("/nowhere")));
    assert_eq!(
        b.settings(),
        crate::settings::VmSettings {
            shares: b.settings().shares,
            ..crate::settings::VmSettings::default()
        }
    );
    assert_eq!(rig.configuration.revision(), revision + 1);
}

/// A reload is checked as a whole, even if some faults are found only late.
#[test]
fn reload_with_faults_that_only_this_host_can_see_changes_nothing_and_names_them_all() {
    let rig = Rig::new(Some("[settings]\n\"Mem.IdleTax\" = 10\n"));
    let vms = ["a", "b", "c"].map(|name| rig.run(&hello(name, pages(48))));
    let before = vms
        .each_ref()
        .map(|vm| (vm.settings(), vm.vm.swap.file.stats().slots));
    rig.rewrite(
        "[settings]\n\"Mem.IdleTax\" = 20\n\
         [vm.a]\nreservation = \"40M\"\nshares = 7\n\
         [vm.b]\nswap-dir = \"/nowhere\"\nreservation = \"40M\"\n\
         [vm.c]\nlimit = \"49M\"\n",
    );
    let error = rig.admission.reload().expect_err("faults").to_string();
    let lines: Vec<&str> = error.lines().collect();
    let expected = [
        ("memvisor.toml:7: VM `b`: ", "/nowhere"),
        ("memvisor.toml:8: VM `b`: ", "40.0 MiB"),
        ("memvisor.toml:10: VM `c`: ", "49.0 MiB"),
    ];
    assert_eq!(lines.len(), expected.len(), "{error}");
    for (line, (place, what)) in lines.iter().zip(expected) {
        assert!(line.contains(place) && line.contains(what), "{error}");
    }
    assert_eq!(rig.configuration.settings().idle_tax, 10);
    let after = vms
        .each_ref()
        .map(|vm| (vm.settings(), vm.vm.swap.file.stats().slots));
    assert_eq!(after, before);
    // The old file is still in force, also as what lies below a change by hand.
    for vm in &vms {
        let patch = crate::settings::VmPatch::from_words(["shares=high"]).expect("valid");
        rig.admission
            .change(vm, &patch)
            .expect("nothing is wrong with it");
    }
}

/// The sum is what counts, in whatever order the VMs come.
#[test]
fn reload_may_move_a_reservation_from_one_vm_to_another() {
    let with = |a: &str, b: &str| {
        format!("[vm.a]\nreservation = \"{a}\"\n[vm.b]\nreservation = \"{b}\"\n")
    };
    let rig = Rig::new(Some(&with("0", "40M")));
    let (a, b) = (
        rig.run(&hello("a", pages(48))),
        rig.run(&hello("b", pages(48))),
    );
    rig.rewrite(&with("40M", "0"));
    let report = rig.admission.reload().expect("the sum is as before");
    assert_eq!(report.vms, ["a", "b"]);
    assert_eq!(a.settings().reservation, Bytes::from_mib(40).pages());
    assert_eq!(a.vm.swap.file.stats().slots, Bytes::from_mib(8).pages());
    assert_eq!(b.vm.swap.file.stats().slots, Bytes::from_mib(48).pages());
}

#[test]
fn reload_that_takes_a_vm_out_of_the_file_says_so_if_that_cannot_be() {
    let rig = Rig::new(Some("[vm.a]\nreservation = \"1M\"\n"));
    let wanting = Hello {
        reservation: pages(40),
        ..hello("a", pages(48))
    };
    let a = rig.run(&wanting);
    let _b = rig.run(&Hello {
        reservation: pages(40),
        ..hello("b", pages(48))
    });
    rig.rewrite("");
    let error = rig.admission.reload().expect_err("too much").to_string();
    assert!(
        error.contains("memvisor.toml: VM `a`: reservation 40.0 MiB"),
        "{error}"
    );
    assert_eq!(a.settings().reservation, Bytes::from_mib(1).pages());
}

/// Puts a VM together as far as that takes tables; the error says why it could not be.
fn put_together(rig: &Rig, hello: &Hello) -> Result<(), String> {
    let admitted = rig.admission.admit(hello).map_err(|error| chain(&error))?;
    let (_guest, socket) = SeqPacket::pair().map_err(|error| error.to_string())?;
    let (ram, link) = (admitted.ram, Arc::new(Link::new(socket)));
    let engine = Box::new(ShimEngine::new(ram, link, MprotectProvider));
    let vm = Vm::new(admitted.id, admitted.params, engine, admitted.parts);
    vm.map(drop).map_err(|error| error.to_string())
}

/// Powers on with ever more address space, in steps smaller than the tables, so that each table fails once.
/// In a process of its own, since other tests would not find any memory either.
#[test]
fn power_on_that_finds_no_memory_is_refused_and_leaves_nothing() {
    const CHILD: &str = "MEMVISOR_TEST_SHORT_OF_MEMORY";
    const STEP: usize = 50 << 10;
    const COARSE: u64 = 16 << 20;
    if env::var_os(CHILD).is_none() {
        let test =
            "host::admission::tests::power_on_that_finds_no_memory_is_refused_and_leaves_nothing";
        let output = Command::new(env::current_exe().expect("this one"))
            .args(["--exact", test])
            .env(CHILD, "1")
            // One heap for all threads, and every table is mapped on its own. A test harness with threads of its own
            // leaves pieces in that heap into which tables fit, with some C libraries in some environments.
            .env("RUST_TEST_THREADS", "1")
            .env("MALLOC_ARENA_MAX", "1")
            .env("MALLOC_MMAP_THRESHOLD_", "65536")
            .env("MALLOC_TRIM_THRESHOLD_", "65536")
            .env("MALLOC_TOP_PAD_", "4096")
            .output()
            .expect("start");
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let passed = output.status.success() && text.contains("1 passed");
        assert!(passed, "{}: {text}{errors}", output.status);
        return;
    }
    let rig = Rig::new(None);
    let hello = Hello {
        reservation: pages(56),
        ..hello("a", pages(64))
    };
    put_together(&rig, &hello).expect("nothing is short yet");
    let before = rig.budget.used();
    // Leaves room in the heap for small allocations: pieces that no table fits into.
    let (_kept, freed): (Vec<_>, Vec<_>) = (0..256)
        .map(|_| (vec![1_u8; 64], vec![1_u8; 32 << 10]))
        .unzip();
    drop(freed);
    // Uses up all larger free pieces, so that no table fits into the heap.
    let _taken = [(); 64].map(|()| vec![1_u8; 60 << 10]);
    let (soft, hard) = getrlimit(Resource::RLIMIT_AS).expect("a limit");
    let attempt = |more: u64| {
        let statm = fs::read_to_string("/proc/self/statm").expect("of this process");
        let size = statm.split(' ').next().and_then(|n| n.parse().ok());
        let size: u64 = size.expect("a number of pages");
        let limit = size * PAGE_SIZE as u64 + more;
        setrlimit(Resource::RLIMIT_AS, limit, hard).expect("less is always allowed");
        let result = put_together(&rig, &hello);
        setrlimit(Resource::RLIMIT_AS, soft, hard).expect("as it was");
        assert_eq!(rig.budget.used(), before, "{result:?}");
        result
    };
    // Coarse steps as long as the same allocation fails, and fine steps where that changes.
    let mut refusals = BTreeSet::new();
    let mut last = attempt(0);
    for step in 1.. {
        let result = attempt(step * COARSE);
        if result != last {
            let fine = ((step - 1) * COARSE..step * COARSE).step_by(STEP);
            refusals.extend(fine.filter_map(|more| attempt(more).err()));
        }
        if result.is_ok() {
            break;
        }
        last = result;
    }
    eprintln!("{refusals:#?}");
    let tables = refusals
        .iter()
        .filter(|why| why.contains("no memory for a table"));
    assert!(tables.count() >= 4, "{refusals:#?}");
    let of_swap = |why: &String| why.contains("the digests of its swap file");
    assert!(refusals.iter().any(of_swap), "{refusals:#?}");
}

fn pool(words: &str) -> crate::settings::PoolPatch {
    crate::settings::PoolPatch::from_words(words.split_whitespace()).expect("valid")
}

fn vm_patch(words: &str) -> crate::settings::VmPatch {
    crate::settings::VmPatch::from_words(words.split_whitespace()).expect("valid")
}

#[test]
fn guest_is_admitted_into_its_pool_and_counts_there_from_the_handshake_on() {
    let rig = Rig::new(None);
    rig.admission
        .add_pool("prod", &pool("reservation=20M expandable=no"))
        .expect("room");
    let into = |name: &str, mib| Hello {
        resource_pool: "prod".to_owned(),
        reservation: pages(mib),
        ..hello(name, pages(24))
    };
    let first = rig.admission.admit(&into("a", 16)).expect("room");
    let error = refused(&rig, &into("b", 8));
    assert!(
        error.contains("`prod`") && error.contains("at most 4.0 MiB"),
        "{error}"
    );
    let removed = rig
        .admission
        .remove_pool("prod")
        .expect_err("a is on its way");
    assert!(removed.to_string().contains("VMs a are in it"), "{removed}");
    drop(first);
    rig.admission.admit(&into("b", 8)).expect("room again");
    rig.admission.remove_pool("prod").expect("it is empty");
    let error = refused(&rig, &into("b", 8));
    assert!(error.contains("no resource pool `prod`"), "{error}");
}

#[test]
fn vm_moves_only_where_its_reservation_fits_and_keeps_its_place_otherwise() {
    let rig = Rig::new(None);
    for (name, words) in [
        ("a", "reservation=16M expandable=no"),
        ("b", "reservation=8M expandable=no"),
    ] {
        rig.admission.add_pool(name, &pool(words)).expect("room");
    }
    let vm = rig.run(&Hello {
        resource_pool: "a".to_owned(),
        reservation: pages(12),
        ..hello("vm", pages(24))
    });
    let error = rig
        .admission
        .change(&vm, &vm_patch("pool=b"))
        .expect_err("too small");
    assert!(
        error.to_string().contains("`b`") && error.to_string().contains("4.0 MiB is missing"),
        "{error}"
    );
    assert_eq!(vm.settings().pool, "a");
    rig.admission
        .change(&vm, &vm_patch("pool=b reservation=8M"))
        .expect("it fits");
    let (ledger, host) = rig.admission.promises();
    let promised = |name: &str| {
        let at = host
            .resource_pools
            .iter()
            .position(|pool| pool.name == name);
        ledger.promised(at.expect("there")).bytes()
    };
    assert_eq!(["a", "b"].map(promised), [0, 8].map(Bytes::from_mib));
    // What the pools have is theirs, whoever is in them.
    assert_eq!(ledger.host().reserved, Bytes::from_mib(24).pages());
    let error = rig
        .admission
        .set_pool("b", &pool("reservation=4M"))
        .expect_err("promised");
    assert!(
        error.to_string().contains("`b` has promised 8.0 MiB"),
        "{error}"
    );
    rig.admission
        .set_pool("b", &pool("reservation=4M expandable=yes"))
        .expect("from the host");
}

/// Pools and VMs of a file are one change: what one gives up another may have, and one fault keeps all.
#[test]
fn reload_changes_pools_and_their_vms_together_or_not_at_all() {
    let rig = Rig::new(Some(
        "[pool.a]\nreservation = '32M'\nexpandable = false\n[vm.vm]\npool = 'a'\nreservation = '20M'\n",
    ));
    let vm = rig.run(&hello("vm", pages(24)));
    assert_eq!(
        (vm.settings().pool, vm.settings().reservation),
        ("a".to_owned(), Bytes::from_mib(20).pages())
    );
    let before = rig.configuration.resource_pools.list();
    for (text, parts) in [
        ("", &["VM"][..]),
        (
            "[pool.b]\n[vm.vm]\npool = 'a'\n",
            &["toml:3", "VM `vm`", "no resource pool `a`"],
        ),
        (
            "[pool.a]\nreservation = '8M'\nexpandable = false\n[vm.vm]\npool = 'a'\nreservation = '20M'\n",
            &["toml:2", "`a` has promised 20.0 MiB"],
        ),
        (
            "[pool.a]\nreservation = '60M'\n[vm.vm]\npool = 'a'\nreservation = '20M'\n",
            &["exceed the unreserved"],
        ),
        (
            "[pool.a]\nparent = 'b'\n[pool.b]\nparent = 'a'\n",
            &["circle", "`a` in `b`"],
        ),
        (
            "[pool.a]\nlimits = '8M'\n",
            &["toml:2", "`limits`", "allowed: limit"],
        ),
    ] {
        rig.rewrite(text);
        match rig.admission.reload() {
            // A VM whose table is gone goes back to where its guest wanted to be.
            Ok(_) => {
                assert_eq!(text, "");
                assert_eq!(
                    (
                        vm.settings().pool,
                        rig.configuration.resource_pools.list().len()
                    ),
                    ("root".to_owned(), 1)
                );
                rig.rewrite("[pool.a]\nreservation = '32M'\nexpandable = false\n[vm.vm]\npool = 'a'\nreservation = '20M'\n");
                rig.admission.reload().expect("as it was");
            }
            Err(error) => {
                for part in parts {
                    assert!(error.to_string().contains(part), "no `{part}` in {error}");
                }
            }
        }
        assert_eq!(rig.configuration.resource_pools.list(), before, "{text}");
        assert_eq!(vm.settings().pool, "a");
    }
    rig.rewrite("[pool.b]\nreservation = '32M'\nexpandable = false\n[vm.vm]\npool = 'b'\nreservation = '24M'\n");
    let report = rig.admission.reload().expect("what a had, b has");
    assert_eq!(
        (report.pools, report.vms),
        (vec!["a".to_owned(), "b".to_owned()], vec!["vm".to_owned()])
    );
}
