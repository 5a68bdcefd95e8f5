//! `memvisor bench` measures what it says, refuses what makes no sense, and leaves the machine as it was. No
//! test depends on how fast anything is.

mod rig;

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use memvisor::bench::Bench;
use memvisor::bench::content::Class;
use memvisor::bench::report::Entry;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use rig::{PATIENCE, Process, eventually, memvisor, scratch};

/// How long a small benchmark may take on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// KSM and swap belong to the whole machine, so only one test at a time may use them.
static MACHINE: Mutex<()> = Mutex::new(());

const KSM: &str = "/sys/kernel/mm/ksm";
const SETTINGS: [&str; 5] = [
    "run",
    "pages_to_scan",
    "sleep_millisecs",
    "smart_scan",
    "use_zero_pages",
];

/// Runs `memvisor bench`, which must end well; what it measured, and what it said on standard error.
#[track_caller]
fn measured(words: &str) -> (Vec<Entry>, String) {
    let dir = scratch();
    let mut command = memvisor();
    command
        .args(["bench", "--json"])
        .args(words.split_whitespace());
    command.env("TMPDIR", dir.path());
    let mut process = Process::start(command, "bench", dir.path());
    let status = process.wait(LONG);
    let log = process.stderr();
    assert_eq!(status.code(), Some(0), "{words}: {log}");
    let entries: Vec<Entry> = serde_json::from_str(&process.stdout()).expect("JSON");
    assert!(no_scratch(dir.path()), "{words}: a directory is left");
    (entries, log)
}

fn no_scratch(dir: &Path) -> bool {
    let mut entries = fs::read_dir(dir).expect("readable").flatten();
    !entries.any(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("memvisor-bench-")
    })
}

/// Checks what must hold for every figure, and that `bench` has these metrics.
#[track_caller]
fn check(entries: &[Entry], bench: &str, runs: usize, metrics: &[(&str, &str)]) {
    for entry in entries {
        assert_eq!(entry.bench, bench, "{entry:?}");
        assert_eq!(entry.runs, runs, "{entry:?}");
        let spread = entry.min <= entry.ours && entry.ours <= entry.max;
        assert!(spread && entry.max.is_finite(), "{entry:?}");
        assert_eq!(
            entry.peer.is_some(),
            entry.peer_value.is_some(),
            "{entry:?}"
        );
        assert!(entry.ratio.is_none_or(|ratio| ratio > 0.0), "{entry:?}");
    }
    for (case, metric) in metrics {
        let found = entries
            .iter()
            .find(|entry| entry.case.contains(case) && entry.metric == *metric);
        let found = found.unwrap_or_else(|| panic!("no {metric} of {case} in {entries:#?}"));
        assert!(found.ours > 0.0, "{found:?}");
    }
}

/// Checks that several VMs at once are compared with the same VMs one by one, where there are processors for it.
#[track_caller]
fn check_abreast(entries: &[Entry], case: &str) {
    let mut found = entries.iter().filter(|entry| entry.case.contains(case));
    let entry = found.next();
    let processors = std::thread::available_parallelism().expect("the kernel tells");
    if case.contains("workers") || processors.get() > 1 {
        let entry = entry.unwrap_or_else(|| panic!("no {case} in {entries:#?}"));
        assert_eq!(entry.peer.as_deref(), Some("one by one"), "{entry:?}");
        assert!(entry.ours > 0.0 && entry.ratio > Some(0.0), "{entry:?}");
    } else {
        assert_eq!(entry, None);
    }
}

#[test]
fn scan_looks_at_all_pages_and_compares_with_reading_them() {
    let (entries, _) = measured("scan --size 4M --rounds 2");
    let metrics = [
        ("random", "first look"),
        ("random", "look at what nobody wrote"),
    ];
    check(&entries, "scan", 2, &metrics);
    check_abreast(&entries, "VMs at once");
    assert!(
        entries
            .iter()
            .any(|entry| entry.peer.as_deref() == Some("read"))
    );
}

