//! The shipped session passes every case, and one that is broken fails the case of what is broken.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use memvisor_wire::balloon::{PageStatus, Start, StatusRun};
use memvisor_wire::{Doorbell, SeqPacketListener};

use super::super::Fault;
use super::*;
use crate::balloon::{BalloonCounters, BalloonHost, BalloonVm, GuestStats, Refusal, serve};
use crate::laboratory::alone::Alone;
use crate::laboratory::schedule::Change;
use crate::units::{Gfn, GfnRun, VmId};

const TOKEN: u64 = 0x1234_5678_9abc_def0;
const RAM: u32 = 8192;

/// Serves `host` at a socket until the process ends; a trial of it whose levers move `alone`.
fn on_trial(
    host: impl BalloonHost + Send + 'static,
    alone: &Arc<Alone>,
) -> (Trial, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("tempdir");
    let socket = dir.path().join("b");
    let listener = SeqPacketListener::bind(&socket).expect("bind");
    let host = Arc::new(host);
    thread::spawn(move || {
        while let Ok(socket) = listener.accept() {
            let host = Arc::clone(&host);
            thread::spawn(move || serve(&socket, &*host, Duration::from_secs(1)));
        }
    });
    let (targets, touches) = (Arc::clone(alone), Arc::clone(alone));
    let set_target: Lever<Pages> = Box::new(move |pages| {
        targets.apply(Change::Target(pages));
        Ok(())
    });
    let touch: Lever<()> = Box::new(move |()| {
        touches.apply(Change::Reset);
        Ok(())
    });
    let trial = Trial {
        socket,
        token: TOKEN,
        pages: RAM,
        set_target: Some(set_target),
        touch: Some(touch),
    };
    (trial, dir)
}

fn alone() -> Arc<Alone> {
    let taps = Box::new(|| None);
    let pages = Pages(RAM.into());
    Arc::new(Alone::new(TOKEN, pages, pages, taps).expect("a doorbell"))
}

struct Shared(Arc<Alone>);

impl BalloonHost for Shared {
    fn connect(&self, start: &Start) -> Result<Box<dyn BalloonVm + '_>, Refusal> {
        self.0.connect(start)
    }
}

#[test]
fn shipped_session_passes_every_case() {
    let alone = alone();
    let (trial, _dir) = on_trial(Shared(Arc::clone(&alone)), &alone);
    let verdicts = run(&trial, &[]).expect("all cases");
    assert_eq!(verdicts.len(), RULES.len());
    let bad: Vec<_> = verdicts
        .iter()
        .filter(|verdict| verdict.fault.is_some())
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn host_without_levers_leaves_what_needs_them_untested() {
    let alone = alone();
    let (mut trial, _dir) = on_trial(Shared(Arc::clone(&alone)), &alone);
    (trial.set_target, trial.touch) = (None, None);
    let only = ["host-doorbell".to_owned(), "host-reset".to_owned()];
    for verdict in run(&trial, &only).expect("cases") {
        assert!(
            matches!(verdict.fault, Some(Fault::Untested(_))),
            "{verdict:?}"
        );
    }
    let error = run(&trial, &["host-dorbell".to_owned()]).expect_err("no case");
    assert!(
        error.contains("`host-dorbell`") && error.contains("host-doorbell"),
        "{error}"
    );
}

/// A host whose ledger lies in one way.
struct Broken {
    alone: Arc<Alone>,
    lie: Lie,
}

#[derive(Clone, Copy)]
enum Lie {
    /// Pages that are locked again are said to be locked for the first time.
    Twice,
    /// Any page is unlocked, in the balloon or not.
    AnyUnlock,
    /// The balloon survives a START.
    Keeps,
    /// The doorbell of the target is never heard.
    NoTarget,
}

struct BrokenVm<'h>(Box<dyn BalloonVm + 'h>, Lie);

impl BalloonHost for Broken {
    fn connect(&self, start: &Start) -> Result<Box<dyn BalloonVm + '_>, Refusal> {
        Ok(Box::new(BrokenVm(self.alone.connect(start)?, self.lie)))
    }
}

impl BalloonVm for BrokenVm<'_> {
    fn id(&self) -> VmId {
        self.0.id()
    }
    fn total_pages(&self) -> u64 {
        self.0.total_pages()
    }
    fn balloon_max(&self) -> u64 {
        self.0.balloon_max()
    }
    fn target(&self) -> u64 {
        if matches!(self.1, Lie::NoTarget) {
            0
        } else {
            self.0.target()
        }
    }
    fn locked(&self) -> u64 {
        self.0.locked()
    }
    fn holds(&self, gfn: Gfn) -> bool {
        self.0.holds(gfn)
    }
    fn lock(&self, runs: &[GfnRun]) -> Vec<StatusRun> {
        let mut answer = self.0.lock(runs);
        if matches!(self.1, Lie::Twice) {
            answer
                .iter_mut()
                .for_each(|part| part.status = PageStatus::Ok);
        }
        answer
    }
    fn unlock(&self, runs: &[GfnRun]) -> Vec<StatusRun> {
        let mut answer = self.0.unlock(runs);
        if matches!(self.1, Lie::AnyUnlock) {
            answer
                .iter_mut()
                .for_each(|part| part.status = PageStatus::Ok);
        }
        answer
    }
    fn release_all(&self) {
        if !matches!(self.1, Lie::Keeps) {
            self.0.release_all();
        }
    }
    fn take_reset(&self) -> bool {
        self.0.take_reset()
    }
    fn is_closing(&self) -> bool {
        self.0.is_closing()
    }
    fn report(&self, stats: &GuestStats) {
        self.0.report(stats);
    }
    fn relief(&self, pages: u64) {
        self.0.relief(pages);
    }
    fn doorbell(&self) -> &Doorbell {
        self.0.doorbell()
    }
    fn counters(&self) -> &BalloonCounters {
        self.0.counters()
    }
}

#[test]
fn broken_hosts_fail_the_cases_of_what_is_broken() {
    for (lie, case) in [
        (Lie::Twice, "host-offered-twice"),
        (Lie::AnyUnlock, "host-never-locked"),
        (Lie::Keeps, "host-start-empties"),
        (Lie::NoTarget, "host-no-doorbell"),
        (Lie::NoTarget, "host-hints-wanted"),
    ] {
        let alone = alone();
        let broken = Broken {
            alone: Arc::clone(&alone),
            lie,
        };
        let (trial, _dir) = on_trial(broken, &alone);
        let only = [
            case.to_owned(),
            "host-capabilities".to_owned(),
            "host-second-start".to_owned(),
        ];
        for verdict in run(&trial, &only).expect("cases") {
            assert_eq!(verdict.is_broken(), verdict.name == case, "{verdict:?}");
        }
    }
}
