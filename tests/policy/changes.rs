//! Settings that change while guests run on too little memory: whatever changes at whatever time, no guest
//! reads a wrong byte, and nothing is left behind.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use memvisor::control::ClientError;
use memvisor::reclaim::victims;
use memvisor::settings::{Key, VmPatch};
use memvisor::telemetry::{HostStatus, VmStatus};
use memvisor::units::Pages;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::rig::{Host, eventually, image, seconds};
use super::{PATIENCE, check, end, filled, host, line, mib};

in_both_engines!(
    settings_changed_in_any_order_under_load_harm_nobody,
    settings_changed_in_the_middle_of_a_reclaim_take_effect_at_once,
);

fn evictions(host: &Host) -> (VmStatus, u64, u64) {
    let vm = host.vm("g");
    let counts = (vm.evict.to_zip, vm.evict.to_swap);
    (vm, counts.0, counts.1)
}

/// A guest without an agent gets a limit far below what it holds, and is evicted down to it a little at a time.
fn settings_changed_in_the_middle_of_a_reclaim_take_effect_at_once(engine: &str) {
    let host = host(
        engine,
        "96M",
        &["Memvisor.EvictRound=64", "Mem.MemZipMaxPct=50"],
    );
    let words =
        "--memory 56M --no-agent --workload toucher,size=48M,active=1M,rate=1M,content=text";
    let guest = host.guest("g", words);
    filled(&host, "g", 48);
    host.set_vm("g", "limit=20M");
    let grows = |what: &str, of: fn(&VmStatus) -> u64| {
        let before = of(&host.vm("g"));
        eventually(what, PATIENCE, || {
            (of(&host.vm("g")) > before + 64).then_some(())
        });
    };
    grows("pages are compressed", |vm| vm.evict.to_zip);

    host.set("Mem.MemZipEnable", "0");
    grows("pages are swapped", |vm| vm.evict.to_swap);
    let (_, zipped, _) = evictions(&host);
    grows("pages are swapped still", |vm| vm.evict.to_swap);
    assert_eq!(evictions(&host).1, zipped, "compressed though that is off");

    host.set("Mem.MemZipEnable", "1");
    grows("pages are compressed again", |vm| vm.evict.to_zip);

    host.set_vm("g", "limit=none");
    // A batch that is under way still ends. After it, nothing more may be evicted.
    let mut last = (evictions(&host), Instant::now());
    eventually("nothing is evicted any more", PATIENCE, || {
        let now = evictions(&host);
        if (now.1, now.2) != (last.0.1, last.0.2) {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(1)).then_some(())
    });
    let (vm, ..) = evictions(&host);
    assert!(vm.consumed_pages > mib(24), "it was too fast: {vm:#?}");

    let since = Instant::now();
    host.set("Memvisor.EvictRound", "4096");
    host.set_vm("g", "limit=20M");
    let vm = eventually("down to the limit", PATIENCE, || {
        let vm = host.vm("g");
        (vm.consumed_pages <= mib(21)).then_some(vm)
    });
    let held = vm.consumed_pages.bytes();
    eprintln!(
        "{engine}: down to {held} in whole rounds after {:.1?}",
        since.elapsed()
    );
    end(host, [guest], &[]);
}

/// A change that is tried.
#[derive(Clone, Debug)]
enum Change {
    /// A setting of a VM, written as on a command line.
    Vm(String),
    /// A setting of the host.
    Host(&'static str, String),
    /// A balloon set by hand, or left to the policy again.
    Balloon(Option<Pages>),
}

impl Change {
    /// The name of what is changed.
    fn name(&self) -> &str {
        match self {
            Self::Vm(words) => words.split('=').next().unwrap_or_default(),
            Self::Host(name, _) => name,
            Self::Balloon(_) => "balloon",
        }
    }

