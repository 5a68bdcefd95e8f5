//! What a guest, or another process of the same user, cannot do to other guests: the promises of
//! docs/security.md.

mod rig;

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use memvisor::settings::{Key, VmPatch};
use memvisor::sys::readers_cannot_write;
use memvisor::telemetry::VmStatus;
use memvisor_wire::memory::{Fault, Message, Op};
use memvisor_wire::privacy::INSPECTABLE;
use memvisor_wire::{Gfn, SeqPacket, wait_readable};
use nix::unistd::geteuid;
use rig::raw::{Powered, RawGuest, hello};
use rig::sys::{Faults, unanswered};
use rig::{Host, Process, engines, eventually, host_command, scratch};

/// How long the memory of a dead guest may stay in use.
const AT_ONCE: Duration = Duration::from_secs(5);
/// Pages of a scripted guest.
const PAGES: u32 = 64;
/// The uid of `nobody`, which every system has. When root runs the tests, the tested processes run as this user.
const NOBODY: u32 = 65534;

/// Not a test: the process that stands for a scripted guest, see [`rig::raw`].
#[test]
#[ignore = "started by other tests"]
fn connector() {
    rig::raw::connector();
}

/// Whether this machine lets the user of the test mount a tmpfs of its own.
fn can_mount() -> bool {
    let mounts = readers_cannot_write();
    assert!(mounts.is_ok() || !geteuid().is_root(), "{mounts:?}");
    if let Err(error) = &mounts {
        eprintln!("SKIPPED: no mount of this user's own ({error})");
    }
    mounts.is_ok()
}

/// Tries all that a hostile shim would try to get write access through a descriptor that it may only read.
#[track_caller]
fn cannot_be_written(what: &str, fd: BorrowedFd<'_>) {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let again = File::options().write(true).open(&path);
    let error = again.expect_err("it was opened again, to write");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{what}: {error}");
    let file = File::from(fd.try_clone_to_owned().expect("a descriptor"));
    assert!(file.set_len(0).is_err(), "{what} is cut short");
    assert!(file.write_at(&[1], 0).is_err(), "{what} is written");
    let open_to_all = fs::Permissions::from_mode(0o666);
    assert!(
        file.set_permissions(open_to_all).is_err(),
        "{what} has another mode"
    );
    let mapped = MmapOptions::new().len(4096).map_raw(&file);
    assert!(mapped.is_err(), "{what} is mapped to be written");
    // After all that it must still be readable.
    assert!(File::open(&path).is_ok(), "{what}");
}

#[test]
fn what_guests_may_read_they_cannot_write_by_opening_it_again() {
    if !can_mount() {
        return;
    }
    for engine in engines() {
        let host = Host::quiet(engine, "32M", &[]);
        let mut asks = hello("g", PAGES);
        asks.inline = engine == "uffd";
        let welcomed = RawGuest::connect(&host).hello(asks);
        cannot_be_written("the pool", welcomed.pool.as_fd());
        if engine == "uffd" {
            cannot_be_written("the arena", welcomed.inline[1].as_fd());
        }
        let guest = welcomed.power_on();
        // A VM that moves to another domain gets another pool.
        let patch = VmPatch::from_words(["salt=other"]).expect("a setting");
        host.client().set_vm("g", &patch).expect("it moves");
        let pool = next_pool(&guest);
        cannot_be_written("the pool of its next domain", pool.as_fd());
        drop(guest);
        host.is_empty(AT_ONCE);
        host.stop();
    }
}

fn next_pool(guest: &Powered) -> OwnedFd {
    loop {
        if let (Message::Pool { .. }, mut fds) = guest.guest.receive_with_fds() {
            return fds.pop().expect("the pool");
        }
    }
}

/// Writes through the kernel (`/proc/self/mem`), which returns an error where a store would raise a signal.
fn poke(mapping: &MmapRaw, page: u32) -> std::io::Result<()> {
    let memory = File::options().write(true).open("/proc/self/mem")?;
    let address = mapping.as_ptr() as u64 + u64::from(page) * 4096;
    memory.write_all_at(&[1], address)
}

