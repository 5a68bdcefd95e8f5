//! Processes that die, stall or are told to end at any moment, and disks that fail: a process loses only what
//! is its own, what is left is right, and nothing stays behind.

mod rig;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use memvisor::settings::VmPatch;
use memvisor::telemetry::FreeState;
use memvisor::units::Bytes;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rig::raw::{RawGuest, hello};
use rig::{Host, PATIENCE, Process, engines, eventually, host_command, memvisor, names, scratch};

/// How long the memory of a dead guest may stay in use.
const AT_ONCE: Duration = Duration::from_secs(5);
/// A scan takes only a second, so that pages are merged all the time.
const BUSY: [&str; 2] = ["--share-scan-time", "1s"];

#[test]
fn guest_killed_at_any_moment_gives_everything_back_and_nobody_notices() {
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for engine in engines() {
        let host = Host::quiet(engine, "64M", &BUSY);
        // All guests together have 2.5 times the host's memory, so pages are shared, evicted, refilled and ballooned
        // all the time.
        let mut others: Vec<_> = (0..2)
            .map(|n| {
                let words = format!("--memory 48M --seed {n} --workload kv,size=28M,write=30");
                host.guest(&format!("stays{n}"), &words)
            })
            .collect();
        for round in 0..5 {
            let name = format!("dies{round}");
            let mut guest = host.guest(&name, "--memory 48M --workload kv,size=20M churn,size=12M");
            host.await_vm(&name, "runs", |vm| vm.homes.resident_pages.0 > 0);
            if round % 2 == 1 {
                // This may fail: the agent may not have started yet.
                let _ = host.client().set_balloon(&name, Some(Bytes::from_mib(16)));
            }
            // Any moment is to be tested, so it is left to chance.
            thread::sleep(Duration::from_millis(random.random_range(20..900)));
            guest.send(Signal::SIGKILL);
            guest.dies_by(Signal::SIGKILL);
            host.forgets(&name, AT_ONCE);
        }
        for other in &mut others {
            other.send(Signal::SIGINT);
            other.reports(130);
        }
        host.is_empty(AT_ONCE);
        host.stop();
    }
}

#[test]
fn guest_sent_sigsegv_dies_by_it() {
    for engine in engines() {
        let host = Host::quiet(engine, "64M", &[]);
        let mut guest = host.guest("g", "--memory 16M --workload kv,size=8M");
        host.await_vm("g", "runs", |vm| vm.homes.resident_pages.0 > 1000);
        guest.send(Signal::SIGSEGV);
        guest.dies_by(Signal::SIGSEGV);
        host.is_empty(AT_ONCE);
        host.stop();
    }
}

#[test]
fn guest_told_to_end_verifies_and_reports_before_it_does() {
    let host = Host::quiet("auto", "64M", &[]);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // A name for each guest, because the guest before may still be listed.
        let name = signal.as_str();
        let mut guest = host.guest(name, "--memory 16M --workload kv,size=8M");
        host.await_vm(name, "runs", |vm| vm.homes.resident_pages.0 > 1000);
        guest.send(signal);
        assert!(guest.reports(130).interrupted);
    }
    host.is_empty(AT_ONCE);
    host.stop();
}

#[test]
fn guest_that_is_stopped_does_not_stop_others_and_goes_on_unharmed() {
    for engine in engines() {
        let host = Host::quiet(engine, "64M", &BUSY);
        let mut stopped = host.guest("stopped", "--memory 48M --workload kv,size=30M");
        host.await_vm("stopped", "is full", |vm| vm.homes.resident_pages.0 > 6000);
        stopped.send(Signal::SIGSTOP);
        // The other guest does not fit beside the stopped one, which gives nothing back.
        let words = "--memory 48M --workload kv,size=40M,content=random --duration 3s";
        let mut other = host.guest("other", words);
        other.verifies();
        assert_eq!(stopped.ended(), None);
        stopped.send(Signal::SIGCONT);
        stopped.send(Signal::SIGINT);
        stopped.reports(130);
        host.is_empty(AT_ONCE);
        host.stop();
    }
}

/// A little more than how long a guest may leave the host without an answer while another guest has less than its
/// reservation.
const OVERDUE: Duration = Duration::from_secs(12);

