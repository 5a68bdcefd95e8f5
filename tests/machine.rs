//! A host that knows where it runs: what it says of the machine, and a budget that follows the limit of a real cgroup.

mod rig;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use memvisor::machine::{Group, Version};
use memvisor::telemetry::HostStatus;
use memvisor::units::{Bytes, Pages};
use rig::{Host, PATIENCE, engines, eventually, host_command, scratch};

/// A cgroup whose memory is limited, until it is dropped.
struct Limited {
    dir: PathBuf,
    version: Version,
}

impl Limited {
    /// Makes one below or beside the group of this process; the error says where that failed.
    fn make() -> Result<Self, String> {
        let groups = Group::own(Path::new("/"));
        let mut failed = "no hierarchy of cgroups limits memory".to_owned();
        for group in groups {
            // A group of version 2 that has processes has no children with limits, so one above it may have to do.
            for above in group.up() {
                let dir = above.join(format!("memvisor-test-{}", std::process::id()));
                let made = fs::create_dir(&dir).map(|()| Self {
                    dir: dir.clone(),
                    version: group.version,
                });
                let limited = made.and_then(|made| made.limit(4096).map(|()| made));
                match limited {
                    Ok(made) => return Ok(made),
                    Err(error) => failed = format!("{}: {error}", dir.display()),
                }
            }
        }
        Err(failed)
    }

    fn limit(&self, mib: u64) -> io::Result<()> {
        let file = self.dir.join(self.version.limit());
        fs::write(file, (mib << 20).to_string())
    }

    /// The same command, run in this group.
    fn enter(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]);
        shell.arg(self.dir.join("cgroup.procs"));
        shell.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // The last process may not be gone yet. One that stays would be a failure of the test before.
        for _ in 0..100 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::yield_now();
        }
        eprintln!("{} is left behind", self.dir.display());
    }
}

const fn mib(mib: u64) -> Pages {
    Pages(mib * 256)
}

/// A group of `limit` leaves a budget of so much: what an eighth and 64 MiB more make of it.
fn awaits(host: &Host, limit: &Limited, mibs: u64, budget: Pages) -> HostStatus {
    // The kernel refuses a limit that it cannot bring the group to at once.
    eventually("the limit is set", PATIENCE, || limit.limit(mibs).ok());
    let what = format!("the budget is {} and held", budget.bytes());
    eventually(&what, PATIENCE, || {
        let status = host.status();
        let is_held = status.budget_pages == budget && status.used_pages <= budget;
        is_held.then_some(status)
    })
}

#[test]
fn budget_follows_the_limit_of_a_real_cgroup() {
    let limit = match Limited::make() {
        Ok(limit) => limit,
        Err(why) => {
            assert!(
                std::env::var_os("MEMVISOR_REQUIRE_CGROUP").is_none(),
                "no cgroup can be made: {why}"
            );
            eprintln!("SKIPPED: no cgroup can be made here, so nothing was tested: {why}");
            return;
        }
    };
    for engine in engines() {
        limit.limit(352).expect("an empty group");
        let dir = scratch();
        let args = ["--set", "Mem.ShareRateMax=0"];
        let command = limit.enter(&host_command(&dir, engine, "auto", &args));
        let host = Host::run(command, dir);
        let status = awaits(&host, &limit, 352, mib(256));
        assert_eq!(status.machine.limit_bytes, Some(Bytes::from_mib(352)));
        let group = status.machine.cgroup.expect("it is in one");
        assert!(
            limit.dir.ends_with(group.trim_start_matches('/'))
                || group == limit.dir.to_string_lossy()
        );
        let words = "--memory 160M --no-agent \
                     --workload toucher,size=100M,active=20M,rate=40M,content=random";
        let guest = host.guest("g", words);
        host.await_vm("g", "it is filled", |vm| {
            vm.configured_pages.saturating_sub(vm.homes.untouched_pages) >= mib(100)
        });
        awaits(&host, &limit, 172, mib(96));
        awaits(&host, &limit, 136, mib(64));
        // What is promised stays, and is said.
        host.set_vm("g", "reservation=40M");
        limit.limit(100).expect("that much is not used");
        eventually("it says what cannot be met", PATIENCE, || {
            let log = host.log();
            log.contains("the budget cannot follow").then_some(())
        });
        let status = host.status();
        assert!(status.budget_pages >= mib(40), "{status:#?}");
        // Metadata that is given back at the same time may leave a little.
        assert!(status.unreserved_pages <= mib(1), "{status:#?}");
        host.set_vm("g", "reservation=0");
        awaits(&host, &limit, 100, mib(32));
        awaits(&host, &limit, 352, mib(256));
        let vm = host.vm("g");
        eprintln!(
            "{engine}: {} of swapped memory; the daemon takes {:?}, the guest's process {:?}",
            vm.homes.swapped_pages.bytes(),
            status.machine.daemon_bytes,
            vm.process_bytes,
        );
        // It reads all that it wrote.
        guest.stop();
        host.stop_quietly(&["the budget cannot follow", "guest threads wait for memory"]);
    }
}

#[test]
fn budget_is_a_part_of_the_machine_or_of_what_its_cgroup_allows() {
    let host = Host::start(engines()[0], "1%", &[]);
    let status = host.status();
    let machine = &status.machine;
    let memory = machine.limit_bytes.or(machine.memory_bytes);
    let memory = memory.expect("the kernel tells").0;
    let whole = memory / 100 / 4096;
    assert_eq!(status.budget_pages, Pages(whole));
    assert_eq!(machine.budget, "1%");
    let guest = host.guest("g", "--memory 16M --workload idle,size=4M");
    let own = eventually("its process is looked at", PATIENCE, || {
        host.vm("g").process_bytes
    });
    // More than a stack, and less than its RAM would make it.
    assert!((64 << 10..16 << 20).contains(&own.0), "{own}");
    let status = host.status();
    assert!(status.machine.guests_bytes.0 >= 64 << 10, "{status:#?}");
    assert!(
        status
            .machine
            .daemon_bytes
            .is_some_and(|own| own.0 > 64 << 10)
    );
    assert_eq!(
        status.machine.pressure.is_some(),
        Path::new("/proc/pressure/memory").exists()
            && fs::read_to_string("/proc/pressure/memory").is_ok()
    );
    guest.stop();
    host.stop_quietly(&[]);
}