#[test]
fn every_benchmark_takes_every_class_of_content() {
    for class in Class::value_variants() {
        let (entries, _) = measured(&format!("all --size 1M --rounds 1 --content {class}"));
        // Benchmarks that run guests are left out: they take long and choose content of their own.
        let benches = Bench::value_variants().iter();
        for bench in benches.filter(|bench| !bench.runs_guests()) {
            let has = entries.iter().any(|entry| entry.bench == bench.to_string());
            assert!(has, "{bench} of {class}: {entries:#?}");
        }
    }
}

#[test]
fn merge_merges_all_that_is_equal() {
    let (entries, _) = measured("merge --size 4M --rounds 2");
    let metrics = [
        ("half equal", "until all is merged"),
        ("shared memory", "pages merged"),
    ];
    check(&entries, "merge", 2, &metrics);
    check_abreast(&entries, "guests and workers");
    let part = entries
        .iter()
        .find(|entry| entry.metric == "equal pages merged");
    assert_eq!(part.map(|entry| entry.min), Some(100.0), "{entries:#?}");
}

#[test]
fn compress_tells_what_halves_and_compares_with_the_c_library() {
    let (entries, log) = measured("compress --size 1M --rounds 3 --vs lz4");
    let metrics = [
        ("text", "compress"),
        ("heap", "decompress"),
        ("random", "compress"),
    ];
    check(&entries, "compress", 3, &metrics);
    let halves = |case: &str| {
        let found = entries
            .iter()
            .find(|entry| entry.case == case && entry.metric == "pages that halve");
        found.map(|entry| entry.ours)
    };
    assert_eq!(halves("text"), Some(100.0));
    assert_eq!(halves("random"), Some(0.0));
    let compared = entries
        .iter()
        .any(|entry| entry.peer.as_deref() == Some("lz4"));
    assert_eq!(compared, cfg!(feature = "c-lz4"), "{log}");
    assert_ne!(compared, log.contains("not compared with lz4"), "{log}");
}

#[test]
fn fault_measures_each_way_of_a_fault() {
    let (entries, _) = measured("fault --size 2M --rounds 2");
    let metrics = [
        ("first touch, same CPU", "p50"),
        ("refill from the cache, same CPU", "p99"),
        ("break of a shared page", "p50"),
    ];
    check(&entries, "fault", 2, &metrics);
    // Inline faults are measured only where there is a userfaultfd. There they are compared with bare signals.
    for case in ["refill from the cache, inline", "shared page, inline"] {
        let mut of_case = entries.iter().filter(|entry| entry.case.contains(case));
        let is_measured = of_case.clone().next().is_some();
        let signal = of_case.find(|entry| entry.peer.as_deref() == Some("signal"));
        assert_eq!(signal.is_some(), is_measured, "{entries:#?}");
        assert!(signal.is_none_or(|entry| entry.peer_value > Some(0.0)));
    }
}

#[test]
fn swap_measures_the_cache_and_the_file() {
    let (entries, _) = measured("swap --size 2M --rounds 2 --content mixed");
    let metrics = [
        ("to the cache, mixed", "rate"),
        ("to the swap file, mixed", "rate"),
        ("from the cache, random order, mixed", "p50"),
        ("from the cache, ascending, mixed", "rate"),
        ("from the swap file, random order, mixed", "p50"),
        ("from the swap file, ascending, mixed", "rate"),
    ];
    check(&entries, "swap", 2, &metrics);
    check_abreast(&entries, "VMs at once");
}

#[test]
fn balloon_measures_the_whole_way_and_the_host() {
    let (entries, _) = measured("balloon --size 4M --rounds 2");
    let metrics = [("agent and host", "inflate"), ("host, memory", "inflate")];
    check(&entries, "balloon", 2, &metrics);
}