#[test]
fn guest_that_is_stopped_ends_when_it_keeps_another_from_its_reservation() {
    for engine in engines() {
        let host = Host::quiet(engine, "48M", &[]);
        let words = "--memory 44M --workload toucher,size=38M,content=random";
        let mut stopped = host.guest("stopped", words);
        host.await_vm("stopped", "is full", |vm| {
            vm.configured_pages.0 - vm.homes.untouched_pages.0 >= 38 * 256
        });
        stopped.send(Signal::SIGSTOP);
        let words = "--memory 24M --reservation 16M --workload kv,size=16M,content=random";
        let mut other = host.guest("other", words);
        stopped.dies_by(Signal::SIGKILL);
        let log = host.log();
        let why = "VM `other` has less than its reservation";
        assert!(log.contains("its guest has not answered for 1"), "{log}");
        assert!(log.contains(why), "{log}");
        host.await_vm("other", "has what was promised", |vm| {
            vm.homes.resident_pages.0 >= 16 * 256
        });
        other.send(Signal::SIGINT);
        other.reports(130);
        host.is_empty(AT_ONCE);
        host.stop();
    }
}

#[test]
fn guest_that_is_stopped_is_left_alone_where_nobody_goes_without() {
    let stop = |engine| {
        let host = Host::quiet(engine, "96M", &[]);
        let words = "--memory 32M --no-agent --workload kv,size=24M,content=random";
        let mut stopped = host.guest("stopped", words);
        host.await_vm("stopped", "is full", |vm| vm.homes.resident_pages.0 > 5000);
        stopped.send(Signal::SIGSTOP);
        // To get it down to the limit the host sends commands, so from here on it owes the host an answer.
        let patch = VmPatch {
            limit: Some(Some(Bytes::from_mib(8).pages())),
            ..VmPatch::default()
        };
        host.client().set_vm("stopped", &patch).expect("a limit");
        let words = "--memory 24M --reservation 16M --workload kv,size=16M,content=random";
        let mut other = host.guest("other", words);
        host.await_vm("other", "has what was promised", |vm| {
            vm.homes.resident_pages.0 >= 16 * 256
        });
        // The test is that nothing happens, so there is no condition to wait for.
        thread::sleep(OVERDUE);
        for guest in [&mut stopped, &mut other] {
            assert_eq!(guest.ended(), None);
            guest.send(Signal::SIGCONT);
            guest.send(Signal::SIGINT);
            guest.reports(130);
        }
        host.is_empty(AT_ONCE);
        host.stop();
    };
    thread::scope(|scope| {
        for engine in engines() {
            scope.spawn(move || stop(engine));
        }
    });
}

/// The guest makes its userfaultfd blocking. The host's fault thread would then wait in a read for ever, and nobody
/// else could end the VM.
#[test]
fn guest_whose_userfaultfd_waits_can_be_ended() {
    if !engines().contains(&"uffd") {
        eprintln!("SKIPPED: needs userfaultfd");
        return;
    }
    let host = Host::quiet("uffd", "64M", &[]);
    // Ten tries, because in each the change may come too late for the fault thread's first read.
    for _ in 0..10 {
        let guest = RawGuest::connect(&host).hello(hello("g", 1024));
        let mut guest = guest.power_on_while(Some(&|uffd| {
            fcntl(uffd, FcntlArg::F_SETFL(OFlag::empty())).expect("its own flags");
        }));
        // Fails if the host has found out and ended the guest before.
        let _ = host.client().kill("g");
        guest.guest.is_killed();
        host.forgets("g", AT_ONCE);
    }
    host.is_empty(AT_ONCE);
    host.stop();
}

/// Not a test: the process that connects for a scripted guest, see [`rig::raw::connector`].
#[test]
#[ignore = "run by tests that script a guest"]
fn connector() {
    rig::raw::connector();
}

