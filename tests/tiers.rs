//! The host cache in front of swap files: two directories, of which the one of the swap files is slow. Every guest
//! verifies every byte that it reads.

mod rig;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use memvisor::settings::Key;
use memvisor::telemetry::VmStatus;
use memvisor::units::{Bytes, Pages};
use nix::sys::signal::Signal;
use rig::{Host, PATIENCE, Process, engines, eventually, host_command, modes, scratch};
use tempfile::TempDir;

/// How long the memory of a dead guest may stay in use.
const AT_ONCE: Duration = Duration::from_secs(5);
/// A host that has nothing but swap: no page is shared, compressed or ballooned.
const SWAPS: [&str; 8] = [
    "--ctl-max-percent",
    "0",
    "--share-rate-max",
    "0",
    "--set",
    "Mem.MemZipEnable=0",
    "--set",
    "Memvisor.SwapDelay=2ms",
];
/// A guest that wants 28 MiB, of which no page compresses.
const WORDS: &str = "--memory 40M --no-agent --workload kv,size=28M,content=random,write=30";

/// A host with a host cache of `size` in `dir`, and memory for less than one of the guests.
fn host(engine: &str, dir: &Path, size: &str) -> Host {
    let dir = dir.to_string_lossy();
    let cache = ["--swap-cache", &dir, "--swap-cache-size", size];
    Host::quiet(engine, "16M", &[&SWAPS[..], &cache].concat())
}

fn mib(mib: u64) -> Pages {
    Bytes::from_mib(mib).pages()
}

/// Waits until the VM has swapped into both, and demoted pages from one to the other.
fn uses_both(host: &Host, name: &str) -> VmStatus {
    host.await_vm(name, "uses the host cache and its swap file", |vm| {
        let swap = &vm.swap;
        let is_read = swap.in_bytes.0 > 0 && swap.cache_in_bytes.0 > 0;
        is_read && swap.slots > 0 && swap.cached_pages > Pages(0) && swap.demoted > 100
    })
}

/// Has guests verify all that they wrote and end.
fn end(guests: impl IntoIterator<Item = Process>) {
    for mut guest in guests {
        guest.send(Signal::SIGINT);
        guest.reports(130);
    }
}

#[test]
fn pages_go_to_the_fast_directory_first_and_every_byte_comes_back() {
    for (engine, inline) in modes() {
        let cache = scratch();
        let host = host(engine, cache.path(), "6M");
        let guest = host.guest("g", &format!("{WORDS} {inline}"));
        let vm = uses_both(&host, "g");
        let status = host.status();
        assert_eq!(status.swap_cache.size_pages, mib(6));
        assert!(status.swap_cache.taken_pages <= mib(6), "{status:#?}");
        assert!(vm.swap.cached_pages <= mib(6), "{vm:#?}");
        let all = Pages(vm.swap.slots + vm.swap.cached_pages.0);
        // Of about the same moment: pages move while they are counted.
        let apart = vm.homes.swapped_pages.0.abs_diff(all.0);
        assert!(apart < 512, "{vm:#?}");
        let shown = host.command("vm show g").output().expect("it runs");
        let shown = String::from_utf8(shown.stdout).expect("text");
        assert!(shown.contains("host cache"), "{shown}");
        end([guest]);
        host.is_empty(AT_ONCE);
        assert_eq!(host.status().swap_cache.taken_pages, Pages(0));
        host.stop_quietly(&[]);
    }
}

#[test]
fn size_of_the_cache_changes_while_guests_run() {
    for engine in engines() {
        let cache = scratch();
        let host = host(engine, cache.path(), "8M");
        let guest = host.guest("g", WORDS);
        uses_both(&host, "g");
        host.set("Memvisor.SwapCacheSize", "0");
        eventually("all pages have left it", PATIENCE, || {
            let (status, vm) = (host.status(), host.vm("g"));
            let is_empty = status.swap_cache.taken_pages == Pages(0);
            (is_empty && vm.swap.cached_pages == Pages(0)).then_some(())
        });
        host.set("Memvisor.SwapCacheSize", "4");
        host.await_vm("g", "uses it again", |vm| vm.swap.cached_pages > mib(2));
        assert!(host.status().swap_cache.taken_pages <= mib(4));
        end([guest]);
        host.is_empty(AT_ONCE);
        host.stop_quietly(&[]);
    }
}

#[test]
fn guests_that_swap_have_equal_parts_and_leave_them_when_they_die() {
    let engine = engines()[0];
    let cache = scratch();
    let host = host(engine, cache.path(), "8M");
    let first = host.guest("first", WORDS);
    uses_both(&host, "first");
    let mut second = host.guest("second", WORDS);
    uses_both(&host, "second");
    eventually("both have a part", PATIENCE, || {
        let part = |name| host.vm(name).swap.cached_pages;
        (part("first") > mib(2) && part("second") > mib(2)).then_some(())
    });
    second.send(Signal::SIGKILL);
    second.dies_by(Signal::SIGKILL);
    host.forgets("second", AT_ONCE);
    host.await_vm("first", "has all of it again", |vm| {
        vm.swap.cached_pages > mib(5)
    });
    end([first]);
    host.is_empty(AT_ONCE);
    host.stop_quietly(&[]);
}

