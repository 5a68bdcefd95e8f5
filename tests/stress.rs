//! Many threads of several guests on far too little memory, while everything that moves pages is kept
//! busy. Every guest verifies every byte.

mod rig;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memvisor::control::{Client, ClientError};
use memvisor::settings::{DEFAULT, Key, Kind, TABLE, VmPatch};
use memvisor::telemetry::{HostStatus, VmStatus};
use memvisor::units::{Bytes, PAGE_SIZE, Pages};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rig::{Host, Process, eventually, image, modes, scratch, seconds};

/// How long guests may take after their run to verify all they own, with refills from swap.
const VERIFY: Duration = Duration::from_secs(60);
/// Pages of the image that two guests have in common.
const IMAGE: u32 = 4096;

/// Name and command line of each guest; together they have 2.75 times the budget. Threads, size, content
/// and workload all differ.
fn guests(image: &str) -> [(&'static str, String); 5] {
    [
        (
            "kv",
            "--memory 96M --workload kv,size=64M,threads=4".to_owned(),
        ),
        (
            "toucher",
            "--memory 96M --workload toucher,size=72M,threads=2,active=24M,then=64M@8s".to_owned(),
        ),
        (
            "churn",
            "--memory 64M --workload churn,size=48M,threads=3".to_owned(),
        ),
        (
            "files",
            format!("--memory 64M --workload image:{image} files:{image},threads=2"),
        ),
        (
            "boot",
            format!(
                "--memory 64M --workload image:{image} toucher,size=32M,threads=2,write=80,content=text"
            ),
        ),
    ]
}

/// Everything that was seen of one VM. Its counters never fall, so the last values are the largest.
#[derive(Clone, Default)]
struct Seen {
    last: Option<VmStatus>,
    inflated: u64,
    deflated: u64,
}

impl Seen {
    fn note(&mut self, vm: &VmStatus) {
        let size = |vm: &VmStatus| vm.balloon.size_pages.0;
        let before = self.last.as_ref().map_or(0, size);
        self.inflated += size(vm).saturating_sub(before);
        self.deflated += before.saturating_sub(size(vm));
        self.last = Some(vm.clone());
    }
}

/// How often each path ran, summed over all VMs.
fn paths(seen: &BTreeMap<String, Seen>) -> Vec<(&'static str, u64)> {
    let sum = |what: fn(&VmStatus) -> u64| {
        seen.values()
            .filter_map(|s| s.last.as_ref())
            .map(what)
            .sum()
    };
    vec![
        ("first touches", sum(|vm| vm.faults.first_touch)),
        ("shares", sum(|vm| vm.scan.merged)),
        ("breaks", sum(|vm| vm.faults.cow_break)),
        (
            "zero pages found by the scanner",
            sum(|vm| vm.scan.zero_found),
        ),
        ("zero pages found by eviction", sum(|vm| vm.evict.to_zero)),
        ("evictions to the cache", sum(|vm| vm.evict.to_zip)),
        ("evictions to swap", sum(|vm| vm.evict.to_swap)),
        ("refills from the cache", sum(|vm| vm.faults.refill_zip)),
        ("refills from swap", sum(|vm| vm.faults.refill_swap)),
        ("inflated pages", seen.values().map(|s| s.inflated).sum()),
        ("deflated pages", seen.values().map(|s| s.deflated).sum()),
    ]
}

/// Settings that say how pages move. One of them is every other one that is drawn.
const OFTEN: [Key; 5] = [
    Key::Victims,
    Key::FaultsWait,
    Key::BalloonTakes,
    Key::AllocGuestLargePage,
    Key::SwapCacheSize,
];
/// The most host settings that have values drawn at random at one time: with more of them, hardly any path would run.
const DRAWN: usize = 4;

/// Sets balloons by hand, to random sizes and back, and settings of the host and its VMs, until told to stop; how often
/// it set a balloon.
fn chaos(client: &Client, seed: u64, stop: &AtomicBool) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut count, mut drawn) = (0, VecDeque::new());
    while !stop.load(Ordering::Relaxed) {
        if random.random_bool(0.4) {
            draw_setting(client, &mut random, &mut drawn);
        }
        for vm in client.vms().expect("the host answers") {
            let target = random.random_bool(0.6).then(|| {
                let most = vm.balloon.max_pages.0;
                Pages(random.random_range(0..=most)).bytes()
            });
            count += u64::from(set(client, &vm.name, target));
            if random.random_bool(0.1) {
                draw_allocation(client, &mut random, &vm);
            }
        }
        std::thread::sleep(Duration::from_millis(random.random_range(20..400)));
    }
    for key in drawn {
        set_host(client, key, DEFAULT);
    }
    for vm in client.vms().expect("the host answers") {
        set(client, &vm.name, None);
        let patch = VmPatch::from_words([DEFAULT]).expect("a patch");
        is_taken(client.set_vm(&vm.name, &patch));
    }
    count
}