#[test]
fn balloon_measures_protocols_and_says_what_was_published() {
    let (entries, _) =
        measured("balloon --protocol ranges,pfn-arrays,reporting,bitmap --memory 32M --rounds 1");
    for protocol in ["ranges", "pfn-arrays", "bitmap"] {
        let on = format!("{protocol}, memory never touched");
        let metrics = [(on.as_str(), "inflate"), (on.as_str(), "deflate")];
        check(&entries, "balloon", 1, &metrics);
    }
    check(
        &entries,
        "balloon",
        1,
        &[("reporting, memory used and freed", "inflate")],
    );
    let peer = |name: &str| {
        entries
            .iter()
            .any(|entry| entry.peer.as_deref() == Some(name))
    };
    assert!(peer("virtio") && peer("virtio-sg"), "{entries:#?}");
    // What the protocols differ in: messages for each GiB.
    let messages = |protocol: &str| {
        let on = format!("{protocol}, memory never touched");
        let found = |entry: &&Entry| entry.case == on && entry.metric == "messages";
        entries.iter().find(found).expect("measured").ours
    };
    assert!(messages("pfn-arrays") > 4.0 * messages("ranges"));
}

#[test]
fn plan_measures_hosts_of_several_sizes_and_writes_a_page() {
    let dir = scratch();
    let file = dir.path().join("page.html");
    let words = format!("plan --rounds 1 --html {}", file.display());
    let (entries, _) = measured(&words);
    check(
        &entries,
        "plan",
        1,
        &[("10 VMs", "one plan"), ("1000 VMs", "one plan")],
    );
    let page = fs::read_to_string(&file).expect("a page");
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg"));
}

#[test]
fn files_of_the_user_are_content_too() {
    let dir = scratch();
    let file = dir.path().join("content");
    fs::write(&file, "as it is in files ".repeat(4096)).expect("a file");
    let words = format!(
        "swap compress --size 1M --rounds 1 --content {}",
        file.display()
    );
    let (entries, _) = measured(&words);
    let path = file.display().to_string();
    assert!(
        entries.iter().all(|entry| entry.case.contains(&path)),
        "{entries:#?}"
    );
    for bench in ["swap", "compress"] {
        assert!(
            entries
                .iter()
                .any(|entry| entry.bench == bench && entry.ours > 0.0)
        );
    }
}

#[track_caller]
fn refused(words: &str, parts: &[&str]) {
    let dir = scratch();
    let mut command = memvisor();
    command.arg("bench").args(words.split_whitespace());
    let mut process = Process::start(command, "bench", dir.path());
    for part in parts {
        process.fails(2, part);
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_name_with_what_is_allowed() {
    refused("scan --protocol all", &["--protocol", "`balloon`"]);
    refused("balloon --protocol range", &["range", "ranges"]);
    refused("scna", &["scna", "possible values", "balloon"]);
    refused("", &["BENCH"]);
    refused("scan --vs uksm", &["uksm", "ksm, zram, lz4"]);
    refused("scan --content haep", &["`haep`", "heap", "random"]);
    refused("scan --content /no/such/path", &["`/no/such/path`"]);
    refused("scan --size 0", &["no memory at all"]);
    refused("scan --size 12Q", &["12Q"]);
    refused("scan --size 900T", &["921600.00 GiB", "allowed: up to"]);
    refused("scan --rounds 0", &["1..=1000"]);
    refused(
        "plan --html /no/such/dir/page.html",
        &["`/no/such/dir/page.html`"],
    );
}

#[test]
fn peers_of_the_kernel_are_compared_with_or_named() {
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = state();
    let (entries, log) = measured("scan merge swap fault --size 2M --rounds 1 --vs ksm,zram");
    assert_eq!(state(), before);
    for peer in ["ksm", "zram"] {
        let values: Vec<f64> = entries
            .iter()
            .filter(|entry| entry.peer.as_deref() == Some(peer))
            .filter_map(|entry| entry.peer_value)
            .collect();
        let named = log.contains(&format!("not compared with {peer}: "));
        assert_eq!(values.is_empty(), named, "{peer}: {log}");
        if geteuid().is_root() && named {
            eprintln!("SKIPPED: {peer} is not to be had here: {log}");
        }
        assert!(values.is_empty() || values.iter().any(|value| *value > 0.0));
    }
    let merged_shared = entries
        .iter()
        .find(|entry| entry.case.contains("shared memory") && entry.peer.as_deref() == Some("ksm"));
    if let Some(entry) = merged_shared {
        assert_eq!(entry.peer_value, Some(0.0), "KSM merges no shared memory");
    }
}

fn of_guests<'a>(entries: &'a [Entry], case: &str, metric: &str) -> &'a Entry {
    let found = entries
        .iter()
        .find(|entry| entry.case == case && entry.metric == metric);
    found.unwrap_or_else(|| panic!("{case}, {metric}: {entries:#?}"))
}

