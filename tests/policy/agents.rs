//! Reclaim from guests that cannot be asked for memory: one without an agent, one that stands still, one whose
//! balloon crawls.

use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use memvisor::telemetry::{FreeState, VmStatus};
use memvisor::units::Pages;
use memvisor_wire::balloon::{RangeBatch, ToHost};
use memvisor_wire::{Gfn, GfnRun, wait_readable};

use super::rig::raw::{Powered, RawAgent};
use super::rig::{Host, eventually};
use super::{PATIENCE, check, end, filled, host, line, mib, of, pair};

in_both_engines!(
    guest_without_an_agent_is_paged_where_one_with_an_agent_is_ballooned,
    guest_that_stands_still_holds_up_nobody_and_is_ballooned_when_it_goes_on,
);

fn stored(vm: &VmStatus) -> Pages {
    Pages(vm.homes.swapped_pages.0 + vm.homes.compressed_pages.0)
}

fn guest_without_an_agent_is_paged_where_one_with_an_agent_is_ballooned(engine: &str) {
    let host = host(engine, "72M", &[]);
    let names = ["with", "without"];
    let words =
        "--memory 48M --workload toucher,size=44M,active=12M,rate=40M,content=random --seed";
    let guests = [
        host.guest(names[0], &format!("{words} 1")),
        host.guest(names[1], &format!("{words} 2 --no-agent")),
    ];
    let since = Instant::now();
    // 88 MiB without equal pages do not fit into 67 MiB.
    let what = "one is ballooned and the other is paged";
    let status = eventually(what, PATIENCE, || {
        let status = host.status();
        check(&status);
        let [with, without] = pair(&status, names)?;
        assert_eq!(without.homes.ballooned_pages, Pages(0), "{without:#?}");
        let done = with.balloon.size_pages >= mib(8) && stored(without) >= mib(6);
        // The host must have enough again. What it took from both guests in the rush may still be out.
        (done && status.free_pages > status.thresholds.soft_pages).then_some(status)
    });
    eprintln!(
        "{engine}: {what} after {:.1?}: {}",
        since.elapsed(),
        line(&status)
    );
    end(host, guests, &[]);
}

fn guest_that_stands_still_holds_up_nobody_and_is_ballooned_when_it_goes_on(engine: &str) {
    let host = host(engine, "72M", &[]);
    let idle = "--memory 48M --workload toucher,size=40M,active=1M,rate=4M,content=random";
    let still = host.guest("still", idle);
    filled(&host, "still", 40);
    let stopped = still.suspend();
    let since = Instant::now();
    // The suspended guest uses nothing, so its memory would be taken first. But its 40 of 67 MiB are out of reach,
    // which leaves 24 MiB for two guests that fill 20 MiB each.
    let words = "--memory 28M --workload toucher,size=20M,rate=20M,content=random";
    let others = ["a", "b"].map(|name| host.guest(name, words));
    for name in ["a", "b"] {
        filled(&host, name, 20);
    }
    eprintln!(
        "{engine}: others have filled their memory after {:.1?}: {}",
        since.elapsed(),
        line(&host.status())
    );
    // The others go on, and one more guest comes and goes.
    let visit = "--memory 12M --workload toucher,size=8M,rate=20M,content=random --duration 2s";
    let mut visitor = host.guest("visitor", visit);
    let report = visitor.verifies();
    assert!(report.pages_verified > mib(8).0, "{report:#?}");
    let stuck = host.vm("still");
    assert_eq!(stuck.homes.ballooned_pages, Pages(0), "{stuck:#?}");

    drop(stopped);
    let since = Instant::now();
    let what = "it is ballooned when it goes on";
    let status = eventually(what, PATIENCE, || {
        let status = host.status();
        check(&status);
        let vm = of(&status, "still")?;
        (vm.balloon.size_pages >= mib(12)).then_some(status)
    });
    eprintln!(
        "{engine}: {what} after {:.1?}: {}",
        since.elapsed(),
        line(&status)
    );
    end(
        host,
        others.into_iter().chain([still]),
        &["wait for memory"],
    );
}

