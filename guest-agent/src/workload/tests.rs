//! Each workload on a real kernel over plain memory: it reports nothing when nothing is wrong, and it
//! finds a single wrong byte.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memvisor_wire::{Gfn, PAGE_SIZE};
use tempfile::TempDir;

use super::*;
use crate::kernel::ram::VecMemory;
use crate::kernel::{Kernel, KernelOptions, KernelStats};
use crate::shim::Memory;

/// The longest time that a test waits for an event that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether everything that was read was right, and everything could be read in the end.
fn is_clean(report: &Report) -> bool {
    let mut workloads = report.workloads.iter();
    workloads.all(|workload| workload.mismatches == 0 && workload.pages_unverified == 0)
}

struct Guest {
    memory: Arc<VecMemory>,
    kernel: Arc<Kernel>,
    directory: TempDir,
}

fn guest(ram: u32, swap: u32) -> Guest {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let memory = Arc::new(VecMemory::new(ram));
    let options = KernelOptions {
        swap_pages: swap,
        disk_directory: directory.path().to_owned(),
    };
    let kernel = Kernel::new(Arc::clone(&memory) as Arc<dyn Memory>, &options);
    Guest {
        memory,
        kernel: kernel.expect("a kernel boots"),
        directory,
    }
}

impl Guest {
    /// Starts workloads; `DIR` in them is a directory with two files.
    fn start(&self, specs: &[&str]) -> Result<Runner, StartError> {
        let directory = self.directory.path().join("files");
        std::fs::create_dir_all(&directory).expect("a directory");
        for (name, len) in [("small", 5000), ("large", 200_000)] {
            let content: Vec<u8> = (0..len).map(|at: u32| (at / 7) as u8).collect();
            std::fs::write(directory.join(name), content).expect("a file");
        }
        let sequences: Vec<Sequence> = specs
            .iter()
            .map(|text| text.replace("DIR", directory.to_str().expect("plain text")))
            .map(|text| {
                text.parse()
                    .unwrap_or_else(|error| panic!("{text}: {error}"))
            })
            .collect();
        Runner::start(&self.kernel, &sequences, 42)
    }
}

/// Looks at reports until one satisfies a condition.
fn wait_for(runner: &Runner, what: &str, wanted: impl Fn(&WorkloadReport) -> bool) {
    let begin = Instant::now();
    while !runner.snapshot().workloads.iter().all(&wanted) {
        assert!(
            begin.elapsed() < PATIENCE,
            "{what}: {:?}",
            runner.snapshot()
        );
        std::thread::yield_now();
    }
}

/// Looks at the report of the workload `number` until it satisfies a condition.
fn wait_for_one(runner: &Runner, number: usize, wanted: impl Fn(&WorkloadReport) -> bool) {
    let begin = Instant::now();
    while !wanted(&runner.snapshot().workloads[number]) {
        assert!(begin.elapsed() < PATIENCE, "{:?}", runner.snapshot());
        std::thread::yield_now();
    }
}

const ALL: &[&str] = &[
    "stream,size=200K,threads=2",
    "toucher,size=200K,active=100K,then=200K@1ms,write=30",
    "kv,size=200K,threads=3,write=40",
    "kv,size=100K,value=4096,content=random,zipf=0",
    "kv,size=100K,value=8,write=90",
    "dbench,size=1M,threads=2,write=40,file=16K",
    "compile,size=200K,threads=2,inputs=100K",
    "boot,size=400K,rate=800K",
    "files:DIR,threads=2",
    "image:DIR/large,rate=1G",
    "churn,size=200K,threads=2",
    "idle,size=100K",
];

/// The lines behind the head of a table of docs/settings.md.
fn table(head: &str) -> Vec<&'static str> {
    let document = include_str!("../../../docs/settings.md");
    let (_, rest) = document.split_once(head).expect("the table is there");
    rest.lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect()
}