#[test]
fn guest_beside_a_stopped_host_says_so_and_ends_by_a_signal_or_goes_on_with_the_host() {
    let host = Host::quiet("auto", "64M", &[]);
    host.process.send(Signal::SIGSTOP);
    let words = "--memory 8M --workload kv,size=4M --duration 200ms";
    let [mut waits, mut interrupted] = ["waits", "interrupted"].map(|name| host.guest(name, words));
    for guest in [&waits, &interrupted] {
        eventually("the guest says that it waits", PATIENCE, || {
            let said = guest.stderr();
            said.contains("the host does not answer; waiting for it for up to 60s")
                .then_some(())
        });
    }
    interrupted.send(Signal::SIGINT);
    interrupted.fails(130, "interrupted");
    assert_eq!(waits.ended(), None);
    host.process.send(Signal::SIGCONT);
    waits.verifies();
    host.is_empty(AT_ONCE);
    host.stop();
}

#[test]
fn host_killed_ends_its_guests_and_leaves_nothing_but_stale_sockets() {
    for engine in engines() {
        let mut host = Host::quiet(engine, "32M", &BUSY);
        // Most accesses of these guests wait for the host, so at any moment some thread waits in a fault.
        let mut guests: Vec<_> = (0..3)
            .map(|n| {
                let words = "--memory 48M --workload kv,size=24M,threads=4,content=random";
                host.guest(&format!("g{n}"), words)
            })
            .collect();
        for n in 0..3 {
            host.await_vm(&format!("g{n}"), "swaps", |vm| vm.swap.reads > 10);
        }
        host.process.send(Signal::SIGKILL);
        host.process.dies_by(Signal::SIGKILL);
        for guest in &mut guests {
            let status = guest.wait(Duration::from_secs(5));
            let log = guest.stderr();
            assert_eq!(status.code(), Some(4), "{status}: {log}");
            assert!(log.contains("the host closed the session"), "{log}");
        }
        let left = names(&host.path().join("run"));
        assert_eq!(
            left,
            ["balloon.sock", "control.sock", "lock", "memory.sock"]
        );
        // A new host takes the place of the dead one.
        let mut next = again(&host, engine);
        let mut guest = host.guest("new", "--memory 8M --workload kv,size=4M --duration 200ms");
        guest.verifies();
        next.terminate();
        assert_eq!(next.wait(PATIENCE).code(), Some(0), "{}", next.stderr());
    }
}

fn again(host: &Host, engine: &str) -> Process {
    let mut command = memvisor();
    command.args([
        "host",
        "--memory",
        "64M",
        "--engine",
        engine,
        "--runtime-dir",
    ]);
    command.arg(host.path().join("run"));
    let mut process = Process::start(command, "host2", host.path());
    eventually("the second host serves", PATIENCE, || {
        assert_eq!(process.ended(), None, "{}", process.stderr());
        process.stderr().contains("host is up").then_some(())
    });
    process
}

#[test]
fn second_host_in_the_same_directory_is_refused_and_names_the_first() {
    let host = Host::quiet("mprotect", "64M", &[]);
    let guest = host.guest("g", "--memory 8M --workload kv,size=4M");
    host.await_vm("g", "runs", |vm| vm.homes.resident_pages.0 > 500);
    let mut command = memvisor();
    command.args(["host", "--memory", "64M", "--runtime-dir"]);
    command.arg(host.path().join("run"));
    let mut second = Process::start(command, "second", host.path());
    let first = format!("(pid {})", host.process.pid());
    second.fails(1, &first);
    guest.stop();
    host.stop();
}

#[test]
fn host_told_to_end_ends_its_guests_in_order() {
    for engine in engines() {
        let mut host = Host::quiet(engine, "64M", &[]);
        let own = host.status().used_pages.0;
        let mut guests: Vec<_> = (0..3)
            .map(|n| {
                let name = format!("g{n}");
                let guest = host.guest(&name, "--memory 48M --workload kv,size=24M");
                host.await_vm(&name, "runs", |vm| vm.homes.resident_pages.0 > 500);
                guest
            })
            .collect();
        let log = host.end();
        assert_eq!(log.matches("VM is gone").count(), 3, "{log}");
        assert!(log.contains(&format!("used_pages={own}\n")), "{log}");
        for guest in &mut guests {
            guest.fails(4, "shuts down");
        }
    }
}

