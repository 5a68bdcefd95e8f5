//! The balloon: how fast memory that a guest does not use comes to the host.
//!
//! It is measured in two ways. The whole way goes from the target to the last page with a real guest: its kernel,
//! its agent and the session. The agent limits its own rate on purpose, so only what it may inflate in its first
//! second is measured. The other way is the host's part alone, on pages that had content, compared with bare hole
//! punching. With `--protocol`, the protocols of the balloon are measured instead ([`protocols`]).

mod guest;
mod protocols;

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use memvisor_wire::balloon::MAX_BATCH_PAGES;

use super::clock::timed;
use super::content::{Class, Content, Source};
use super::report::{Case, Report};
use super::stage::{Stage, StageGuest, wait_for};
use super::{Bench, BenchError, Setup};
use crate::page::Home;
use crate::reclaim::Job;
use crate::sys::{Memfd, PlainMemory};
use crate::units::{Gfn, GfnRun, Pages};

/// The most pages of a guest: 1 GiB.
const MOST: u64 = 1 << 18;
/// Pages of the smallest guest whose kernel has something to spare.
const LEAST: u32 = 256;
/// Pages that an agent inflates at least in its first second (`guest-agent/src/balloon/pace.rs`).
const AT_ONCE: u32 = 16_384;
/// Pages of one lock message, which an agent fills when its guest has much to give.
const RUN: u32 = MAX_BATCH_PAGES;

pub(super) fn run(setup: &Setup<'_>, report: &Report) -> Result<(), BenchError> {
    if !setup.options.protocols.is_empty() {
        return protocols::run(setup, report);
    }
    let pages = setup.pages(MOST).max(LEAST);
    let stage = Stage::new(setup, pages)?;
    for round in 1..=setup.options.rounds {
        setup.step(Bench::Balloon, &format!("round {round}"))?;
        whole_way(setup, &stage, pages, report)?;
        host_part(setup, &stage, pages, report)?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn gb_per_s(pages: u64, time: std::time::Duration) -> f64 {
    Pages(pages).bytes().0 as f64 / 1e9 / time.as_secs_f64().max(1e-9)
}

/// From the target to the last page, by the agent of an idle guest.
fn whole_way(
    setup: &Setup<'_>,
    stage: &Stage<'_>,
    pages: u32,
    report: &Report,
) -> Result<(), BenchError> {
    let _guest = IdleGuest::start(setup, stage, pages)?;
    let vm = stage.powered_on("idle")?;
    wait_for("a balloon agent", || vm.has_agent().then_some(()))?;
    let target = (pages / 2).min(AT_ONCE);
    let (done, took) = timed(|| {
        vm.set_balloon(Pages(target.into()));
        let table = &vm.vm().table;
        wait_for("the balloon to reach its target", || {
            (table.count(Home::Ballooned) >= u64::from(target)).then_some(())
        })
    });
    done?;
    let on = "agent and host, memory never touched";
    let whole = Case::more(Bench::Balloon, &on, "inflate", "GB/s");
    report.ours(&whole, gb_per_s(target.into(), took.wall));
    drop(_guest);
    stage.wait_until_empty()
}

/// The host's part alone: pages with content are given up.
fn host_part(
    setup: &Setup<'_>,
    stage: &Stage<'_>,
    pages: u32,
    report: &Report,
) -> Result<(), BenchError> {
    let source = Source::Class(Class::Random);
    let source = setup.options.source.clone().unwrap_or(source);
    let mut guest = stage.guest("given-up", pages)?;
    guest.fill(&Content::unique(source, 1))?;
    let (inflated, took) = timed(|| inflate_all(&guest, pages));
    let inflated = inflated?;
    let on = "host, memory with content";
    let host = Case::more(Bench::Balloon, &on, "inflate", "GB/s");
    report.ours(&host, gb_per_s(inflated, took.wall));
    drop(guest);
    stage.wait_until_empty()?;

    let io = BenchError::io("punch holes");
    let memfd = Memfd::create("memvisor-bench-punch", pages).map_err(&io)?;
    let memory = PlainMemory::shared(&memfd).map_err(&io)?;
    (0..pages).for_each(|page| memory.poke(page, 1));
    let (punched, took) = timed(|| {
        let mut starts = (0..pages).step_by(RUN as usize);
        starts.try_for_each(|start| memfd.punch(start, RUN.min(pages - start)))
    });
    punched.map_err(&io)?;
    report.peer(&host, "punch", gb_per_s(pages.into(), took.wall));
    Ok(())
}

fn inflate_all(guest: &StageGuest, pages: u32) -> Result<u64, BenchError> {
    for start in (0..pages).step_by(RUN as usize) {
        let run = GfnRun {
            start: Gfn(start),
            count: RUN.min(pages - start),
        };
        let inflate = |answer| Job::Inflate(vec![run], answer);
        if guest.vm.worker().ask(inflate).is_none() {
            return Err(BenchError::GuestEnded("given-up".to_owned()));
        }
    }
    Ok(guest.vm().table.count(Home::Ballooned))
}

/// `memvisor guest` with nothing to do; it ends when this is dropped.
struct IdleGuest(Child);

impl IdleGuest {
    fn start(setup: &Setup<'_>, stage: &Stage<'_>, pages: u32) -> Result<Self, BenchError> {
        let bytes = Pages(pages.into()).bytes().0;
        let child = Command::new(&setup.program)
            .args(["guest", "--die-with-parent", "--json", "--name", "idle"])
            .args(["--workload", "idle", "--memory", &bytes.to_string()])
            .arg("--runtime-dir")
            .arg(stage.dir().path())
            .env("TMPDIR", &setup.scratch)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Ctrl-C in a terminal is for the benchmark alone, which ends its guests itself.
            .process_group(0)
            .spawn();
        child.map(Self).map_err(BenchError::io("start a guest"))
    }
}

impl Drop for IdleGuest {
    fn drop(&mut self) {
        let ended: io::Result<_> = self.0.kill().and_then(|()| self.0.wait());
        // Errors are ignored: it is our child and was not waited for yet, so neither call is expected to fail.
        let _ = ended;
    }
}
