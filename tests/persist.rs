//! Swap files that stay while their VM is off (`sched.swap.persist`).

mod rig;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use rig::{Host, Process, modes, scratch};

/// How long the memory of a dead guest may stay in use.
const AT_ONCE: Duration = Duration::from_secs(5);
/// A guest that wants 28 MiB, of which no page compresses.
const WORDS: &str = "--memory 40M --no-agent --workload kv,size=28M,content=random,write=30";

/// A host that has nothing but swap, whose files are in `dir`, and memory for less than the guest wants.
fn host(engine: &str, dir: &Path) -> Host {
    let dir = dir.to_string_lossy();
    let args = "--ctl-max-percent 0 --share-rate-max 0 --set Mem.MemZipEnable=0 --swap-dir";
    let args: Vec<&str> = args.split(' ').chain([&*dir]).collect();
    Host::quiet(engine, "16M", &args)
}

/// A guest that has swapped a good deal.
fn swapping(host: &Host, inline: &str) -> Process {
    let guest = host.guest("g", &format!("{WORDS} {inline}"));
    host.await_vm("g", "has swapped", |vm| {
        vm.swap.in_bytes.0 > 0 && vm.swap.slots > 1000
    });
    guest
}

/// Has the guest verify all that it wrote, and end.
fn end(host: &Host, mut guest: Process) {
    guest.send(Signal::SIGINT);
    guest.reports(130);
    host.is_empty(AT_ONCE);
}

#[test]
fn swap_file_stays_while_its_vm_is_off_without_a_byte_of_it() {
    for (engine, inline) in modes() {
        let dir = scratch();
        let path = dir.path().join("g.vswp");
        let first = host(engine, dir.path());
        let guest = swapping(&first, inline);
        first.set_vm("g", "sched.swap.persist=TRUE");
        assert!(!path.exists(), "no name while the VM runs");
        end(&first, guest);
        let kept = fs::metadata(&path).expect("it was kept");
        assert_eq!(kept.len(), 40 << 20);
        assert!(kept.blocks() * 512 >= kept.len(), "its space is kept");
        assert_eq!(kept.mode() & 0o7777, 0o600);
        let bytes = fs::read(&path).expect("readable");
        assert!(bytes.iter().all(|byte| *byte == 0), "memory of a guest");
        first.stop_quietly(&[]);

        // By another daemon, twice, the second time by a VM that keeps nothing.
        let second = host(engine, dir.path());
        for persists in ["on", "off"] {
            let guest = swapping(&second, inline);
            assert!(!path.exists(), "the file that was kept is in use");
            second.set_vm("g", &format!("swap-persist={persists}"));
            end(&second, guest);
            assert_eq!(path.exists(), persists == "on");
        }

        // The name is somebody else's.
        fs::write(&path, "mine").expect("writable");
        let guest = swapping(&second, inline);
        second.set_vm("g", "swap-persist=on");
        end(&second, guest);
        assert_eq!(fs::read(&path).expect("it is there"), b"mine");
        second.stop_quietly(&["no swap file that was kept", "its disk space is free"]);
    }
}