#[test]
fn guests_run_on_a_host_of_their_own_beside_bare_ones_where_memory_is_not_short() {
    let dir = scratch();
    let file = dir.path().join("mine.toml");
    let text = "[[guest]]\nname = \"store\"\nmemory = \"8M\"\nworkloads = [\"kv,size=4M\"]\ncount = 2\n\
                [[guest]]\nname = \"asleep\"\nmemory = \"4M\"\nworkloads = [\"idle,size=2M\"]\n";
    fs::write(&file, text).expect("a file");
    let words = format!(
        "guests --fleet {} --time 1100ms --rounds 2 --overcommit 0.5 --vs kernel",
        file.display()
    );
    let (entries, log) = measured(&words);
    assert!(entries.iter().all(|entry| entry.bench == "guests"));
    for guest in ["store-1", "store-2"] {
        let case = format!("mine at 0.5x, {guest}");
        for metric in [
            "operations",
            "an operation, longest",
            "done in the worst second",
        ] {
            let entry = of_guests(&entries, &case, metric);
            assert!(entry.ours > 0.0 && entry.runs == 2, "{entry:?} {log}");
            assert_eq!(entry.peer.as_deref(), Some("bare"));
            assert!(entry.peer_value > Some(0.0), "{entry:?}");
        }
    }
    let asleep = of_guests(&entries, "mine at 0.5x, asleep", "operations");
    assert_eq!((asleep.ours, asleep.peer_value), (0.0, Some(0.0)));
    // A guest that has nothing to do is left out of the mean.
    let mean = of_guests(
        &entries,
        "mine at 0.5x, all guests",
        "operations, geometric mean",
    );
    assert!(mean.ours > 1.0, "{mean:?}");
}

#[test]
fn guests_of_the_kernel_have_as_much_memory_and_leave_the_machine_as_it_was() {
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = state();
    let words = "guests --fleet kv-text --size 32M --time 2s --rounds 1 --overcommit 2 --vs kernel";
    let (entries, log) = measured(words);
    assert_eq!(state(), before);
    let all = "kv-text at 2x, all guests";
    let mean = of_guests(&entries, all, "operations, geometric mean");
    if log.contains("not compared with kernel: ") {
        assert_eq!(mean.peer, None);
        if geteuid().is_root() {
            eprintln!("SKIPPED: the kernel cannot be compared with here: {log}");
        }
        return;
    }
    assert_eq!(mean.peer.as_deref(), Some("kernel"), "{log}");
    let worst = of_guests(&entries, "kv-text at 2x, kv-1", "operations");
    assert!(worst.peer_value > Some(0.0), "{worst:?}");
    let memory = of_guests(&entries, all, "memory in use at most");
    let kernel = memory.peer_value.expect("it was measured");
    // The budget is 16 MiB. Each process has a MiB or two beside it.
    assert!((10.0..40.0).contains(&kernel), "{memory:?} {log}");
    assert!(
        log.contains("kv-text at 2x, round 1: budget 16.0 MiB and "),
        "{log}"
    );
}

#[test]
fn guests_are_measured_alone_where_somebody_else_has_the_kernels_means() {
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    // Takes the lock as another benchmark would. Without root or without KSM, the comparison fails for another reason.
    let taken = fs::File::open(Path::new(KSM).join("run")).ok();
    let taken = taken.map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).expect("free"));
    let before = state();
    let words = "guests --fleet kv-text,kv-mixed --size 16M --time 500ms --rounds 1 --overcommit 2 --vs kernel";
    let (entries, log) = measured(words);
    assert_eq!(state(), before);
    assert!(entries.iter().all(|entry| entry.peer.is_none()), "{log}");
    of_guests(&entries, "kv-mixed at 2x, kv-4", "operations");
    let said = log.matches("not compared with kernel: ksm: ").count();
    assert_eq!(said, 1, "once for all fleets: {log}");
    if geteuid().is_root() && taken.is_some() {
        assert!(log.contains("another benchmark uses it"), "{log}");
    }
}

