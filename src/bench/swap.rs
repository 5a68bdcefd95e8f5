//! Paging out: to the compression cache, which is compared with zram, and to the swap file.

use super::clock::{process_cpu, rate, timed};
use super::content::{Class, Content, Source};
use super::fault::{at_home, cases, note};
use super::peer::Peers;
use super::puppet::Order;
use super::report::{Case, Report};
use super::stage::{Actor, Stage};
use super::{Bench, BenchError, Setup};
use crate::page::Home;
use crate::units::SlotId;
use crate::vm::Means;

/// Pages moved at most: 1 GiB.
const MOST: u64 = 1 << 18;
/// Pages of the swap file read back at most: each is a read of the disk.
const READ: usize = 4096;

const CACHE: Means = Means {
    compress: true,
    swap: false,
};
const FILE: Means = Means {
    compress: false,
    swap: true,
};

pub(super) fn run(setup: &Setup<'_>, peers: &Peers<'_>, report: &Report) -> Result<(), BenchError> {
    let pages = setup.pages(MOST);
    for source in setup.sources(&[Class::Text, Class::Heap]) {
        let stage = Stage::new(setup, pages)?;
        for round in 1..=setup.options.rounds {
            setup.step(Bench::Swap, &format!("{source}, round {round}"))?;
            let content = Content::unique(source.clone(), round.into());
            ours(&stage, &content, pages, report)?;
            if let Some(zram) = &peers.zram {
                setup.step(Bench::Swap, &format!("{source}, round {round}, zram"))?;
                let (left, cpu) = zram.page_out(&content, pages)?;
                report.peer(&to_cache(&source), "zram", rate(left, cpu));
            }
        }
    }
    Ok(())
}

fn to_cache(source: &Source) -> Case {
    let on = format!("page out to the cache, {source}");
    Case::more(Bench::Swap, &on, "rate", "pages/s of a core")
}

fn to_file(source: &Source) -> Case {
    let on = format!("page out to the swap file, {source}");
    Case::more(Bench::Swap, &on, "rate", "pages/s")
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
    let (evicted, took) = evict(&guest, content.seed, CACHE)?;
    if evicted > 0 {
        report.ours(&to_cache(source), rate(evicted, took.cpu));
    }
    // What went into the cache comes back, so that everything goes to the file this time.
    guest.puppet.verify()?;
    let (evicted, took) = evict(&guest, content.seed, FILE)?;
    report.ours(&to_file(source), rate(evicted, took.wall));
    let mut order = at_home(&guest, content.seed, Home::Swapped(SlotId(0)));
    order.truncate(READ);
    if !order.is_empty() {
        let touches = guest.puppet.touch(&Order::Read(order))?;
        let refills = cases(Bench::Swap, &format!("refill from the swap file, {source}"));
        note(report, &refills, None, touches);
    }
    guest.puppet.verify()?;
    drop(guest);
    stage.wait_until_empty()
}

/// Evicts all; the processor time is of this thread and of the guest, whose shim freezes the pages.
fn evict(guest: &Actor, seed: u64, means: Means) -> Result<(u64, super::clock::Took), BenchError> {
    let proc = BenchError::io("read processor time");
    let before = process_cpu(guest.puppet.pid()).map_err(&proc)?;
    let (evicted, mut took) = timed(|| guest.evict_all(seed, means));
    let after = process_cpu(guest.puppet.pid()).map_err(&proc)?;
    took.cpu += after.saturating_sub(before);
    Ok((evicted?, took))
}