#[test]
fn guest_ended_by_request_is_told_so() {
    let host = Host::quiet("auto", "64M", &[]);
    let mut guest = host.guest("g", "--memory 16M --workload kv,size=8M");
    host.await_vm("g", "runs", |vm| vm.homes.resident_pages.0 > 1000);
    host.client().kill("g").expect("the host answers");
    guest.fails(4, "request");
    host.is_empty(AT_ONCE);
    host.stop();
}

#[test]
fn corrupt_swap_slot_stops_its_guest_and_names_the_page() {
    for engine in engines() {
        let host = Host::quiet(engine, "32M", &["--ctl-max-percent", "0"]);
        let mut guest = host.guest(
            "hurt",
            "--memory 32M --workload toucher,size=28M,write=0,pause=1ms,content=random",
        );
        host.await_vm("hurt", "is there", |vm| vm.homes.resident_pages.0 > 5000);
        let files = host.swap_files();
        assert_eq!(files.len(), 1, "{files:?}");
        let mut other = host.guest(
            "other",
            "--memory 16M --workload kv,size=12M,content=random",
        );
        host.await_vm("hurt", "is swapped out", |vm| {
            vm.homes.swapped_pages.0 > 500
        });
        let file = OpenOptions::new()
            .write(true)
            .open(&files[0])
            .expect("our own file");
        let garbage = vec![0x5a; 1 << 20];
        // Written again and again, because pages keep moving between RAM and the file until the guest hits a bad one.
        let status = eventually("the guest notices", PATIENCE, || {
            for at in 0..32 {
                file.write_all_at(&garbage, at << 20).expect("write");
            }
            file.sync_all().expect("sync");
            guest.ended()
        });
        let log = guest.stderr();
        assert_eq!(status.code(), Some(4), "{status}: {log}");
        assert!(log.contains("a fault on gfn 0x"), "{log}");
        assert!(
            log.contains("cannot be served: the page is lost: swap slot"),
            "{log}"
        );
        assert!(log.contains("is corrupt: its digest is"), "{log}");
        host.forgets("hurt", AT_ONCE);
        other.send(Signal::SIGINT);
        other.reports(130);
        host.is_empty(AT_ONCE);
        host.stop();
    }
}

/// Limits the size of files that a running process may write; whether that can be done here.
fn limit_file_size(process: &Process, limit: &str) -> bool {
    let pid = process.pid().to_string();
    match Command::new("prlimit")
        .args(["--pid", &pid, &format!("--fsize={limit}:unlimited")])
        .status()
    {
        Ok(status) => status.success(),
        Err(_) => false,
    }
}

#[test]
fn swap_file_that_cannot_grow_keeps_pages_in_memory_and_loses_none() {
    // Without userfaultfd the host writes guest RAM as a file, and the limit would apply to that too.
    if !engines().contains(&"uffd") {
        eprintln!("SKIPPED: needs userfaultfd");
        return;
    }
    let host = Host::quiet(
        "uffd",
        "32M",
        &["--ctl-max-percent", "0", "--share-rate-max", "0"],
    );
    let words = "--memory 24M --workload kv,size=20M,content=random";
    let mut guests: Vec<_> = ["a", "b"]
        .map(|name| {
            let guest = host.guest(name, words);
            eventually("powered on", PATIENCE, || host.client().vm(name).ok());
            guest
        })
        .into();
    if !limit_file_size(&host.process, "4096") {
        eprintln!("SKIPPED: no prlimit here");
        return;
    }
    // Pages may have been swapped before the limit was set. After the first failure nothing more is swapped, except
    // what fits below the limit: the first page of each file.
    eventually("swap fails", PATIENCE, || {
        let log = host.log();
        log.contains("swap fails, pages stay in memory")
            .then_some(())
    });
    let swapped = || host.status().totals.homes.swapped_pages.0;
    let before = swapped();
    eventually("the host runs short", PATIENCE, || {
        (host.status().free_state == FreeState::Low).then_some(())
    });
    let after = swapped();
    assert!(after <= before + 2, "{after} pages after {before}");
    assert!(host.log().contains("no room on the disk"), "{}", host.log());
    assert!(limit_file_size(&host.process, "unlimited"));
    eventually("swap recovers", PATIENCE, || {
        host.log()
            .contains("the swap file takes pages again")
            .then_some(())
    });
    for guest in &mut guests {
        guest.send(Signal::SIGINT);
        guest.reports(130);
    }
    host.is_empty(AT_ONCE);
    host.stop();
}