#[test]
fn victims_are_compared_by_what_the_same_guests_fault() {
    let words = "victims --size 16M --time 4s --rounds 1 --overcommit 2 --profile throughput";
    let (entries, log) = measured(words);
    for (access, dear) in [("zipf at 2x", false), ("uniform at 2x", true)] {
        let figure = |metric| of_guests(&entries, access, metric);
        let faults = figure("faults");
        assert_eq!(faults.peer.as_deref(), Some("random"), "{faults:?} {log}");
        // An operation touches one page, and at 2x half of the pages are not in memory.
        for value in [Some(faults.ours), faults.peer_value] {
            let expected = if dear { 0.25..1.5 } else { 0.01..1.0 };
            assert!(
                value.is_some_and(|value| expected.contains(&value)),
                "{faults:?}"
            );
        }
        let parts = ["faults that the daemon serves", "faults that guests serve"];
        let parts: f64 = parts.iter().map(|metric| figure(metric).ours).sum();
        assert!((parts - faults.ours).abs() < 1e-9, "{entries:#?}");
        assert!(figure("operations").ours > 0.0 && figure("operations").peer_value > Some(0.0));
        // Second chance closes pages that may stay; random choice closes only pages that leave.
        let closed = figure("threads wait for closed pages");
        assert!(closed.ours > 0.0, "{closed:?}");
    }
}

#[test]
fn stalls_and_sampling_are_measured_on_real_guests() {
    let (entries, _) = measured("stalls --size 16M --time 4s --rounds 1 --overcommit 2");
    let (daemon, guest) = (
        "a fault that the daemon serves",
        "a fault that a guest serves",
    );
    let metrics = [
        (daemon, "accounting"),
        (guest, "accounting"),
        ("kv-4", "faults"),
    ];
    check(&entries, "stalls", 1, &metrics);
    let share = of_guests(&entries, "zipf at 2x, kv-1", "accounting");
    assert!(
        (0.0..50.0).contains(&share.ours) && share.ours > 0.0,
        "{share:?}"
    );

    let (entries, log) = measured("sample --size 16M --rounds 1 --quick");
    let case = "zipf without pressure, sampled each 500ms";
    let operations = of_guests(&entries, case, "operations");
    assert_eq!(operations.peer.as_deref(), Some("off"), "{log}");
    let takes = of_guests(&entries, case, "what sampling takes");
    let part = 100.0 - operations.ours / operations.peer_value.expect("measured") * 100.0;
    assert!((takes.ours - part).abs() < 1e-6, "{takes:?} {operations:?}");
    let waited = of_guests(&entries, case, "threads wait for closed pages");
    assert!(
        (0.0..50.0).contains(&waited.ours) && waited.ours > 0.0,
        "{waited:?}"
    );
}

#[test]
fn guests_without_time_for_what_is_measured_are_named() {
    let (entries, log) = measured("victims sample --size 8M --time 1s --rounds 1");
    assert_eq!(entries, [], "{log}");
    for text in [
        "not measured: zipf at 2x, round 1: ",
        "not measured: round 1: --time 1s",
    ] {
        assert!(log.contains(text), "no `{text}` in {log}");
    }
}

/// Starts a benchmark and waits until it says that it is at `step`.
#[track_caller]
fn at_step(words: &str, step: &str, dir: &Path) -> Process {
    let mut command = memvisor();
    command.arg("bench").args(words.split_whitespace());
    command.env("TMPDIR", dir);
    let mut process = Process::start(command, "bench", dir);
    eventually(step, PATIENCE, || {
        assert_eq!(process.ended(), None, "{}", process.stderr());
        process.stderr().contains(step).then_some(())
    });
    process
}