    fn apply(&self, host: &Host, vm: &str) -> Result<(), ClientError> {
        let client = host.client();
        match self {
            Self::Vm(words) => {
                let patch = VmPatch::from_words([words.as_str()]).expect("each by itself is right");
                client.set_vm(vm, &patch).map(drop)
            }
            Self::Host(name, value) => {
                let key = Key::find(name).expect("a setting");
                client.set_setting(key, value).map(drop)
            }
            Self::Balloon(target) => client.set_balloon(vm, target.map(Pages::bytes)).map(drop),
        }
    }
}

/// One change of each kind, in any order.
fn deck(random: &mut StdRng, dirs: &[PathBuf]) -> Vec<Change> {
    let mut one_of = |from: &[&str]| from[random.random_range(0..from.len())].to_owned();
    let words = [
        (
            "shares",
            one_of(&["low", "normal", "high", "0", "1", "77777"]),
        ),
        ("sharing", one_of(&["on", "on", "off"])),
        ("salt", one_of(&["none", "", "red", "blue"])),
    ];
    let host = [
        ("Mem.ShareForceSalting", one_of(&["0", "1", "2"])),
        ("Mem.MemZipEnable", one_of(&["0", "1", "1"])),
        ("Mem.IdleTaxType", one_of(&["0", "1"])),
        ("Mem.SamplePeriod", one_of(&["0", "1", "2"])),
        (
            "Memvisor.FreeStates",
            one_of(&["2002", "4.1", "5.0", "6.0"]),
        ),
        ("Mem.ShareScanTime", one_of(&["1s", "1s", "10m"])),
        ("Memvisor.Victims", one_of(&victims::NAMES)),
        ("Memvisor.ScanAtRest", one_of(&["5", "100"])),
        ("Memvisor.CacheKeeps", one_of(&["all", "paying"])),
        ("Memvisor.FaultsWait", one_of(&["low", "hard"])),
        ("Memvisor.BalloonTakes", one_of(&["all", "all", "free"])),
    ];
    let mut between = |from: u64, to: u64| random.random_range(from..=to);
    let numbers = [
        ("Mem.IdleTax", between(0, 99)),
        ("Mem.CtlMaxPercent", between(0, 99)),
        ("Mem.MemZipMaxPct", between(5, 60)),
        ("Mem.MemMinFreePct", between(0, 15)),
        ("Memvisor.EvictRound", between(1, 8192)),
    ];
    let size = |most: u64| format!("{most}M");
    let or_none = |chance: u64, text: String| if chance == 0 { "none".to_owned() } else { text };
    let sizes = [
        ("reservation", size(between(0, 10))),
        ("limit", or_none(between(0, 2), size(between(12, 48)))),
        ("balloon-max", or_none(between(0, 2), size(between(0, 40)))),
    ];
    let balloon = (between(0, 2) == 0).then(|| mib(between(0, 16)));
    let dir = &dirs[usize::try_from(between(0, dirs.len() as u64 - 1)).expect("small")];
    let mut all: Vec<Change> = words
        .into_iter()
        .chain(sizes)
        .map(|(key, value)| Change::Vm(format!("{key}={value}")))
        .chain(host.map(|(name, value)| Change::Host(name, value)))
        .chain(numbers.map(|(name, value)| Change::Host(name, value.to_string())))
        .chain([
            Change::Vm(format!("swap-dir={}", dir.display())),
            Change::Balloon(balloon),
        ])
        .collect();
    all.shuffle(random);
    all
}

/// How often each setting was changed, and how often a change was refused.
type Tally = BTreeMap<String, (u64, u64)>;

/// Tries a change. The host may refuse one that contradicts its other settings or what it has promised.
fn attempt(host: &Host, vm: &str, change: &Change, tally: &mut Tally) {
    let count = tally.entry(change.name().to_owned()).or_default();
    match change.apply(host, vm) {
        Ok(()) => count.0 += 1,
        Err(ClientError::Refused {
            status: 404 | 409 | 422,
            body,
        }) => {
            assert!(
                !body.error.is_empty() && !body.allowed.is_empty(),
                "{body:?}"
            );
            count.1 += 1;
        }
        Err(error) => panic!("{vm}: {change:?}: {error}"),
    }
}

/// Pages that left RAM, by the way in which they left.
fn ways(status: &HostStatus) -> [(&'static str, u64); 4] {
    let homes = &status.totals.homes;
    [
        ("shared", homes.shared_pages.0),
        ("compressed", homes.compressed_pages.0),
        ("swapped", homes.swapped_pages.0),
        ("ballooned", homes.ballooned_pages.0),
    ]
}

/// For how many seconds settings change.
const TIME: u64 = 10;
/// The VMs that are there all the time; the last has no agent.
const NAMES: [&str; 3] = ["a", "b", "c"];

fn settings_changed_in_any_order_under_load_harm_nobody(engine: &str) {
    let seed = seed();
    eprintln!("{engine}: MEMVISOR_POLICY_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let quick = ["--share-scan-time", "1s", "--set", "Mem.SamplePeriod=1"];
    let host = Host::start(engine, "80M", &quick);
    let dirs = ["swap", "swap-2", "swap-3"].map(|name| host.path().join(name));
    for dir in &dirs {
        std::fs::create_dir(dir).expect("a directory");
    }
    let boot = host.path().join("boot.img");
    image(&boot, 3072, seed);
    let boot = format!("--memory 48M --workload image:{},rate=20M", boot.display());
    let guest = |name: &str, own: &str| {
        let seed = name_seed(name);
        host.guest(name, &format!("{boot} {own} --seed {seed}"))
    };
    let guests = [
        guest("a", "toucher,size=26M,active=12M,rate=40M,threads=2"),
        guest("b", "kv,size=26M,rate=20M,threads=2"),
        guest("c", "churn,size=26M,rate=20M,threads=2 --no-agent"),
    ];
    let what = "pages are shared, swapped and ballooned at once";
    eventually(what, PATIENCE, || {
        let status = host.status();
        check(&status);
        let ways = ways(&status);
        (ways.iter().all(|(_, pages)| *pages > 0)).then_some(())
    });
    eprintln!("{engine}: {what}: {}", line(&host.status()));

    // One more comes and goes meanwhile.
    let mut visitor = guest("visitor", "kv,size=8M,rate=10M --duration 4s");
    let tally = shuffle(&host, &mut random, &dirs);
    eprintln!("{engine}: changed and refused: {tally:?}");
    assert!(tally.values().all(|(changed, _)| *changed > 0), "{tally:?}");

    // Without these two the verification could take long. All other settings stay as chance left them.
    for name in NAMES {
        host.set_vm(name, "shares=normal limit=none");
    }
    let report = visitor.verifies();
    assert!(report.pages_verified > 0, "{report:#?}");
    eprintln!("{engine}: at the end {}", line(&host.status()));
    end(
        host,
        guests,
        &["wait for memory", "nothing can be reclaimed"],
    );
    drop(dirs);
}

/// Changes everything that can be changed, for some seconds.
fn shuffle(host: &Host, random: &mut StdRng, dirs: &[PathBuf]) -> Tally {
    let mut tally = Tally::new();
    let time = seconds("MEMVISOR_POLICY_SECONDS", TIME);
    let begin = Instant::now();
    while begin.elapsed() < time {
        for change in deck(random, dirs) {
            let vm = NAMES[random.random_range(0..NAMES.len())];
            attempt(host, vm, &change, &mut tally);
            check(&host.status());
            std::thread::sleep(Duration::from_millis(random.random_range(0..40)));
        }
    }
    tally
}

fn seed() -> u64 {
    let given = std::env::var("MEMVISOR_POLICY_SEED").ok();
    given.map_or_else(rand::random, |text| text.parse().expect("a number"))
}

/// A seed for each guest, so that their own content differs.
fn name_seed(name: &str) -> &'static str {
    match name {
        "a" => "1",
        "b" => "2",
        _ => "3",
    }
}