#[test]
fn settings_document_has_every_kind_and_every_parameter() {
    let row = |kind: &&Kind| {
        let parameters = kind.parameters.iter().map(|known| format!("`{known}`"));
        let parameters = kind::list(parameters);
        format!("| `{}` | {} | {parameters} |", kind.usage, kind.does)
    };
    let kinds: Vec<String> = KINDS.iter().map(row).collect();
    let row = |of: &&Parameter| format!("| `{}` | {} | {} |", of.name, of.allowed, of.effect);
    let parameters: Vec<String> = kind::parameters().iter().map(row).collect();
    for (head, expected) in [
        ("| kind | what it does |", kinds),
        ("| parameter | allowed |", parameters),
    ] {
        let text = expected.join("\n");
        let is_there = table(head) == expected;
        let what = "of docs/settings.md should have these rows, in this order";
        assert!(is_there, "the table `{head}` {what}:\n{text}");
    }
}

#[test]
fn workloads_all_at_once_in_little_ram_find_no_mismatch() {
    for kind in KINDS {
        let is_tested = ALL.iter().any(|spec| spec.starts_with(kind.name()));
        let name = kind.name();
        assert!(
            is_tested,
            "no test runs `{name}`: ALL in this file needs a line with it"
        );
    }
    let guest = guest(128, 512);
    let runner = guest.start(ALL).expect("they fit");
    wait_for(&runner, "every one works", |workload| {
        // A compilation takes some hundred pages, and a boot ends.
        let least = if workload.name.starts_with("compile") {
            20
        } else {
            1000
        };
        workload.operations >= least
            || workload.name.starts_with("idle")
            || workload.phase == Phase::Done
    });
    let mut last = Progress::default();
    let report = runner.stop(|progress| last = progress);

    assert!(is_clean(&report), "{report:?}");
    assert_eq!(report.workloads.len(), ALL.len());
    for workload in &report.workloads {
        assert_eq!((workload.phase, workload.errors), (Phase::Done, 0));
        assert!(
            workload.pages_verified >= workload.pages / 4,
            "{workload:?}"
        );
        if !workload.name.starts_with("idle") {
            assert!(workload.operations_per_second > 0.0, "{workload:?}");
            assert!(
                workload.latency.p50_us <= workload.latency.max_us,
                "{workload:?}"
            );
        }
    }
    assert!(last.done > 0 && last.done == last.total, "{last:?}");
    let stats = guest.kernel.stats();
    assert!(stats.swap_out > 0 && stats.swap_in > 0, "{stats:?}");
    assert_eq!((stats.anon, stats.swap_used), (0, 0), "all is unmapped");
}

#[test]
fn workload_whose_memory_lies_reports_the_mismatch_while_it_runs() {
    for spec in ALL.iter().filter(|spec| !spec.starts_with("idle")) {
        let guest = guest(512, 0);
        let runner = guest.start(&[spec]).expect("it fits");
        wait_for(&runner, spec, |workload| workload.operations > 0);
        guest.memory.break_reads();
        let mismatch = runner.wait_mismatch(PATIENCE);
        let mismatch = mismatch.unwrap_or_else(|| panic!("{spec} saw nothing"));
        assert!(mismatch.gfn.is_some(), "{spec}: {mismatch}");
        assert_eq!(mismatch.found.len(), mismatch.expected.len(), "{mismatch}");
        assert_ne!(mismatch.found, mismatch.expected, "{mismatch}");
        assert!(!is_clean(&runner.stop(|_| ())), "{spec}");
    }
}

#[test]
fn last_pass_names_the_one_flipped_byte() {
    for spec in [
        "idle,size=200K",
        "stream,size=200K,pause=1h",
        "toucher,size=200K,pause=1h",
        "kv,size=200K,pause=1h",
        "dbench,size=200K,pause=1h,write=0",
        "image:DIR/large,pause=1h",
    ] {
        let guest = guest(512, 0);
        let runner = guest.start(&[spec]).expect("it fits");
        wait_for(&runner, spec, |workload| {
            workload.phase == Phase::Running
                && (workload.operations == 1 || workload.name.starts_with("idle"))
        });
        // The lowest pages are the kernel's; the pages behind them were allocated first.
        guest.memory.flip(Gfn(20), 93);
        let report = runner.stop(|_| ());
        assert_eq!(report.workloads[0].mismatches, 1, "{spec}: {report:?}");
        let mismatch = &report.mismatches[0];
        assert_eq!((mismatch.gfn, mismatch.offset), (Some(20), 93), "{spec}");
        let at = (mismatch.offset - mismatch.window) as usize;
        assert_eq!(mismatch.expected[at] ^ 1, mismatch.found[at], "{spec}");
        assert!(mismatch.to_string().contains(&mismatch.workload));
    }
}