/// The pages that a crawling balloon takes in each [`POLL`] of its agent: 40 a second.
const STEP: u32 = 10;
const POLL: Duration = Duration::from_millis(250);

/// A scripted guest with an agent whose balloon crawls.
struct Crawler {
    guest: Powered,
    agent: RawAgent,
    /// The end of the pages that it has written and not given away.
    last: u32,
}

impl Crawler {
    /// Until `until`, obeys the commands to its memory thread and receives the answers to its agent.
    fn obey(&mut self, until: Instant) {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let sockets = [&self.guest.guest.socket, &self.agent.socket].map(AsFd::as_fd);
            let [command, answer] = wait_readable(sockets, Some(left)).expect("poll");
            if command {
                let command = self.guest.command();
                self.guest.ack(command.seq, command.runs.len() as u32, 0);
            }
            if answer {
                self.agent.receive();
            }
            if !command && !answer {
                return;
            }
        }
    }

    /// Gives away a few of the pages that it uses.
    fn crawl(&mut self) {
        self.last -= STEP;
        let pages = RangeBatch::new(vec![GfnRun::new(Gfn(self.last), STEP)]);
        self.agent.send(&ToHost::Lock(pages.expect("a batch")));
    }
}

fn write(guest: &Powered, pages: Range<u64>) {
    for page in pages {
        guest.write_page(page as u32, page as u8);
    }
}

/// A regression: a balloon that gave a few pages now and then was taken for one at work. The host stayed short of
/// memory for more than a minute, and nothing was evicted.
#[test]
fn balloon_that_crawls_is_not_waited_for() {
    let settings = ["Mem.MemMinFreePct=50", "Mem.ShareRateMax=0"];
    let settings = settings.map(|setting| ["--set", setting]).concat();
    let host = Host::quiet("mprotect", "64M", &settings);
    let guest = Powered::on(&host, "g", 16384);
    let status = host.status();
    let [soft, hard] =
        [&status.thresholds.soft_pages, &status.thresholds.hard_pages].map(|at| at.0);
    // The agent starts when the guest has all that the host can spare. Then the guest writes more, and the host is
    // short.
    let spare = status.free_pages.0 - soft - 64;
    write(&guest, 0..spare);
    let mut agent = RawAgent::connect(&host);
    agent.start(guest.token, 16384);
    let written = spare + 64 + (soft - hard) / 2;
    write(&guest, spare..written);
    let since = Instant::now();
    let short = host.status();
    assert_eq!(short.free_state, FreeState::Soft, "{}", line(&short));
    let last = written as u32;
    let mut crawler = Crawler { guest, agent, last };
    let mut owed = 0;
    let status = loop {
        crawler.crawl();
        crawler.obey(Instant::now() + POLL);
        let status = host.status();
        if status.free_state < FreeState::Soft {
            break status;
        }
        let balloon = &status.vms[0].balloon;
        owed = owed.max(balloon.target_pages.saturating_sub(balloon.size_pages).0);
        assert!(since.elapsed() < PATIENCE, "{}", line(&status));
    };
    let passed = since.elapsed();
    eprintln!(
        "{} pages are free again after {passed:.1?}: {}",
        status.free_pages.0 - short.free_pages.0,
        line(&status)
    );
    let vm = &status.vms[0];
    let brought = vm.balloon.size_pages;
    assert!(
        brought > Pages(0) && brought <= Pages(written - u64::from(crawler.last)),
        "{vm:#?}"
    );
    assert!(owed > 3000, "{vm:#?}");
    assert!(stored(vm) > Pages(1000), "{vm:#?}");
    drop(crawler);
    host.is_empty(PATIENCE);
    host.stop();
}