/// The test keeps the files of a guest mapped, like a child process that outlives the guest that forked it.
#[test]
fn what_a_guest_leaves_behind_gets_no_memory_of_an_ended_vm() {
    for engine in engines() {
        let host = Host::quiet(engine, "32M", &[]);
        let mut asks = hello("g", PAGES);
        asks.inline = engine == "uffd";
        let welcomed = RawGuest::connect(&host).hello(asks);
        let inline: Vec<File> = (welcomed.inline.iter())
            .map(|fd| fd.try_clone().expect("a descriptor").into())
            .collect();
        let pool = File::from(welcomed.pool.try_clone().expect("a descriptor"));
        let mut guest = welcomed.power_on();
        let ram = guest.ram.try_clone().expect("a descriptor");
        let mapping = MmapOptions::new()
            .len(PAGES as usize * 4096)
            .map_raw(&ram)
            .expect("a mapping");
        host.client().kill("g").expect("it runs");
        guest.guest.is_killed();
        host.is_empty(AT_ONCE);
        for page in 0..PAGES {
            assert!(poke(&mapping, page).is_err(), "page {page} is written");
        }
        assert!(ram.set_len(4096).is_err(), "it is longer again");
        for file in inline.iter().chain([&ram, &pool]) {
            eventually("its memory is gone", AT_ONCE, || {
                let left = file.metadata().expect("fstat");
                ((left.len(), left.blocks()) == (0, 0)).then_some(())
            });
        }
        host.stop();
    }
}

/// Has a thread receive from `socket` into a page whose fault nobody answers. Anybody else who receives there waits in
/// the kernel for as long.
fn receives_for_ever(socket: &SeqPacket) -> Option<(Faults, JoinHandle<()>)> {
    let (faults, mut page) = unanswered()
        .inspect_err(|error| eprintln!("SKIPPED: no faults of the kernel for this user ({error})"))
        .ok()?;
    let socket = SeqPacket::from(socket.as_fd().try_clone_to_owned().expect("a descriptor"));
    let thread = thread::spawn(move || drop(socket.recv(&mut page)));
    Some((faults, thread))
}

#[test]
fn guest_cannot_hold_the_hosts_end_of_a_fault_channel() {
    for engine in engines() {
        let host = Host::quiet(engine, "32M", &[]);
        let mut guest = Powered::on(&host, "g", PAGES);
        // The guest has no descriptor of the host's end, only this one of its own end.
        let Some((faults, thread)) = receives_for_ever(&guest.channels[0]) else {
            return;
        };
        eventually("an answer is received", AT_ONCE, || {
            guest.fault(0, Fault::History(Gfn(0)));
            let [held] = wait_readable([faults.as_fd()], Some(Duration::ZERO)).expect("poll");
            held.then_some(())
        });
        guest.fault(0, Fault::History(Gfn(0)));
        host.client().kill("g").expect("it runs");
        guest.guest.is_killed();
        host.forgets("g", AT_ONCE);
        drop(faults);
        thread.join().expect("it ends");
        host.is_empty(AT_ONCE);
        host.stop();
    }
}

/// A guest with shared pages that keeps its RAM file locked. It has written a shared page, which the host's thread must
/// copy into that file, so the thread waits in the kernel. `None` where no guest can do that.
fn with_host_waiting(host: &mut Host) -> Option<Powered> {
    let guest = Powered::on(host, "g", PAGES);
    (0..8).for_each(|page| guest.write_page(page, 1));
    host.await_vm("g", "its pages are shared", |vm| {
        let socket = guest.guest.socket.as_fd();
        while wait_readable([socket], Some(Duration::ZERO)).expect("poll") == [true] {
            let command = guest.command();
            guest.ack(command.seq, command.runs.len() as u32, 0);
        }
        vm.homes.shared_pages.0 == 8
    });
    guest.guest.lock(&guest.ram).then(|| {
        guest.fault(0, Fault::Write(Gfn(3)));
        let tasks = format!("/proc/{}/task", host.process.pid());
        eventually("a thread of the host waits in the kernel", AT_ONCE, || {
            let mut tasks = fs::read_dir(&tasks).expect("it runs").flatten();
            tasks.find_map(|task| {
                let stat = fs::read_to_string(task.path().join("stat")).ok()?;
                stat.contains("(memory-conn) D").then_some(())
            })
        });
        guest
    })
}