#[test]
fn workloads_that_pause_stop_at_once() {
    let guest = guest(512, 0);
    let specs = [
        "kv,size=100K,pause=1h",
        "stream,size=100K,rate=1",
        "idle,size=40K",
    ];
    let runner = guest.start(&specs).expect("they fit");
    wait_for(&runner, "all wait", |workload| {
        workload.operations == 1 || workload.name.starts_with("idle")
    });
    let begin = Instant::now();
    let report = runner.stop(|_| ());
    // Far less than the pauses, far more than a busy machine needs.
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
    assert!(is_clean(&report), "{report:?}");
}

#[test]
fn toucher_without_an_active_set_waits_for_its_time_and_can_be_stopped_meanwhile() {
    let guest = guest(512, 0);
    let later = guest.start(&["toucher,size=100K,active=0,then=40K@20ms,then=0@1h"]);
    let later = later.expect("it fits");
    wait_for(&later, "it begins", |workload| workload.operations > 0);
    assert!(is_clean(&later.stop(|_| ())));
    let never = guest.start(&["toucher,size=100K,active=0,then=40K@1h"]);
    let never = never.expect("it fits");
    wait_for(&never, "it waits", |workload| {
        workload.phase == Phase::Running
    });
    let report = never.stop(|_| ());
    assert!(is_clean(&report), "{report:?}");
    assert_eq!(report.workloads[0].operations, 0);
}

#[test]
fn runner_that_is_dropped_ends_its_threads_without_the_last_pass() {
    let guest = guest(512, 0);
    let runner = guest.start(&["kv,pause=1h", "churn"]).expect("they fit");
    drop(runner);
    assert_eq!(guest.kernel.stats().anon, 0);
}

#[test]
fn idle_without_size_has_no_thread_and_no_memory() {
    let guest = guest(64, 0);
    let runner = guest.start(&["idle"]).expect("it fits");
    assert_eq!(runner.snapshot().workloads[0].phase, Phase::Running);
    let report = runner.stop(|_| ());
    assert!(is_clean(&report));
    assert_eq!(report.workloads[0].phase, Phase::Done);
    assert_eq!(guest.kernel.stats().minor_faults, 0);
}

#[test]
fn workloads_without_a_size_share_ram() {
    let guest = guest(1024, 0);
    let runner = guest
        .start(&["kv", "stream", "toucher,active=1M", "idle,size=1M"])
        .expect("they fit");
    let pages: Vec<u64> = runner
        .snapshot()
        .workloads
        .iter()
        .map(|w| w.pages)
        .collect();
    // Each of the three workloads without a size gets a third of (1024 - 4 - 2 * 16) * 3/4 - 256 pages.
    assert_eq!(pages, [161, 161, 256, 256]);
}

#[test]
fn workloads_that_do_not_fit_are_refused_with_the_numbers() {
    let guest = guest(1024, 100);
    let capacity = 1024 - 4 - 32 + 100;
    let fits = format!("kv,size={}K", 4 * capacity);
    drop(guest.start(&[&fits]).expect("it fits exactly"));
    let error = guest.start(&[&fits, "idle,size=4K"]).expect_err("too much");
    let text = error.to_string();
    assert!(
        text.contains(&format!("need {} pages", capacity + 1)),
        "{text}"
    );
    assert!(text.contains(&format!("has {capacity}")), "{text}");
}

