//! Answers what sharing would save: asks the workers of all VMs for a survey, and puts the answers together.

use std::collections::HashMap;
use std::sync::{Arc, TryLockError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};

use super::daemon::Host;
use super::member::Member;
use super::snapshot::sharing_saved;
use crate::control::ControlError;
use crate::reclaim::Job;
use crate::settings::{Domain, VmSettings};
use crate::share::{Estimate, Frequent, SharedSketch, Sketch, Survey, Surveyed};
use crate::telemetry::{EstimatedPages, ShareEstimate, VmShareEstimate};
use crate::units::{Pages, VmId};

/// How long workers may take: less than a client waits for its answer. A page takes about a microsecond, and a worker
/// whose guest is stopped may wait for it.
const PATIENCE: Duration = Duration::from_secs(8);

impl Host {
    /// What sharing would save if it were on for all VMs.
    pub(super) fn estimate_sharing(&self) -> Result<ShareEstimate, ControlError> {
        let _one = match self.survey.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(one)) => one.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(ControlError::Surveying),
        };
        let (members, began) = (self.members.all(), Instant::now());
        let sketch = Arc::new(SharedSketch::default());
        let ask = |member: &Arc<Member>| {
            let (answer, wait) = bounded(1);
            let survey = Box::new(Survey::new(&sketch, answer));
            // A worker that is too far behind takes no job, and counts as one that does not answer in time.
            member.worker.suggest(Job::Survey(survey));
            wait
        };
        let asked: Vec<Receiver<Surveyed>> = members.iter().map(ask).collect();
        let mut answers = Answers::default();
        for (member, wait) in members.iter().zip(asked) {
            match wait.recv_deadline(began + PATIENCE) {
                Ok(surveyed) => {
                    let domain = self.configuration.domain(member.vm.id, &sharing(member));
                    answers.add(member, domain, surveyed);
                }
                // One that has ended is not missed.
                Err(_) if member.is_ending() => {}
                Err(_) => answers.missing.push(member.vm.params.name.clone()),
            }
        }
        let estimate = answers.together(&sketch.take());
        Ok(ShareEstimate {
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..estimate
        })
    }
}

/// The settings of a VM if it shared.
fn sharing(member: &Member) -> VmSettings {
    VmSettings {
        sharing: true,
        ..member.settings()
    }
}

/// What the workers have said.
#[derive(Debug, Default)]
struct Answers {
    vms: Vec<VmShareEstimate>,
    domains: Vec<(VmId, Domain)>,
    frequent: Vec<(VmId, Frequent)>,
    missing: Vec<String>,
}

impl Answers {
    fn add(&mut self, member: &Member, domain: Domain, surveyed: Surveyed) {
        self.domains.push((member.vm.id, domain));
        self.frequent.push((member.vm.id, surveyed.frequent));
        self.vms.push(VmShareEstimate {
            name: member.vm.params.name.clone(),
            looked_at_pages: Pages(surveyed.pages),
            saved_pages: sharing_saved(member),
            zero_pages: Pages(surveyed.zero),
            ..VmShareEstimate::default()
        });
    }

    fn together(mut self, sketch: &Sketch) -> ShareEstimate {
        let places: HashMap<VmId, usize> = (0..)
            .zip(&self.domains)
            .map(|(at, (vm, _))| (*vm, at))
            .collect();
        let all = self.domains.len();
        // A sum for each VM, and behind them what is saved with salts and without.
        let sums = sketch.estimates(&self.frequent, all + 2, |users, add| {
            let mut in_domain: HashMap<&Domain, u32> = HashMap::new();
            let domain = |vm: &VmId| &self.domains[places[vm]].1;
            for (vm, count) in users {
                *in_domain.entry(domain(vm)).or_default() += count;
            }
            for (vm, count) in users {
                let own = f64::from(*count);
                add(places[vm], own - own / f64::from(in_domain[domain(vm)]));
            }
            let pages = f64::from(in_domain.values().sum::<u32>());
            let frames = u32::try_from(in_domain.len()).unwrap_or(u32::MAX);
            add(all, pages - f64::from(frames));
            add(all + 1, pages - 1.0);
        });
        for (vm, would_save) in self.vms.iter_mut().zip(&sums) {
            vm.would_save = pages(*would_save);
        }
        let sum =
            |of: fn(&VmShareEstimate) -> Pages| Pages(self.vms.iter().map(|vm| of(vm).0).sum());
        ShareEstimate {
            looked_at_pages: sum(|vm| vm.looked_at_pages),
            saved_pages: sum(|vm| vm.saved_pages),
            zero_pages: sum(|vm| vm.zero_pages),
            would_save: pages(sums[all]),
            without_salts: pages(sums[all + 1]),
            contents: sketch.contents() as u64,
            sampled_percent: sketch.part() * 100.0,
            took_ms: 0,
            vms: self.vms,
            missing: self.missing,
        }
    }
}

fn pages(Estimate { pages, error }: Estimate) -> EstimatedPages {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and no more than there are pages"
    )]
    let whole = |pages: f64| Pages(pages.round() as u64);
    EstimatedPages {
        pages: whole(pages),
        error_pages: whole(error.ceil()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::Sketch;

    fn vm(name: &str) -> VmShareEstimate {
        VmShareEstimate {
            name: name.to_owned(),
            ..VmShareEstimate::default()
        }
    }

    #[test]
    fn each_vm_has_its_part_and_salts_keep_equal_pages_apart() {
        let salt = |salt: &str| Domain::Salt(salt.to_owned());
        let [a, b, red] = [1, 2, 3].map(VmId);
        let answers = Answers {
            vms: ["a", "b", "red"].map(vm).into(),
            domains: vec![(a, Domain::Common), (b, Domain::Common), (red, salt("red"))],
            frequent: Vec::new(),
            missing: Vec::new(),
        };
        let mut sketch = Sketch::default();
        // One that all have, the first twice; one that two of the same domain have; one of its own.
        sketch.note(a, [1, 1, 2, 3]);
        sketch.note(b, [1, 2]);
        sketch.note(red, [1, 4, 4]);
        let estimate = answers.together(&sketch);
        let exact = |pages| EstimatedPages {
            pages: Pages(pages),
            error_pages: Pages(0),
        };
        assert_eq!(estimate.would_save, exact(2 + 1 + 1));
        assert_eq!(estimate.without_salts, exact(3 + 1 + 1));
        // Two thirds of two pages and a half; two thirds of a page and a half; one of two.
        let parts = estimate.vms.iter().map(|vm| vm.would_save);
        assert!(
            parts.eq([exact(2), exact(1), exact(1)]),
            "{:?}",
            estimate.vms
        );
        assert_eq!((estimate.contents, estimate.sampled_percent), (4, 100.0));
    }
}