#[test]
fn guest_that_keeps_the_hosts_thread_waiting_in_the_kernel_is_killed() {
    let mut host = Host::quiet("mprotect", "32M", &["--share-scan-time", "120ms"]);
    let Some(mut guest) = with_host_waiting(&mut host) else {
        return;
    };
    host.client().kill("g").expect("it runs");
    guest.guest.is_killed();
    host.forgets("g", AT_ONCE);
    // The end of the host must end such a guest too.
    let Some(mut guest) = with_host_waiting(&mut host) else {
        return;
    };
    let log = host.end();
    guest.guest.is_killed();
    assert!(!log.contains("still ending"), "{log}");
}

/// The shim never does that, but nothing keeps a guest from resizing its RAM file.
#[test]
fn guest_that_cuts_its_files_short_harms_itself_alone() {
    let host = Host::quiet("mprotect", "32M", &["--share-rate-max", "0"]);
    let guest = Powered::on(&host, "g", PAGES);
    (1..9).for_each(|page: u8| guest.write_page(page.into(), page));
    guest.ram.set_len(0).expect("nothing forbids it");
    for (name, value) in [("Mem.ShareScanTime", "1s"), ("Mem.ShareRateMax", "1000")] {
        let key = Key::find(name).expect("a setting");
        host.client().set_setting(key, value).expect("it scans");
    }
    // The scanner has read the pages without harm. They are zero now, so it wants to freeze them and take them.
    let command = guest.command();
    assert_eq!(command.op, Op::Freeze, "{command:?}");
    drop(guest);
    host.is_empty(AT_ONCE);
    host.stop();
}

/// A guest gets its swap file for reading only, but any process of the host's user can open the file again for writing.
#[test]
fn guest_that_writes_its_swap_file_harms_itself_alone() {
    if !engines().contains(&"uffd") {
        return;
    }
    let host = Host::quiet("uffd", "48M", &[]);
    let start = |name: &str| {
        let args = "--no-agent --memory 16M --limit 6M --workload kv,size=10M,content=random";
        let guest = host.guest(name, args);
        let reads = |vm: &VmStatus| vm.faults.refill_swap > 200 && vm.stalls.refill_swap_us > 0;
        host.await_vm(name, "reads its swap file", reads);
        guest
    };
    let (good, mut liar) = (start("good"), start("liar"));
    let dir = host.path().join("run").display().to_string();
    let open = fs::read_dir(format!("/proc/{}/fd", liar.pid())).expect("it lives");
    let swap = open.flatten().map(|entry| entry.path()).find(|path| {
        let target = fs::read_link(path).expect("it is open");
        target.display().to_string().starts_with(&dir)
            && fs::metadata(path).is_ok_and(|file| file.is_file())
    });
    let swap = swap.expect("it has its swap file");
    let file = File::options().write(true).open(&swap);
    let file = file.expect("a file of the same user");
    let garbage = vec![0xa5; 1 << 20];
    for at in 0..16 {
        let written = file.write_all_at(&garbage, at << 20);
        written.expect("room on the disk");
    }
    liar.fails(4, "swap slot");
    host.forgets("liar", AT_ONCE);
    let before = host.vm("good").faults.refill_swap;
    host.await_vm("good", "goes on", |vm| vm.faults.refill_swap > before + 100);
    good.stop();
    host.is_empty(AT_ONCE);
    host.stop();
}

/// The same command run by an ordinary user, who becomes the owner of `dir`.
fn as_ordinary_user(inner: &Command, dir: &Path) -> Command {
    let mut command = if geteuid().is_root() {
        let (exe, id) = (dir.join("memvisor"), Some(NOBODY));
        if !exe.exists() {
            chown(dir, id, id).expect("root may");
            fs::copy(inner.get_program(), &exe).expect("a copy that others may execute");
        }
        let mut command = Command::new(exe);
        command.uid(NOBODY).gid(NOBODY);
        command
    } else {
        Command::new(inner.get_program())
    };
    command.args(inner.get_args()).env("TMPDIR", dir);
    command.env_remove(INSPECTABLE);
    command
}