#[test]
fn swap_directory_that_cannot_be_used_is_refused_at_start() {
    let dir = scratch();
    let file = dir.path().join("file");
    fs::write(&file, "").expect("write");
    let missing = dir.path().join("missing");
    for path in [&file, &missing] {
        let swap = path.to_string_lossy();
        let command = host_command(&dir, "mprotect", "64M", &["--swap-dir", &swap]);
        let mut host = Process::start(command, "host", dir.path());
        host.fails(1, &format!("`{swap}`"));
    }
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).expect("create");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).expect("our own");
    if nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED in part: nothing is unwritable for root");
        return;
    }
    let swap = closed.to_string_lossy();
    let command = host_command(&dir, "mprotect", "64M", &["--swap-dir", &swap]);
    let mut host = Process::start(command, "host", dir.path());
    host.fails(1, &format!("`{swap}`"));
}

#[test]
fn swap_directory_that_vanishes_or_is_full_refuses_the_next_guest_only() {
    let swap = scratch();
    let inside = swap.path().join("swap");
    fs::create_dir(&inside).expect("create");
    let text = inside.to_string_lossy().into_owned();
    let host = Host::quiet("mprotect", "64M", &["--swap-dir", &text]);
    let first = host.guest("first", "--memory 16M --workload kv,size=8M");
    host.await_vm("first", "runs", |vm| vm.homes.resident_pages.0 > 500);
    fs::remove_dir(&inside).expect("swap files have no names");
    let words = "--memory 16M --workload kv,size=8M";
    let mut second = host.guest("second", words);
    second.fails(1, "`second` swap");
    fs::create_dir(&inside).expect("create");
    let mut third = host.guest("third", &format!("{words} --duration 200ms"));
    third.verifies();
    let mut huge = host.guest("huge", "--memory 1024G --workload idle");
    huge.fails(1, "metadata");
    first.stop();
    host.is_empty(AT_ONCE);
    host.stop();
}

/// A host whose swap files are on a disk of `size`; `None` if this user may not mount one.
fn on_small_disk(size: &str) -> Option<Host> {
    // The disk is a tmpfs in a mount namespace of its own, which only this host sees.
    let dir = scratch();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).expect("create");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c"]);
    let mount = format!("mount -t tmpfs -o size={size} none \"$0\" && exec \"$@\"");
    command.arg(mount);
    command.arg(&disk).arg(env!("CARGO_BIN_EXE_memvisor"));
    command.args([
        "host",
        "--engine",
        "mprotect",
        "--memory",
        "64M",
        "--swap-dir",
    ]);
    command
        .arg(&disk)
        .arg("--runtime-dir")
        .arg(dir.path().join("run"));
    command.stdin(std::process::Stdio::null());
    let probe = Command::new("unshare")
        .args(["--mount", "--map-root-user", "mount", "-t", "tmpfs", "none"])
        .arg(&disk)
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: no leave to mount a small disk");
        return None;
    }
    Some(Host::run(command, dir))
}

/// The guest is stopped, so that its end takes a moment. The next guest starts in that moment.
#[test]
fn swap_of_a_vm_that_is_ending_is_free_for_the_next_guest() {
    let Some(host) = on_small_disk("24m") else {
        return;
    };
    for name in ["first", "second"] {
        let mut guest = host.guest(name, "--memory 16M --workload kv,size=8M");
        host.await_vm(name, "runs", |vm| vm.homes.resident_pages.0 > 500);
        let stopped = guest.suspend();
        host.client().kill(name).expect("the host answers");
        let words = "--memory 16M --workload kv,size=8M --duration 200ms";
        host.guest(&format!("after-{name}"), words).verifies();
        drop(stopped);
        guest.dies_by(Signal::SIGKILL);
    }
    host.is_empty(AT_ONCE);
    host.stop();
}

#[test]
fn swap_directory_on_a_full_disk_refuses_the_guest_with_the_sizes() {
    let Some(host) = on_small_disk("8m") else {
        return;
    };
    let mut fits = host.guest("fits", "--memory 4M --workload kv,size=2M --duration 1s");
    let mut large = host.guest("large", "--memory 16M --workload kv,size=8M");
    large.fails(1, "16.0 MiB");
    fits.verifies();
    host.is_empty(AT_ONCE);
    host.stop();
}

