//! The guests whose balloons are measured.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use memvisor_guest_agent::guest::GuestReport;
use memvisor_wire::balloon::Protocol;

use crate::bench::stage::{Stage, wait_for};
use crate::bench::{BenchError, Setup};
use crate::host::BareVm;
use crate::launch::{Child, Ended, GuestStart};
use crate::page::Home;
use crate::units::Pages;

/// How often a guest is looked at.
const LOOK: Duration = Duration::from_micros(100);
/// How long reports may pause before they count as over: longer than an agent's poll interval.
const QUIET: Duration = Duration::from_millis(2500);

/// Bytes that a guest fills in a millisecond, at least.
const FILL_RATE: u64 = 200_000;

/// Milliseconds after which an agent has told the host about memory that is filled: two polls and a little.
const SAYS_SO: u64 = 2500;

/// What a guest does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Nothing: its memory was never touched.
    Idle,
    /// Nothing, after it has written three quarters of its memory and freed them.
    Freed,
    /// It allocates and frees half of its memory.
    Busy,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Idle, Self::Freed, Self::Busy];

    fn workload(self, pages: u32) -> String {
        let bytes = |pages: u32| Pages(pages.into()).bytes().0;
        match self {
            Self::Idle => "idle".to_owned(),
            Self::Freed => {
                let filled = bytes(Self::filled(pages));
                format!(
                    "idle,size={filled},for={}ms; idle",
                    SAYS_SO + filled / FILL_RATE
                )
            }
            Self::Busy => format!("churn,size={}", bytes(pages / 2)),
        }
    }

    /// Pages that a guest fills and frees.
    const fn filled(pages: u32) -> u32 {
        pages / 4 * 3
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "memory never touched",
            Self::Freed => "memory used and freed",
            Self::Busy => "while the guest allocates",
        })
    }
}

/// `memvisor guest` with a balloon; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct BalloonGuest {
    child: Child,
    pages: u32,
}

impl BalloonGuest {
    pub(super) fn start(
        setup: &Setup<'_>,
        stage: &Stage<'_>,
        protocol: Protocol,
        kind: Kind,
        pages: u32,
    ) -> Result<Self, BenchError> {
        let memory = Pages(pages.into()).bytes();
        let duration = (kind == Kind::Busy).then_some(super::protocols::MEANWHILE);
        let start = GuestStart {
            name: "ballooned",
            memory,
            workloads: &[kind.workload(pages)],
            seed: 1,
            duration,
        };
        let mut args = start.args();
        let dir = stage.dir().path().display().to_string();
        let most = memory.0.to_string();
        let words = ["--runtime-dir", &dir, "--balloon-max", &most];
        let words = words
            .into_iter()
            .chain(["--balloon-protocol", protocol.name()]);
        args.extend(words.map(str::to_owned));
        if kind != Kind::Busy {
            args.push("--balloon-unpaced".to_owned());
        }
        let child = Child::start(start.name, &setup.program, args, &setup.scratch);
        let child = child.map_err(BenchError::io("start a guest"))?;
        Ok(Self { child, pages })
    }

    pub(super) fn name(&self) -> &str {
        self.child.name()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Waits until the agent is there and the guest has done what it does first. A guest that reports what it frees
    /// is ready before it has freed it.
    pub(super) fn is_ready(
        &self,
        vm: &BareVm,
        kind: Kind,
        reports: bool,
    ) -> Result<(), BenchError> {
        wait_for("a balloon agent", || vm.has_agent().then_some(()))?;
        let touched = || self.pages - vm.vm().table.count(Home::Untouched) as u32;
        match kind {
            Kind::Idle => Ok(()),
            Kind::Busy => wait_for("the guest to allocate", || {
                (touched() >= self.pages / 8).then_some(())
            }),
            Kind::Freed => {
                let free = |part: u32| Pages(u64::from(self.pages / 16 * part)).bytes();
                // What the guest says ages: before it has filled its memory it has said that all is free.
                wait_for("the guest to say so", || {
                    (vm.guest_free()? <= free(8)).then_some(())
                })?;
                if reports {
                    return Ok(());
                }
                wait_for("the guest to free its memory", || {
                    (vm.guest_free()? >= free(15)).then_some(())
                })
            }
        }
    }

    /// Waits until the guest has reported the pages that it frees; how many were dropped, and the time from the first
    /// to the last.
    pub(super) fn reports(&self, vm: &BareVm) -> Result<(u64, Duration), BenchError> {
        // At its start it has reported all that it had not touched yet.
        let before = vm.balloon_counts().reported_pages.0;
        let dropped = || vm.balloon_counts().reported_pages.0 - before;
        wait_for("the guest to report free pages", || {
            (dropped() > 0).then_some(())
        })?;
        let start = Instant::now();
        let (mut last, mut seen) = (Duration::ZERO, dropped());
        while start.elapsed() < last + QUIET {
            let now = dropped();
            if now != seen {
                (last, seen) = (start.elapsed(), now);
            }
            thread::sleep(LOOK);
        }
        Ok((seen, last.max(LOOK)))
    }

    /// Waits until the guest has ended; its report. `watch` is called often meanwhile.
    pub(super) fn finish(
        mut self,
        limit: Duration,
        mut watch: impl FnMut(),
    ) -> Result<GuestReport, BenchError> {
        let start = Instant::now();
        let io = BenchError::io("wait for a guest");
        let status = loop {
            if let Some(status) = self.child.ended().map_err(&io)? {
                break status;
            }
            if start.elapsed() > limit {
                let what = "a guest to end".to_owned();
                return Err(BenchError::Overtime { what, limit });
            }
            watch();
            thread::sleep(LOOK);
        };
        let name = self.child.name().to_owned();
        match Ended::of(&self.child, status).map_err(&io)? {
            Ended::Well(report) => Ok(report),
            Ended::Corrupt { pages, .. } => Err(BenchError::Corrupt { name, pages }),
            Ended::Badly { how, log } => Err(BenchError::Failed {
                name,
                how,
                message: log,
            }),
            Ended::Told(_) | Ended::Silent => Err(BenchError::GuestEnded(name)),
        }
    }
}