/// Whether another process of the same user can see the open files and the memory of `process`.
fn is_open(process: &Process) -> bool {
    let opens = |words: [&str; 2]| {
        let mut command = Command::new(words[0]);
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.arg(format!("/proc/{}/{}", process.pid(), words[1]));
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.expect("such a command").success()
    };
    let opened = [["ls", "fd/"], ["cat", "environ"], ["cat", "maps"]].map(opens);
    assert!(opened.iter().all(|open| *open == opened[0]), "{opened:?}");
    opened[0]
}

/// Starts a host and a guest with this value of [`INSPECTABLE`]. Whether each of them is open to others, and what the
/// host logged as `tracks_writes`.
fn opened(engine: &str, inspectable: &str) -> ([bool; 2], String) {
    let dir = scratch();
    let mut command = as_ordinary_user(&host_command(&dir, engine, "32M", &[]), dir.path());
    command.env(INSPECTABLE, inspectable);
    let host = Host::run(command, dir);
    let inner = host.guest_command("g", "--memory 8M --workload kv,size=4M");
    let mut command = as_ordinary_user(&inner, host.path());
    command.env(INSPECTABLE, inspectable);
    let guest = Process::start(command, "g", host.path());
    host.await_vm("g", "runs", |vm| vm.homes.resident_pages.0 > 100);
    let log = host.log();
    let tracks = log
        .split("tracks_writes=")
        .nth(1)
        .expect("a line of the log");
    let tracks = tracks.split_whitespace().next().expect("a word").to_owned();
    // The host has not sampled so far. Accessed pages are counted only while it does.
    let period = Key::find("Mem.SamplePeriod").expect("a setting");
    host.client().set_setting(period, "1").expect("a period");
    host.await_vm("g", "accessed pages are counted", |vm| {
        vm.activity.referenced_pages.is_some()
    });
    let open = [is_open(&host.process), is_open(&guest)];
    guest.stop();
    host.stop();
    (open, tracks)
}

#[test]
fn host_and_guests_are_closed_to_others_of_their_user_and_lose_nothing_by_it() {
    for engine in engines() {
        let (open, tracked) = opened(engine, "1");
        assert_eq!(
            open,
            [true, true],
            "{engine}: nothing can be seen here anyway"
        );
        let (open, tracks) = opened(engine, "");
        assert_eq!(open, [false, false], "{engine}: host, guest");
        assert_eq!(
            tracks, tracked,
            "{engine}: written pages are known as before"
        );
    }
}

#[test]
fn memory_of_guests_stays_out_of_core_dumps() {
    let host = Host::quiet("mprotect", "32M", &[]);
    let guest = host.guest("g", "--memory 8M --workload idle,size=4M");
    host.await_vm("g", "runs", |vm| vm.homes.resident_pages.0 > 100);
    for pid in [host.process.pid(), guest.pid()] {
        let filter = fs::read_to_string(format!("/proc/{pid}/coredump_filter"));
        let filter = filter.expect("the process runs");
        // Bit 0 stands for private anonymous memory (core(5)).
        assert_eq!(u32::from_str_radix(filter.trim(), 16), Ok(1), "{pid}");
        // So mappings of guest memory stay out of the dump if they are shared mappings of a file.
        let smaps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process runs");
        let files = smaps.lines().filter(|line| line.contains("memvisor-ram:"));
        assert!(files.clone().count() > 0, "{smaps}");
        for line in files {
            let mode = line.split_ascii_whitespace().nth(1).expect("a mode");
            assert!(mode.ends_with('s'), "{line}");
        }
    }
    guest.stop();
    host.stop();
}

#[test]
fn table_says_whether_guests_are_isolated() {
    let mut host = Host::quiet("mprotect", "32M", &[]);
    let row = |host: &mut Host| {
        let table = host.process.stdout();
        let row = table
            .lines()
            .find(|line| line.starts_with("guests are isolated"));
        row.expect("a row").to_owned()
    };
    let inspectable = row(&mut host);
    assert!(
        inspectable.contains("no: MEMVISOR_INSPECTABLE is set"),
        "{inspectable}"
    );
    host.stop();
    let dir = scratch();
    let mut command = host_command(&dir, "mprotect", "32M", &[]);
    command.env_remove(INSPECTABLE);
    let mut host = Host::run(command, dir);
    let closed = row(&mut host);
    let is_isolated = closed.contains("  yes");
    assert_eq!(is_isolated, readers_cannot_write().is_ok(), "{closed}");
    host.stop();
}