#[test]
fn workload_of_exactly_the_capacity_runs_clean() {
    let guest = guest(64, 32);
    let spec = format!("toucher,size={}K", 4 * guest.kernel.capacity());
    let runner = guest.start(&[&spec]).expect("it fits exactly");
    wait_for(&runner, "it works", |workload| workload.operations > 500);
    let report = runner.stop(|_| ());
    assert!(is_clean(&report), "{report:?}");
    assert_eq!(report.workloads[0].errors, 0, "{report:?}");
}

#[test]
fn workload_on_a_missing_or_empty_path_is_refused_by_name() {
    let guest = guest(1024, 0);
    let empty: PathBuf = guest.directory.path().join("empty");
    std::fs::create_dir(&empty).expect("a directory");
    let files_empty = format!("files:{}", empty.display());
    for spec in ["image:/nowhere", "files:/nowhere", files_empty.as_str()] {
        let error = guest.start(&[spec]).expect_err(spec).to_string();
        assert!(error.contains(spec.split_once(':').unwrap().1), "{error}");
    }
}

#[test]
fn workload_out_of_memory_waits_and_goes_on_when_there_is_some() {
    let guest = guest(128, 0);
    let balloon = guest.kernel.balloon_alloc(100, false);
    let runner = guest.start(&["stream,size=300K"]).expect("it would fit");
    wait_for(&runner, "it runs out", |workload| workload.errors > 0);
    let report = runner.snapshot();
    let error = report.workloads[0]
        .last_error
        .as_deref()
        .unwrap_or_default();
    assert!(error.contains("out of memory"), "{error}");
    guest.kernel.balloon_free(&balloon).expect("it is ours");
    wait_for(&runner, "it goes on", |workload| workload.operations > 100);
    assert!(is_clean(&runner.stop(|_| ())));
}

#[test]
fn guests_of_other_seeds_have_the_common_pages_and_their_own() {
    let pages_of = |seed| {
        let guest = guest(1024, 0);
        let spec = "idle,size=2M".parse().expect("it is right");
        let runner = Runner::start(&guest.kernel, &[spec], seed).expect("it fits");
        wait_for(&runner, "it is filled", |w| w.phase == Phase::Running);
        let mut pages: HashMap<Vec<u8>, u32> = HashMap::new();
        for gfn in 4..4 + 512 {
            let mut bytes = vec![0; PAGE_SIZE];
            guest.memory.read(Gfn(gfn), 0, &mut bytes);
            *pages.entry(bytes).or_default() += 1;
        }
        pages
    };
    let (one, same, other) = (pages_of(1), pages_of(1), pages_of(2));
    assert_eq!(one, same, "equal seeds make equal guests");
    let common = one.keys().filter(|page| other.contains_key(*page)).count();
    let own = one.len() - common;
    assert!(common > 60 && own > 150, "{common} common, {own} own");
}

#[test]
fn image_whose_boot_was_cut_short_verifies_what_was_copied_and_no_more() {
    let guest = guest(4096, 4096);
    let image = guest.directory.path().join("image");
    std::fs::write(&image, vec![7; 2048 * PAGE_SIZE]).expect("a file");
    let text = format!("image:{}", image.display());
    let runner = guest.start(&[&text]).expect("it starts");
    let report = runner.stop(|_| {});
    assert!(is_clean(&report), "{:?}", report.workloads);
    // Filling only writes pages: whatever was compared, the last pass compared.
    let workload = &report.workloads[0];
    let copied = workload.bytes_written / PAGE_SIZE as u64;
    assert!(workload.pages_verified >= copied, "{workload:?}");
}