#[test]
fn directory_that_vanishes_costs_no_byte_and_is_used_again_when_it_is_back() {
    let engine = engines()[0];
    let cache = scratch();
    let inside = cache.path().join("fast");
    fs::create_dir(&inside).expect("create");
    let host = host(engine, &inside, "8M");
    let first = host.guest("first", WORDS);
    uses_both(&host, "first");
    fs::remove_dir(&inside).expect("its files have no names");
    let second = host.guest("second", WORDS);
    host.await_vm("second", "swaps", |vm| vm.swap.slots > 100);
    eventually("it is said", PATIENCE, || {
        let log = host.log();
        let said = log.contains("the host cache fails, pages go to the swap file");
        (said && log.contains("host cache in")).then_some(())
    });
    assert_eq!(host.vm("second").swap.cached_pages, Pages(0));
    uses_both(&host, "first");
    fs::create_dir(&inside).expect("create");
    host.await_vm("second", "uses it", |vm| vm.swap.cached_pages > Pages(0));
    assert!(host.log().contains("the host cache takes pages again"));
    end([first, second]);
    host.is_empty(AT_ONCE);
    host.stop_quietly(&["the host cache fails"]);
}

/// A host whose host cache is on a disk of 4 MiB and thinks that it may have 64; `None` if this user may not mount one.
fn on_small_disk() -> Option<Host> {
    let dir = scratch();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).expect("create");
    let namespace = ["--mount", "--map-root-user", "sh", "-c"];
    let mount = "mount -t tmpfs -o size=4m none \"$0\"";
    let probe = Command::new("unshare")
        .args(namespace)
        .arg(mount)
        .arg(&disk)
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: no leave to mount a small disk");
        return None;
    }
    let mut command = Command::new("unshare");
    command
        .args(namespace)
        .arg(format!("{mount} && exec \"$@\""))
        .arg(&disk);
    command.arg(env!("CARGO_BIN_EXE_memvisor"));
    command
        .args(["host", "--engine", engines()[0], "--memory", "16M"])
        .args(SWAPS);
    command
        .arg("--swap-cache")
        .arg(&disk)
        .args(["--swap-cache-size", "64M"]);
    command.arg("--runtime-dir").arg(dir.path().join("run"));
    command.stdin(Stdio::null());
    Some(Host::run(command, dir))
}

#[test]
fn cache_on_a_full_disk_takes_what_fits_and_the_swap_file_the_rest() {
    let Some(host) = on_small_disk() else { return };
    let guest = host.guest("g", WORDS);
    let vm = host.await_vm("g", "has filled the disk", |vm| {
        vm.swap.cache_errors > 0 && vm.swap.cached_pages > mib(2) && vm.swap.slots > 100
    });
    assert!(vm.swap.cached_pages <= mib(4), "{vm:#?}");
    let log = host.log();
    assert!(log.contains("does not fit into"), "{log}");
    end([guest]);
    host.is_empty(AT_ONCE);
    host.stop_quietly(&["the host cache fails"]);
}

/// The error of a host that is started in `dir` and must fail.
fn refused(dir: &TempDir, code: i32, args: &[&str], word: &str) {
    let command = host_command(dir, "mprotect", "64M", args);
    Process::start(command, "host", dir.path()).fails(code, word);
}

#[test]
fn directory_that_cannot_be_used_is_refused_at_start_and_named() {
    let dir = scratch();
    let missing = dir.path().join("missing").to_string_lossy().into_owned();
    let file = dir.path().join("file");
    fs::write(&file, "").expect("write");
    let file = file.to_string_lossy();
    for path in [&*missing, &*file] {
        refused(
            &dir,
            1,
            &["--swap-cache", path],
            &format!("host cache in `{path}`"),
        );
    }
    refused(
        &dir,
        2,
        &["--swap-cache-size", "64M"],
        "--swap-cache DIR is needed",
    );
    refused(
        &dir,
        2,
        &["--swap-cache-size", "1000000"],
        "whole number of MiB",
    );
    if nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED in part: nothing is unwritable for root");
        return;
    }
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).expect("create");
    fs::set_permissions(&closed, Permissions::from_mode(0o500)).expect("our own");
    let closed = closed.to_string_lossy();
    refused(
        &dir,
        1,
        &["--swap-cache", &closed],
        &format!("host cache in `{closed}`"),
    );
}

#[test]
fn size_without_a_directory_is_refused_while_the_host_runs() {
    let host = Host::quiet("mprotect", "16M", &[]);
    let set = host.client().set_setting(Key::SwapCacheSize, "64");
    let error = set.expect_err("it has no directory").to_string();
    rig::names_all(&error, "Memvisor.SwapCacheSize `64` --swap-cache");
    host.set("Memvisor.SwapCacheSize", "0");
    host.stop();
}
