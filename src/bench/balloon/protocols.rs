//! The protocols by which an agent can name pages, one after the other on the same guest.
//!
//! Each is measured on memory that the guest never touched, on memory that it has used and freed, and while the guest
//! allocates. The first two are a guest that is idle: what the protocol and the host cost. Neither the agent nor the
//! host limits its rate then, because all protocols would be measured to have the rate of the limit. In the third the
//! agent has its usual pace, since a guest under pressure is what the pace is for.
//!
//! A guest that reports its free pages does so unasked. On memory that it has freed, the time is that from the first
//! page that the host drops to the last.

use std::thread;
use std::time::{Duration, Instant};

use memvisor_wire::balloon::Protocol;

use super::guest::{BalloonGuest, Kind};
use super::{Bench, BenchError, Setup, gb_per_s};
use crate::bench::clock::process_cpu;
use crate::bench::report::{Case, Report};
use crate::bench::stage::Stage;
use crate::host::BareVm;
use crate::page::Home;
use crate::units::Pages;

/// The most pages of a guest: 8 GiB.
const MOST: u64 = 1 << 21;
/// Pages of the smallest guest whose kernel has something to spare.
const LEAST: u32 = 4096;
/// The part of a guest's memory that its balloon is to hold, as in the published measurement: 7 of 8.
const TARGET: (u32, u32) = (7, 8);
/// The part that its balloon is to hold while the guest allocates, which needs half of its memory.
const SQUEEZE: (u32, u32) = (5, 8);
/// How long a guest allocates while its balloon inflates.
pub(super) const MEANWHILE: Duration = Duration::from_secs(6);
/// How long the balloon may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the balloon is looked at.
const LOOK: Duration = Duration::from_micros(100);

/// What was published of virtio-balloon: 7 GB of an idle guest of 8 GB in 4126 ms, 68 % of them for sending page
/// numbers; with ranges (a patch that was never merged) 491 ms.
const PUBLISHED: [(Protocol, &str, f64); 2] = [
    (Protocol::PfnArrays, "virtio", 7.0 / 4.126),
    (Protocol::Ranges, "virtio-sg", 7.0 / 0.491),
];

pub(super) fn run(setup: &Setup<'_>, report: &Report) -> Result<(), BenchError> {
    let pages = setup.pages(MOST).max(LEAST);
    let stage = Stage::new(setup, pages)?;
    for round in 1..=setup.options.rounds {
        for protocol in &setup.options.protocols {
            for kind in Kind::ALL {
                setup.step(
                    Bench::Balloon,
                    &format!("{protocol}, {kind}, round {round}"),
                )?;
                let one = One {
                    setup,
                    stage: &stage,
                    report,
                    protocol: *protocol,
                    kind,
                    pages,
                };
                one.measure()?;
                stage.wait_until_empty()?;
            }
        }
    }
    report.remark(
        "virtio: 7 GB of an idle guest of 8 GB in 4126 ms, 68 % of them for sending page numbers; virtio-sg: the same \
         in 491 ms, with ranges. Both are published figures of another machine."
            .to_owned(),
    );
    Ok(())
}

/// One protocol on one kind of guest.
struct One<'a> {
    setup: &'a Setup<'a>,
    stage: &'a Stage<'a>,
    report: &'a Report,
    protocol: Protocol,
    kind: Kind,
    pages: u32,
}

/// What the balloon did on its way to a target.
struct Way {
    /// When the first page moved, and the last.
    first: Duration,
    last: Duration,
    moved: u64,
    /// Pages beyond the target, at most.
    beyond: u64,
}

/// What had been used at one moment.
struct Used {
    host: Duration,
    guest: Duration,
    messages: u64,
    bytes: u64,
}