/// Whether the host attaches a part of each stage, all of it or nothing, every page is right at once and in the end.
#[test]
fn image_is_attached_as_far_as_the_host_does_and_copied_else() {
    for (most, attach) in [
        (0, "yes"),
        (100, "yes"),
        (u32::MAX, "yes"),
        (u32::MAX, "no"),
    ] {
        let guest = guest(2048, 0);
        guest.memory.attach_at_most(most);
        let image = guest.directory.path().join("image");
        let bytes: Vec<u8> = (0..700 * PAGE_SIZE).map(|at| (at / 4000) as u8).collect();
        std::fs::write(&image, bytes).expect("a file");
        let text = format!("image:{},attach={attach},rate=1G", image.display());
        let runner = guest.start(&[&text]).expect("it starts");
        wait_for(&runner, "it has booted and looks", |workload| {
            workload.operations > 100
        });
        let stats = guest.kernel.stats();
        let held = stats.total - stats.free;
        assert!(held < 700 + 16, "the stage is given back: {stats:?}");
        let copied = match (attach, most) {
            ("no", _) | (_, 0) => 700,
            // The host is asked for 16 pages first and attaches them, so it is asked for a whole stage next,
            // of which it attaches 100 pages.
            (_, 100) => 700 - 3 * (16 + 100),
            _ => 0,
        };
        assert_eq!(stats.minor_faults, copied, "{attach} {most}");
        let report = runner.stop(|_| {});
        assert!(is_clean(&report), "{:?}", report.workloads);
        assert_eq!(report.workloads[0].bytes_written, 700 * PAGE_SIZE as u64);
    }
}

#[test]
fn dbench_reads_less_from_its_disk_the_more_of_its_files_are_cached() {
    let reads_an_operation = |ram| {
        let guest = guest(ram, 0);
        let runner = guest.start(&["dbench,size=2M,zipf=0,write=0"]);
        let runner = runner.expect("it needs no memory");
        let of = |stats: KernelStats| stats.major_faults;
        wait_for(&runner, "it is filled", |w| w.phase == Phase::Running);
        let (before, loaded) = (runner.snapshot(), of(guest.kernel.stats()));
        let begun = before.workloads[0].operations;
        wait_for(&runner, "it reads", |w| w.operations >= begun + 2000);
        let read = of(guest.kernel.stats()) - loaded;
        let done = runner.snapshot().workloads[0].operations - begun;
        let stats = guest.kernel.stats();
        assert_eq!(stats.caches + stats.free + 4, u64::from(ram), "{stats:?}");
        assert!(is_clean(&runner.stop(|_| ())));
        read as f64 / done as f64
    };
    let (none, half, most) = (
        reads_an_operation(1024),
        reads_an_operation(256),
        reads_an_operation(64),
    );
    // A request touches about four pages; all, half and an eighth of the files fit.
    assert!(none < 0.01, "{none}");
    assert!((1.5..3.2).contains(&half), "{half}");
    assert!(most > 1.3 * half, "{most} and {half}");
}

#[test]
fn compile_frees_what_it_allocates_and_counts_whole_compilations() {
    let guest = guest(1024, 0);
    let runner = guest.start(&["compile,size=400K,inputs=64K"]);
    let runner = runner.expect("it fits");
    wait_for(&runner, "it compiles", |w| w.operations >= 30);
    let report = runner.stop(|_| ());
    assert!(is_clean(&report), "{report:?}");
    let workload = &report.workloads[0];
    // A process has 50 to 100 pages, writes each twice, and reads some of the 16 pages of inputs.
    let written = workload.bytes_written / PAGE_SIZE as u64 / (workload.operations + 1);
    assert!((100..=200).contains(&written), "{workload:?}");
    let stats = guest.kernel.stats();
    assert_eq!((stats.anon, stats.caches), (0, 0), "{stats:?}");
}

#[test]
fn inputs_of_compilations_are_equal_in_all_guests() {
    let inputs_of = |seed| {
        let guest = guest(512, 0);
        let sequence = "compile,size=4K,inputs=400K,pause=1h".parse();
        let runner = Runner::start(&guest.kernel, &[sequence.expect("it is right")], seed);
        let runner = runner.expect("it fits");
        wait_for(&runner, "it has its inputs", |w| w.phase == Phase::Running);
        let page = |gfn| {
            let mut bytes = vec![0; PAGE_SIZE];
            guest.memory.read(Gfn(gfn), 0, &mut bytes);
            bytes
        };
        (4..104).map(page).collect::<Vec<_>>()
    };
    assert!(inputs_of(1) == inputs_of(2));
}

