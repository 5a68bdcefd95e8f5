//! Paging out to the compression cache, which is compared with zram, and to the swap file. Then the way back,
//! in random and in ascending order: for sequential faults, the next pages are brought ahead.

use std::time::Duration;

use super::clock::{Took, process_cpu, rate, timed};
use super::content::{Class, Content, Dice, Source};
use super::driven::{Order, Touches};
use super::fault::{at_home, cases, note};
use super::peer::Peers;
use super::report::{Case, Report};
use super::stage::{Stage, StageGuest};
use super::{Bench, BenchError, Setup, many_vms};
use crate::engine::EngineKind;
use crate::page::Home;
use crate::units::SlotId;
use crate::vm::Means;

/// Pages moved at most: 1 GiB.
const MOST: u64 = 1 << 18;

/// Where pages are evicted to.
struct Store {
    name: &'static str,
    means: Means,
    home: Home,
    /// Pages read back at most.
    read: usize,
    /// The unit of the rate of the way out.
    unit: &'static str,
    time: fn(Took) -> Duration,
}

const CACHE: Store = Store {
    name: "the cache",
    means: Means {
        compress: true,
        swap: false,
    },
    home: Home::Compressed(SlotId(0)),
    read: 16_384,
    unit: "pages/s of a core",
    time: |took| took.cpu,
};

const FILE: Store = Store {
    name: "the swap file",
    means: Means {
        compress: false,
        swap: true,
    },
    home: Home::Swapped(SlotId(0)),
    // Fewer, because in random order each page is a read of the disk.
    read: 4096,
    unit: "pages/s",
    time: |took| took.wall,
};

impl Store {
    fn page_out(&self, source: &Source) -> Case {
        let on = format!("page out to {}, {source}", self.name);
        Case::more(Bench::Swap, &on, "rate", self.unit)
    }
}

/// The order in which pages come back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    Random,
    Ascending,
}

impl Walk {
    const ALL: [Self; 2] = [Self::Random, Self::Ascending];

    /// The pages to touch out of `pages`, which are in random order.
    fn order(self, store: &Store, mut pages: Vec<u32>) -> Vec<u32> {
        if self == Self::Ascending {
            pages.sort_unstable();
        }
        pages.truncate(store.read);
        pages
    }

    /// Notes the rate of all pages together. The times of single pages are noted only for the random order, served by
    /// the host: in ascending order most pages come ahead.
    fn note(
        self,
        report: &Report,
        (store, by): (&Store, By),
        source: &Source,
        peer: Option<&'static str>,
        touches: Touches,
    ) {
        let order = match self {
            Self::Random => "random order",
            Self::Ascending => "ascending",
        };
        let by_itself = match by {
            By::Host => "",
            By::Itself => "inline, ",
        };
        let on = format!("refill from {}, {by_itself}{order}, {source}", store.name);
        if self == Self::Random && by == By::Host {
            note(report, &cases(Bench::Swap, &on), peer, touches);
        }
        let whole = Case::more(Bench::Swap, &on, "rate", "pages/s");
        let total = Duration::from_nanos(touches.total_ns);
        report.note(&whole, peer, rate(touches.pages, total));
    }
}

/// What serves the guest's faults.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Host,
    /// The thread that faults.
    Itself,
}

pub(super) fn run(setup: &Setup<'_>, peers: &Peers<'_>, report: &Report) -> Result<(), BenchError> {
    let pages = setup.pages(MOST);
    for source in setup.sources(&[Class::Text, Class::Heap]) {
        let stage = Stage::new(setup, pages)?;
        let has_inline = stage.host().engine() == EngineKind::Uffd;
        for round in 1..=setup.options.rounds {
            setup.step(Bench::Swap, &format!("{source}, round {round}"))?;
            let content = Content::unique(source.clone(), round.into());
            ours(&stage, &content, pages, report)?;
            if has_inline {
                inline(&stage, &content, pages, report)?;
            }
            if let Some(zram) = &peers.zram {
                setup.step(Bench::Swap, &format!("{source}, round {round}, zram"))?;
                let (left, cpu) = zram.page_out(&content, pages)?;
                report.peer(&CACHE.page_out(&source), "zram", rate(left, cpu));
                for walk in Walk::ALL {
                    let order = walk.order(&CACHE, Dice::new(content.seed, 2).order(pages));
                    let touches = zram.refill(&content, pages, &order)?;
                    for by in [By::Host, By::Itself] {
                        walk.note(report, (&CACHE, by), &source, Some("zram"), touches);
                    }
                }
            }
            setup.step(
                Bench::Swap,
                &format!("{source}, round {round}, VMs at once"),
            )?;
            let page_out = (Bench::Swap, "page out to the cache");
            let work = |guest: &StageGuest| guest.evict_all(guest.vm().id.0.into(), CACHE.means);
            many_vms::run(&stage, page_out, (&source, round), pages, work, report)?;
        }
    }
    Ok(())
}

fn ours(
    stage: &Stage<'_>,
    content: &Content,
    pages: u32,
    report: &Report,
) -> Result<(), BenchError> {
    let source = &content.source;
    let mut guest = stage.guest("paged", pages)?;
    guest.fill(content)?;
    for store in [&CACHE, &FILE] {
        for walk in Walk::ALL {
            let (evicted, took) = evict(&guest, content.seed, store.means)?;
            // Only the first walk counts: pages that came back by refills may be colder than pages just written.
            if walk == Walk::Random && evicted > 0 {
                report.ours(&store.page_out(source), rate(evicted, (store.time)(took)));
            }
            let order = walk.order(store, at_home(&guest, content.seed, store.home));
            if !order.is_empty() {
                let touches = guest.driven.touch(&Order::Read(order))?;
                walk.note(report, (store, By::Host), source, None, touches);
            }
            // Besides verifying, this brings back the pages that were not touched, so that all pages go out next time.
            guest.driven.verify()?;
        }
    }
    drop(guest);
    stage.wait_until_empty()
}

/// The way back from the cache of a guest that serves its faults itself.
fn inline(
    stage: &Stage<'_>,
    content: &Content,
    pages: u32,
    report: &Report,
) -> Result<(), BenchError> {
    let mut guest = stage.inline_guest("inline", pages)?;
    guest.fill(content)?;
    for walk in Walk::ALL {
        guest.evict_all(content.seed, CACHE.means)?;
        let order = walk.order(&CACHE, at_home(&guest, content.seed, CACHE.home));
        if !order.is_empty() {
            let touches = guest.driven.touch(&Order::Read(order))?;
            walk.note(report, (&CACHE, By::Itself), &content.source, None, touches);
        }
        guest.driven.verify()?;
    }
    drop(guest);
    stage.wait_until_empty()
}

/// Evicts all pages. The processor time is that of this thread and of the guest, whose shim freezes the pages.
fn evict(guest: &StageGuest, seed: u64, means: Means) -> Result<(u64, Took), BenchError> {
    let proc = BenchError::io("read processor time");
    let before = process_cpu(guest.driven.pid()).map_err(&proc)?;
    let (evicted, mut took) = timed(|| guest.evict_all(seed, means));
    let after = process_cpu(guest.driven.pid()).map_err(&proc)?;
    took.cpu += after.saturating_sub(before);
    Ok((evicted?, took))
}
