//! Inline guests whose claim table holds words that no good guest writes: each harms itself and nobody else.
//!
//! The guests are real. The table is a file that the host holds open, so the test writes it behind the guest's
//! back, as a bad shim would.

mod rig;

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use memvisor::telemetry::VmStatus;
use memvisor_wire::Gfn;
use memvisor_wire::claims::{CREDIT, CREDITS, StallCause, State, credit_word, row, words};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use rig::{Host, PATIENCE, Process, engines, eventually};

/// How long the memory of a dead guest may stay in use.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Pages of the guest whose table the test falsifies, the liar.
const PAGES: u32 = 48 << 8;
const LIAR: &str = "liar";

/// A host with a good inline guest and the liar. Both need more than their limits, so that each refills and
/// breaks pages for as long as it lives, whatever the other does.
struct Scene {
    host: Host,
    good: Process,
    liar: Process,
    table: File,
}

impl Scene {
    /// `None` where guests cannot be inline: without userfaultfd.
    fn new() -> Option<Self> {
        engines().contains(&"uffd").then(|| {
            let host = Host::quiet("uffd", "48M", &["--share-scan-time", "1s"]);
            let args = "--no-agent --memory 48M";
            let good = host.guest(
                "good",
                &format!("{args} --limit 12M --workload kv,size=16M"),
            );
            // It keeps reading what it has written, and keeps writing pages that are shared.
            let liar = host.guest(
                LIAR,
                &format!("{args} --limit 30M --workload kv,size=30M,write=30 toucher,size=8M"),
            );
            for name in ["good", LIAR] {
                // First touches count as inline too but come to an end, so refills are waited for as well.
                let refills = |vm: &VmStatus| vm.faults.inline > 20 && vm.faults.refill_zip > 200;
                host.await_vm(name, "serves itself", refills);
            }
            let table = host.descriptors(&format!("memvisor-claims:{LIAR}"));
            let table = OpenOptions::new().read(true).write(true).open(&table[0]);
            Self {
                table: table.expect("a file of the same user"),
                host,
                good,
                liar,
            }
        })
    }

    fn write(&self, at: u32, word: u32) {
        let written = self
            .table
            .write_all_at(&word.to_ne_bytes(), u64::from(at) * 4);
        if let Err(error) = written {
            // When its VM ends, the host cuts the table to length zero.
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
    }

    fn states(&self, state: impl Fn(Gfn) -> u32) {
        (0..PAGES)
            .map(Gfn)
            .for_each(|gfn| self.write(row(gfn), state(gfn)));
    }

    /// Expects the liar to be ended for a reason that has all of `words`, and the good guest to go on.
    #[track_caller]
    fn ends_by(mut self, words: &str) {
        self.liar.fails(4, words);
        self.end();
    }

    #[track_caller]
    fn end(mut self) {
        let before = self.host.vm("good").faults.served();
        eventually("the good guest goes on", PATIENCE, || {
            (self.host.vm("good").faults.served() > before + 100).then_some(())
        });
        self.good.terminate();
        self.good.reports(130);
        self.host.is_empty(AT_ONCE);
        let log = self.host.stop();
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[test]
fn guest_that_is_done_with_credits_it_never_had_is_ended() {
    let Some(scene) = Scene::new() else { return };
    let done = State::Done {
        credit: CREDITS - 1,
    }
    .encode();
    scene.states(|_| done);
    scene.ends_by("credit 255");
}

#[test]
fn guest_that_writes_what_is_no_state_is_ended() {
    let Some(scene) = Scene::new() else { return };
    scene.states(|_| 0xdead_beef);
    scene.ends_by("0xdeadbeef");
}

/// The guest is ended when the daemon looks at its credits, or locks a page that it paid for with a forged one.
#[test]
fn guest_that_makes_credits_is_ended() {
    let Some(scene) = Scene::new() else { return };
    (0..CREDITS).for_each(|credit| scene.write(credit_word(credit), CREDIT));
    scene.ends_by("not granted");
}

/// A guest whose offer is lost asks the daemon for the page.
#[test]
fn guest_that_erases_its_offers_goes_on() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    for _ in 0..20 {
        (0..PAGES).map(Gfn).for_each(|gfn| {
            let mut word = [0; 4];
            let at = u64::from(row(gfn)) * 4;
            scene.table.read_exact_at(&mut word, at).expect("a table");
            // Only offers are erased. Without its claim, a claimed page could be brought twice.
            if u32::from_ne_bytes(word) == State::Zip.encode() {
                scene.write(row(gfn), State::None.encode());
            }
        });
    }
    scene.liar.terminate();
    scene.liar.wait(PATIENCE);
    scene.end();
}

/// The times that a guest reports of itself count only as far as they can be true.
#[test]
fn guest_that_lies_about_its_time_gains_no_more_than_its_threads_had() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let said = |scene: &Scene, cause: StallCause| {
        let (mut word, at) = ([0; 4], u64::from(cause.word()) * 4);
        scene.table.read_exact_at(&mut word, at).expect("a table");
        u32::from_ne_bytes(word)
    };
    assert!(said(&scene, StallCause::Refill) > 0, "it served itself");
    // In microseconds, each lie adds about 18 minutes.
    for lie in 1..=8_u32 {
        let looked = scene.host.vm(LIAR).uptime_ms;
        for cause in StallCause::ALL {
            scene.write(cause.word(), lie << 30);
        }
        scene
            .host
            .await_vm(LIAR, "is looked at", |vm| vm.uptime_ms > looked + 300);
    }
    let vm = scene.host.vm(LIAR);
    let tasks = format!("/proc/{}/task", scene.liar.pid());
    let threads = std::fs::read_dir(tasks).expect("it lives").count() as u64;
    let sum: u64 = vm.stalls.each().iter().map(|(_, time)| time).sum();
    let uptime = (vm.uptime_ms + 50) * 1000;
    assert!(sum <= threads * uptime, "{:?} in {uptime} us", vm.stalls);
    assert!(
        vm.stalls.stalled_us <= uptime,
        "{:?} in {uptime} us",
        vm.stalls
    );
    // What can be true is believed: it counts as stalled for as long as it lied.
    assert!(vm.stalls.stalled_us > 1_000_000, "{:?}", vm.stalls);
    scene.liar.terminate();
    scene.liar.wait(PATIENCE);
    scene.end();
}

/// Pages that are claimed for ever are lost to the guest alone, and come free when it dies.
#[test]
fn guest_that_never_ends_its_claims_is_evicted_around_them_and_dies_without_a_trace() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let taken = State::Taken {
        credit: 3,
        waited: false,
    }
    .encode();
    scene.states(|_| taken);
    scene.liar.send(Signal::SIGKILL);
    scene.liar.dies_by(Signal::SIGKILL);
    scene.host.forgets(LIAR, AT_ONCE);
    scene.end();
}

#[test]
fn guest_that_writes_random_words_harms_nobody_else() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let count = u32::try_from(words(PAGES)).expect("a small guest");
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        let at = random.random_range(0..count);
        // Mostly words that mean something: a state, with or without a credit.
        let word = match random.random_range(0..8) {
            0 => random.next_u32(),
            1..4 => random.random_range(0..5),
            _ => random.random_range(0..5) | random.random_range(0..CREDITS) << 8,
        };
        scene.write(at, word);
    }
    scene.liar.send(Signal::SIGKILL);
    scene.liar.wait(PATIENCE);
    scene.host.forgets(LIAR, AT_ONCE);
    scene.end();
}