#[test]
fn interrupted_benchmark_shows_what_it_has_measured_and_says_what_is_missing() {
    for (signal, words) in [(Signal::SIGINT, "--json"), (Signal::SIGTERM, "")] {
        let dir = scratch();
        let file = dir.path().join("page.html");
        let words = format!(
            "compress plan --content text --size 4M --rounds 1000 {words} --html {}",
            file.display()
        );
        let mut process = at_step(&words, "compress: text, round 2", dir.path());
        process.send(signal);
        let (status, log) = (process.wait(LONG), process.stderr());
        assert_eq!(status.code(), Some(130), "{log}");
        let missing = "not measured: what comes from `compress: text, round ";
        assert!(log.contains(missing), "{log}");
        assert!(log.contains("` on, and all of plan"), "{log}");
        let page = fs::read_to_string(&file).expect("a page");
        assert!(page.contains("pages that halve") && page.contains("not measured: "));
        if signal == Signal::SIGTERM {
            assert!(process.stdout().contains("pages that halve"));
            continue;
        }
        let entries: Vec<Entry> = serde_json::from_str(&process.stdout()).expect("JSON");
        assert!(!entries.is_empty(), "{log}");
        for entry in entries {
            assert_eq!(entry.bench, "compress");
            assert!((1..1000).contains(&entry.runs), "{entry:?}");
        }
    }
}

/// Runs two benchmarks on content that lasts for the first; the second waits for more as long as the pipe is open,
/// which `end` gets with its path, and may keep open by returning it. Returns the exit code and the log.
fn stuck(
    end: impl FnOnce(&mut Process, fs::File, &Path) -> Option<fs::File>,
) -> (Option<i32>, String) {
    let dir = scratch();
    let path = dir.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut pipe = fs::OpenOptions::new();
    let mut pipe = pipe.read(true).write(true).open(&path).expect("open");
    pipe.write_all(&[b'x'; 4 * 4096]).expect("there is room");
    let words = format!(
        "compress swap --size 16K --rounds 1 --json --content {}",
        path.display()
    );
    let mut process = at_step(&words, "swap: ", dir.path());
    let _open = end(&mut process, pipe, &path);
    let (status, log) = (process.wait(LONG), process.stderr());
    let entries: Vec<Entry> = serde_json::from_str(&process.stdout()).expect("JSON");
    assert!(!entries.is_empty(), "{log}");
    assert!(entries.iter().all(|entry| entry.bench == "compress"));
    eventually("the directory is gone", PATIENCE, || {
        no_scratch(dir.path()).then_some(())
    });
    (status.code(), log)
}

#[test]
fn benchmark_that_hangs_shows_what_it_has_measured_at_the_second_signal() {
    let (code, log) = stuck(|process, pipe, _| {
        process.send(Signal::SIGTERM);
        process.send(Signal::SIGINT);
        Some(pipe)
    });
    assert_eq!(code, Some(130), "{log}");
    assert!(
        log.contains("not measured: what comes from `swap: "),
        "{log}"
    );
}

#[test]
fn benchmark_that_fails_shows_what_was_measured_before() {
    let (code, log) = stuck(|process, pipe, path| {
        drop(pipe);
        // A benchmark that opens the pipe only now would wait for somebody who writes: it gets one, who leaves at once.
        eventually("the benchmark has opened the pipe", PATIENCE, || {
            let mut writer = fs::OpenOptions::new();
            let writer = writer.write(true).custom_flags(libc::O_NONBLOCK);
            (writer.open(path).is_ok() || process.ended().is_some()).then_some(())
        });
        None
    });
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains("not measured: what comes from `swap: "),
        "{log}"
    );
}

/// What a benchmark may change: settings of KSM, swap devices, zram devices, read-ahead of swap, cgroups.
fn state() -> Vec<String> {
    let setting = |name: &&str| fs::read_to_string(Path::new(KSM).join(name)).ok();
    let mut state: Vec<String> = SETTINGS.iter().filter_map(setting).collect();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    // Only their names: how much of them is used changes by itself.
    state.extend(
        swaps
            .lines()
            .filter_map(|line| line.split(' ').next())
            .map(str::to_owned),
    );
    let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut disks: Vec<String> = disks
        .map(|disk| disk.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("zram"))
        .collect();
    disks.sort();
    state.extend(disks);
    state.extend(fs::read_to_string("/proc/sys/vm/page-cluster").ok());
    state.extend(cgroups(Path::new("/sys/fs/cgroup")));
    state
}