#[test]
fn budget_of_mappings_that_is_tiny_limits_sharing_and_harms_nobody() {
    for engine in engines() {
        let limited = shared_with(engine, &["--vma-budget", "8"]);
        let free = shared_with(engine, &[]);
        assert!(
            limited * 3 < free,
            "{limited} with 8 mappings, {free} without a limit"
        );
    }
}

/// Runs two guests with much in common until all pages were scanned twice; how many pages were merged.
fn shared_with(engine: &str, args: &[&str]) -> u64 {
    let host = Host::quiet(engine, "64M", &[&BUSY, args].concat());
    let words = "--memory 16M --workload kv,size=12M,write=0";
    let mut guests = ["g0", "g1"].map(|name| host.guest(name, words));
    for name in ["g0", "g1"] {
        let seen = host.await_vm(name, "has its content", |vm| {
            vm.homes.untouched_pages.0 < 1100 && vm.scan.passes > 0
        });
        let enough = seen.scan.passes + 2;
        host.await_vm(name, "is scanned", |vm| vm.scan.passes >= enough);
    }
    let merged = host.status().vms.iter().map(|vm| vm.scan.merged).sum();
    for guest in &mut guests {
        guest.send(Signal::SIGINT);
        guest.reports(130);
    }
    host.is_empty(AT_ONCE);
    host.stop();
    merged
}

/// Here the kernel refuses a mapping, because the guest has a limit of address space.
#[test]
fn guest_without_address_space_is_told_what_it_could_not_map() {
    let host = Host::quiet("mprotect", "64M", &[]);
    let mut command = Command::new("sh");
    let inner = host.guest_command("g", "--memory 1G --workload idle");
    command.args(["-c", "ulimit -v 800000 && exec \"$@\"", "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    let mut guest = Process::start(command, "g", host.path());
    guest.fails(1, "address space");
    host.is_empty(AT_ONCE);
    host.stop();
}

#[test]
fn demo_interrupted_leaves_no_process_file_or_socket() {
    let dir = scratch();
    let mut command = memvisor();
    command.args([
        "demo",
        "--guests",
        "3",
        "--memory",
        "48M",
        "--guest-memory",
        "32M",
    ]);
    command
        .args(["--duration", "30s"])
        .env("TMPDIR", dir.path());
    let logs = scratch();
    let mut demo = Process::start(command, "demo", logs.path());
    eventually("all processes of the demo run", PATIENCE, || {
        assert_eq!(demo.ended(), None, "{}", demo.stderr());
        (processes_about(dir.path()) >= 4).then_some(())
    });
    let interrupted = Instant::now();
    demo.send(Signal::SIGINT);
    assert_eq!(demo.wait(PATIENCE).code(), Some(130), "{}", demo.stderr());
    assert!(interrupted.elapsed() < Duration::from_secs(15));
    eventually("no process is left", AT_ONCE, || {
        (processes_about(dir.path()) == 0).then_some(())
    });
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn demo_killed_leaves_no_process_file_or_socket() {
    let dir = scratch();
    let mut command = memvisor();
    command.args([
        "demo",
        "--guests",
        "2",
        "--memory",
        "48M",
        "--guest-memory",
        "32M",
    ]);
    command
        .args(["--duration", "30s"])
        .env("TMPDIR", dir.path());
    let logs = scratch();
    let mut demo = Process::start(command, "demo", logs.path());
    eventually("all processes of the demo run", PATIENCE, || {
        assert_eq!(demo.ended(), None, "{}", demo.stderr());
        (processes_about(dir.path()) >= 3).then_some(())
    });
    demo.send(Signal::SIGKILL);
    demo.dies_by(Signal::SIGKILL);
    eventually("no process is left", Duration::from_secs(15), || {
        (processes_about(dir.path()) == 0).then_some(())
    });
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

/// How many processes have `dir` in their command line.
fn processes_about(dir: &Path) -> usize {
    let dir = dir.to_string_lossy();
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries
        .filter(|entry| {
            fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&*dir))
        })
        .count()
}