#[test]
fn boot_zeroes_all_memory_frees_it_and_ends() {
    for (check, verified) in [("check=100", 1), ("check=0", 0)] {
        let guest = guest(512, 0);
        let all = u64::from(guest.kernel.ram_capacity());
        // Whoever maps a page later must not see the zeroes of the boot, but its own bytes.
        let runner = guest.start(&[&format!("boot,threads=2,{check}; kv,pause=1h")]);
        let runner = runner.expect("it fits");
        wait_for_one(&runner, 1, |kv| kv.phase == Phase::Running);
        let report = runner.snapshot();
        let boot = &report.workloads[0];
        assert_eq!(boot.phase, Phase::Done);
        assert_eq!(boot.bytes_written, all * PAGE_SIZE as u64, "{boot:?}");
        assert_eq!((boot.pages, boot.pages_verified), (all, verified * all));
        assert!(boot.seconds > 0.0 && boot.operations >= all, "{boot:?}");
        let stats = guest.kernel.stats();
        assert_eq!(stats.anon, report.workloads[1].pages, "{stats:?}");
        assert!(is_clean(&runner.stop(|_| ())));
    }
}

#[test]
fn workloads_of_a_sequence_take_turns_and_verify_before_the_next_begins() {
    let guest = guest(512, 0);
    let texts = [
        "stream,size=1M,for=80ms; idle,for=10ms; toucher,size=1M,for=60ms; kv,size=1M",
        "churn,size=200K",
    ];
    let runner = guest
        .start(&texts)
        .expect("one at a time fits, all at once do not");
    let waiting = runner.snapshot().workloads[3].clone();
    assert_eq!((waiting.phase, waiting.seconds), (Phase::Waiting, 0.0));
    wait_for_one(&runner, 3, |last| last.operations > 0);
    let report = runner.stop(|_| ());
    assert!(is_clean(&report), "{report:?}");
    let names = report.workloads.iter().map(|w| w.name.as_str());
    let expected = [
        "stream,size=1M,for=80ms",
        "idle,for=10ms",
        "toucher,size=1M,for=60ms",
        "kv,size=1M",
        "churn,size=200K",
    ];
    assert_eq!(names.collect::<Vec<_>>(), expected);
    for (workload, time) in report.workloads.iter().zip([0.08, 0.01, 0.06]) {
        let took = workload.loading_seconds + workload.seconds;
        assert!(took >= time - 0.001, "{workload:?}");
    }
    for workload in &report.workloads {
        assert_eq!((workload.phase, workload.errors), (Phase::Done, 0));
    }
    assert_eq!(guest.kernel.stats().anon, 0, "all is unmapped");
}

#[test]
fn sequence_that_is_stopped_early_never_begins_the_rest() {
    let guest = guest(512, 0);
    let runner = guest.start(&["kv,size=100K,pause=1h,for=1h; stream,for=1s; boot"]);
    let runner = runner.expect("it fits");
    let report = runner.stop(|_| ());
    assert!(is_clean(&report), "{report:?}");
    for workload in &report.workloads[1..] {
        assert_eq!((workload.phase, workload.operations), (Phase::Done, 0));
        assert_eq!((workload.seconds, workload.bytes_written), (0.0, 0));
    }
    let runner = guest.start(&["kv,size=100K,pause=1h,for=1h; stream"]);
    drop(runner.expect("it fits"));
    assert_eq!(guest.kernel.stats().anon, 0);
}

#[test]
fn wrong_byte_is_found_at_the_end_of_a_turn() {
    let guest = guest(512, 0);
    let runner = guest.start(&["toucher,size=200K,pause=1h,for=3s; idle"]);
    let runner = runner.expect("it fits");
    wait_for_one(&runner, 0, |toucher| toucher.operations > 0);
    guest.memory.flip(Gfn(20), 93);
    let mismatch = runner.wait_mismatch(PATIENCE).expect("it is looked for");
    assert_eq!((mismatch.gfn, mismatch.offset), (Some(20), 93));
}