/// The cgroups that benchmarks have made below `dir`.
fn cgroups(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.extend(name.starts_with("memvisor-bench-").then_some(name));
            found.extend(cgroups(&entry.path()));
        }
    }
    found
}

/// Starts a long benchmark, ends it by `signal` once it has changed the machine as far as `changed` wants, and waits
/// until the machine is as it was.
fn restores_after(signal: Signal, words: &str, changed: impl Fn(&[String]) -> bool) {
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = state();
    let dir = scratch();
    let mut command = memvisor();
    command.args(words.split(' '));
    command.env("TMPDIR", dir.path());
    let mut process = Process::start(command, "bench", dir.path());
    eventually("the benchmark has changed the machine", PATIENCE, || {
        assert_eq!(process.ended(), None, "{}", process.stderr());
        let now = state();
        (now != before && changed(&now)).then_some(())
    });
    // The change may be half done by now. That must be undone as well.
    process.send(signal);
    match signal {
        Signal::SIGKILL => process.dies_by(signal),
        _ => assert_eq!(
            process.wait(PATIENCE).code(),
            Some(130),
            "{}",
            process.stderr()
        ),
    }
    eventually("the machine is as it was", PATIENCE, || {
        (state() == before).then_some(())
    });
    eventually("the directory is gone", PATIENCE, || {
        no_scratch(dir.path()).then_some(())
    });
}

#[test]
fn machine_is_restored_when_the_benchmark_is_killed_or_interrupted() {
    if !geteuid().is_root() || !Path::new(KSM).exists() {
        eprintln!("SKIPPED: KSM and zram cannot be changed here: not root, or not in this kernel");
        return;
    }
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
        let words = "bench scan --vs ksm,zram --size 16M --rounds 1000";
        restores_after(signal, words, |_| true);
    }
}

#[test]
fn machine_is_restored_when_guests_on_the_kernel_are_killed_or_interrupted() {
    if !geteuid().is_root() || !Path::new(KSM).exists() {
        eprintln!("SKIPPED: KSM and zram cannot be changed here: not root, or not in this kernel");
        return;
    }
    let words = "bench guests --vs kernel --fleet kv-text --size 32M --time 1s --rounds 1000 --overcommit 2";
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        // The cgroup is made last, just before guests run in it, so by then everything has been changed.
        restores_after(signal, words, |state| {
            state.iter().any(|one| one.starts_with("memvisor-bench-"))
        });
    }
}

#[test]
fn guests_that_make_no_sense_are_refused_by_name() {
    refused(
        "guests --fleet kv",
        &["`kv`", "kv-text, kv-mixed", "or a file"],
    );
    refused("guests --overcommit 0", &["`0`", "0.1 to 100"]);
    refused("guests --overcommit 2,many", &["`many`"]);
    refused("guests --time 0s", &["`0s`"]);
    refused("guests --profile esxi", &["esxi"]);
    refused("guests --set Mem.IdelTax=1", &["Mem.IdelTax"]);
    refused("guests --size 900T", &["kv-text", "allowed: up to"]);
    refused("scan --fleet kv-text", &["--fleet", "`guests`"]);
    refused(
        "scan --vs kernel",
        &["kernel", "`guests`", "ksm, zram, lz4"],
    );
    refused("scan --no-inline", &["--no-inline", "`guests`"]);
    refused("victims --fleet kv-text", &["--fleet", "`guests` alone"]);
    refused(
        "sample --overcommit 2",
        &["`guests`, `victims`, `stalls` alone"],
    );
    refused("stalls --size 900T", &["stalls", "allowed: up to"]);
    let dir = scratch();
    let file = dir.path().join("fleet.toml");
    fs::write(&file, "[[guest]]\nname = \"a\"\nmemroy = \"8M\"\n").expect("a file");
    let words = format!("guests --fleet {}", file.display());
    refused(&words, &["fleet.toml:3: guest.1.memroy: ", "`memory`"]);
}