/// Gives one setting of the host a value of its range; the one that has had such a value for longest gets its default
/// back.
fn draw_setting(client: &Client, random: &mut StdRng, drawn: &mut VecDeque<Key>) {
    let key = match random.random_bool(0.5) {
        true => OFTEN[random.random_range(0..OFTEN.len())],
        false => TABLE[random.random_range(0..TABLE.len())].key,
    };
    let spec = key.spec();
    // Balloons are set by hand here, to sizes that the host has told. One page an order would have guests stand still, and
    // so would a swap file that takes a second for each.
    if matches!(
        spec.key,
        Key::CtlMaxPercent | Key::EvictRound | Key::SwapDelay
    ) {
        return;
    }
    let value = match spec.kind {
        Kind::Whole { min, max, .. } => {
            let values = [min, max, random.random_range(min..=max)];
            values[random.random_range(0..values.len())].to_string()
        }
        Kind::Time { min, max, .. } => {
            let [min, max] = [min, max.min(Duration::from_secs(5))].map(|time| time.as_millis());
            format!("{}ms", random.random_range(min..=max))
        }
        Kind::Choice(words) => words[random.random_range(0..words.len())].to_owned(),
    };
    set_host(client, spec.key, &value);
    drawn.retain(|key| *key != spec.key);
    drawn.push_back(spec.key);
    if drawn.len() > DRAWN
        && let Some(first) = drawn.pop_front()
    {
        set_host(client, first, DEFAULT);
    }
}

fn set_host(client: &Client, key: Key, value: &str) {
    if let Err(error) = client.set_setting(key, value) {
        panic!("{key:?} = {value}: {error}");
    }
}

/// Gives a VM other shares and another limit, or none.
fn draw_allocation(client: &Client, random: &mut StdRng, vm: &VmStatus) {
    let shares = ["low", "normal", "high"][random.random_range(0..3)];
    let limit = match random.random_bool(0.5) {
        true => "unlimited".to_owned(),
        false => {
            let most = vm.configured_pages.0;
            format!("{} pages", random.random_range(most / 4..=most))
        }
    };
    let words = [format!("shares={shares}"), format!("limit={limit}")];
    let patch = VmPatch::from_words(words.iter().map(String::as_str)).expect("a patch");
    is_taken(client.set_vm(&vm.name, &patch));
}

/// Whether the balloon was set.
fn set(client: &Client, name: &str, target: Option<Bytes>) -> bool {
    is_taken(client.set_balloon(name, target))
}

/// Whether a VM took an order. It may have ended, or may not have its agent yet.
fn is_taken(answer: Result<VmStatus, ClientError>) -> bool {
    match answer {
        Ok(_) => true,
        Err(ClientError::Refused {
            status: 404 | 409, ..
        }) => false,
        Err(error) => panic!("an order to a VM: {error}"),
    }
}

fn watch(host: &Host, seen: &mut BTreeMap<String, Seen>) -> HostStatus {
    let status = host.status();
    for vm in &status.vms {
        assert_eq!(vm.homes.total(), vm.configured_pages, "{vm:#?}");
        seen.entry(vm.name.clone()).or_default().note(vm);
    }
    assert!(status.used_pages <= status.budget_pages, "{status:#?}");
    status
}

fn stress(engine: &str, mode: &str) {
    let time = seconds("MEMVISOR_STRESS_SECONDS", 25);
    let cache = scratch();
    let cache = cache.path().to_string_lossy();
    let host = Host::start(
        engine,
        "140M",
        &[
            "--swap-cache",
            &cache,
            "--share-scan-time",
            "1s",
            "--share-scan-ghz",
            "32",
            "--share-rate-max",
            "32768",
        ],
    );
    let boot = host.path().join("boot.img");
    image(&boot, IMAGE, 0x5eed);
    let mut running: Vec<Process> = guests(&boot.to_string_lossy())
        .iter()
        .enumerate()
        .map(|(seed, (name, words))| {
            // The first guest keeps the default whatever the mode, so that guests of both kinds run side by side.
            let mode = if seed > 0 { mode } else { "" };
            let own = format!("{mode} --duration {}s --seed {seed}", time.as_secs());
            host.guest(name, &format!("{words} {own}"))
        })
        .collect();

    let seed = rand::random();
    println!("{engine} `{mode}`: chaos with seed {seed}");
    let (stop, client) = (
        AtomicBool::new(false),
        Client::new(host.socket("control.sock")).expect("a client"),
    );
    let mut seen = BTreeMap::new();
    std::thread::scope(|scope| {
        let chaos = scope.spawn(|| chaos(&client, seed, &stop));
        let end = Instant::now() + time;
        while Instant::now() < end {
            watch(&host, &mut seen);
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        let set = chaos.join().expect("chaos ends well");
        assert!(set > 10, "balloons were set {set} times only");
    });
    eventually("all guests have verified their memory", VERIFY, || {
        watch(&host, &mut seen);
        let ended = |guest: &mut Process| guest.ended().is_some();
        running.iter_mut().all(ended).then_some(())
    });
    for mut guest in running {
        let report = guest.verifies();
        assert!(report.pages_verified > 1000, "{report:#?}");
    }
    let mut paths = paths(&seen);
    // The first guest serves itself whatever the mode.
    if engine == "uffd" {
        let inline = |s: &Seen| s.last.as_ref().map_or(0, |vm| vm.faults.inline);
        let sum = seen.values().map(inline).sum();
        paths.push(("faults that guests served themselves", sum));
    }
    println!("{engine} `{mode}`: {paths:?}");
    for (path, count) in paths {
        assert!(count > 0, "no {path} in {time:?}");
    }
    host.is_empty(VERIFY);
    host.stop_quietly(&[]);
}

#[test]
fn guests_under_stress_read_what_they_wrote() {
    assert_eq!(PAGE_SIZE, 4096, "the image is so many pages of this size");
    for (engine, mode) in modes() {
        stress(engine, mode);
    }
}