impl One<'_> {
    fn measure(&self) -> Result<(), BenchError> {
        let guest =
            BalloonGuest::start(self.setup, self.stage, self.protocol, self.kind, self.pages)?;
        let vm = self.stage.powered_on(guest.name())?;
        if self.kind == Kind::Busy {
            return self.squeeze(guest, &vm);
        }
        vm.lift_balloon_rate();
        let reports = self.protocol == Protocol::Reporting && self.kind == Kind::Freed;
        guest.is_ready(&vm, self.kind, reports)?;
        if reports {
            return self.reports(&guest, &vm);
        }
        let target = share(self.pages, TARGET);
        let before = self.used(&guest, &vm)?;
        let into = follow(&vm, target)?;
        let after = self.used(&guest, &vm)?;
        self.note_way("inflate", &into);
        self.note_cost(&before, &after, into.moved);
        self.less("overshoot", "pages", into.beyond as f64);
        if let Some((_, name, published)) = PUBLISHED.iter().find(|known| known.0 == self.protocol)
        {
            self.report
                .peer(&self.case("inflate", "GB/s"), name, *published);
        }
        let out = follow(&vm, 0)?;
        self.note_way("deflate", &out);
        Ok(())
    }

    /// The guest reports what it has freed, unasked.
    fn reports(&self, guest: &BalloonGuest, vm: &BareVm) -> Result<(), BenchError> {
        let before = self.used(guest, vm)?;
        let way = guest.reports(vm)?;
        let after = self.used(guest, vm)?;
        let way = Way {
            first: Duration::ZERO,
            last: way.1,
            moved: way.0,
            beyond: 0,
        };
        self.more("inflate", "GB/s", gb_per_s(way.moved, way.last));
        self.note_cost(&before, &after, way.moved);
        Ok(())
    }

    /// The guest allocates while its balloon grows to more than it can spare.
    fn squeeze(&self, guest: BalloonGuest, vm: &BareVm) -> Result<(), BenchError> {
        guest.is_ready(vm, self.kind, false)?;
        let target = share(self.pages, SQUEEZE);
        vm.set_balloon(Pages(target));
        let start = Instant::now();
        let (mut beyond, mut most) = (0, 0);
        let report = guest.finish(MEANWHILE + PATIENCE, || {
            let held = vm.vm().table.count(Home::Ballooned);
            beyond = beyond.max(held.saturating_sub(target));
            if start.elapsed() < MEANWHILE {
                most = most.max(held);
            }
        })?;
        self.less("overshoot", "pages", beyond as f64);
        self.more(
            "held at most",
            "% of target",
            most as f64 * 100.0 / target as f64,
        );
        let counts = vm.balloon_counts();
        let paged = vm.guest_paged_out().map_or(0, |bytes| bytes.pages().0);
        self.less("paged by the guest", "pages", paged as f64);
        self.less("reliefs", "count", counts.reliefs as f64);
        self.less("resets", "count", counts.resets as f64);
        let made: u64 = report
            .workloads
            .iter()
            .map(|workload| workload.operations)
            .sum();
        self.more(
            "guest's operations",
            "1/s",
            made as f64 * 1000.0 / report.duration_ms.max(1) as f64,
        );
        Ok(())
    }

    fn note_way(&self, what: &'static str, way: &Way) {
        self.more(what, "GB/s", gb_per_s(way.moved, way.last));
        let (first, last) = match what {
            "inflate" => ("inflate, first page", "inflate, last page"),
            _ => ("deflate, first page", "deflate, last page"),
        };
        self.less(first, "ms", way.first.as_secs_f64() * 1e3);
        self.less(last, "ms", way.last.as_secs_f64() * 1e3);
    }

    /// What the pages that moved have cost, for each GiB.
    fn note_cost(&self, before: &Used, after: &Used, pages: u64) {
        let gib = (Pages(pages).bytes().0 as f64 / f64::from(1 << 30)).max(1e-9);
        let cpu = |before: Duration, after: Duration| {
            after.saturating_sub(before).as_secs_f64() * 1e3 / gib
        };
        self.less(
            "messages",
            "1/GiB",
            (after.messages - before.messages) as f64 / gib,
        );
        self.less(
            "bytes of messages",
            "KiB/GiB",
            (after.bytes - before.bytes) as f64 / 1024.0 / gib,
        );
        self.less("host's processor", "ms/GiB", cpu(before.host, after.host));
        self.less(
            "guest's processor",
            "ms/GiB",
            cpu(before.guest, after.guest),
        );
    }

    fn used(&self, guest: &BalloonGuest, vm: &BareVm) -> Result<Used, BenchError> {
        let io = BenchError::io("read processor times");
        let counts = vm.balloon_counts();
        Ok(Used {
            host: vm.balloon_cpu().map_err(&io)?,
            guest: process_cpu(guest.pid()).map_err(&io)?,
            messages: counts.messages,
            bytes: counts.message_bytes.0,
        })
    }

    fn case(&self, metric: &'static str, unit: &'static str) -> Case {
        Case::more(Bench::Balloon, &self.name(), metric, unit)
    }

    fn name(&self) -> String {
        format!("{}, {}", self.protocol, self.kind)
    }

    fn more(&self, metric: &'static str, unit: &'static str, value: f64) {
        self.report.ours(&self.case(metric, unit), value);
    }

    fn less(&self, metric: &'static str, unit: &'static str, value: f64) {
        let case = Case::less(Bench::Balloon, &self.name(), metric, unit);
        self.report.ours(&case, value);
    }
}

fn share(pages: u32, (part, of): (u32, u32)) -> u64 {
    u64::from(pages) * u64::from(part) / u64::from(of)
}

/// Sets the target and watches the balloon until it is there.
fn follow(vm: &BareVm, target: u64) -> Result<Way, BenchError> {
    let held = || vm.vm().table.count(Home::Ballooned);
    let (start, from) = (Instant::now(), held());
    vm.set_balloon(Pages(target));
    let (mut first, mut beyond) = (None, 0);
    loop {
        let now = held();
        let elapsed = start.elapsed();
        if now != from {
            first = first.or(Some(elapsed));
        }
        if from < target {
            beyond = beyond.max(now.saturating_sub(target));
        } else {
            beyond = beyond.max(target.saturating_sub(now));
        }
        let is_there = if from < target {
            now >= target
        } else {
            now <= target
        };
        if is_there {
            return Ok(Way {
                first: first.unwrap_or(elapsed),
                last: elapsed,
                moved: now.abs_diff(from),
                beyond,
            });
        }
        if elapsed > PATIENCE {
            return Err(BenchError::Overtime {
                what: format!("a balloon of {now} pages to hold {target}"),
                limit: PATIENCE,
            });
        }
        thread::sleep(LOOK);
    }
}
