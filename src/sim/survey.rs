//! What a survey said that sharing would save must be what it saves.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::bounded;

use super::{Guest, Host};
use crate::page::Home;
use crate::pool::Pool;
use crate::reclaim::Job;
use crate::share::{Estimate, Frequent, SharedSketch, Sketch, Survey};
use crate::units::{FrameId, VmId};

/// What a survey of all guests has found.
pub(super) struct Foreseen {
    sketch: Sketch,
    frequent: Vec<(VmId, Frequent)>,
    /// Pages of each guest that were looked at and are not zero.
    pages: Vec<u64>,
}

impl Foreseen {
    /// Has the workers of the guests look.
    pub(super) fn by_survey(guests: &mut [&mut Guest]) -> Self {
        let sketch = Arc::new(SharedSketch::default());
        let (mut frequent, mut pages) = (Vec::new(), Vec::new());
        for guest in guests {
            // As the policy has it done: what an inline guest has brought is in the page table then.
            guest.vm.settle_done();
            let (answer, wait) = bounded(1);
            let survey = Job::Survey(Box::new(Survey::new(&sketch, answer)));
            assert!(guest.worker.handle.suggest(survey), "a queue with room");
            guest.worker.wait(Duration::ZERO);
            let found = wait.try_recv().expect("the survey is over");
            pages.push(found.pages - found.zero);
            frequent.push((guest.vm.id, found.frequent));
        }
        Self {
            sketch: sketch.take(),
            frequent,
            pages,
        }
    }

    /// Compares it with what sharing saves on a host that has come to rest; `false`: other pages are in RAM now, because
    /// some worker had more to do than to scan.
    pub(super) fn check(&self, host: &Host, guests: &[&mut Guest]) -> bool {
        let in_ram = |guest: &&mut Guest| {
            let table = &guest.vm.table;
            table.count(Home::Resident) + table.count(Home::Shared(FrameId(0)))
        };
        if !guests.iter().map(in_ram).eq(self.pages.iter().copied()) {
            return false;
        }
        // By the domains of now: one may have been on its way to another.
        let domains = guests.iter().map(|it| (it.vm.id, domain(host, it)));
        let domains: HashMap<VmId, usize> = domains.collect();
        let saved = |users: &[(VmId, u32)]| {
            let frames: HashSet<usize> = users.iter().map(|(vm, _)| domains[vm]).collect();
            let pages: usize = users.iter().map(|(_, count)| *count as usize).sum();
            (pages - frames.len()) as f64
        };
        let estimates =
            (self.sketch).estimates(&self.frequent, 1, |users, add| add(0, saved(users)));
        let saved: u64 = host.pools.iter().map(|pool| pool.counts().saved().0).sum();
        let exact = Estimate {
            pages: saved as f64,
            error: 0.0,
        };
        assert_eq!(estimates, [exact], "what it was to save, and what it saves");
        true
    }
}

/// The number of a guest's sharing domain.
pub(super) fn domain(host: &Host, guest: &Guest) -> usize {
    let is_its = |pool: &Arc<Pool>| Arc::ptr_eq(pool, &guest.vm.pool());
    host.pools.iter().position(is_its).expect("it has one")
}
