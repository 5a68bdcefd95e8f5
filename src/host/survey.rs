//! Answers what sharing would save: asks the workers of all VMs for a survey, and puts the answers together.

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

/// How long workers may take: less than a client waits for its answer. A page takes half a microsecond, and a worker
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
        for ((id, domain), vm) in self.domains.iter().zip(&mut self.vms) {
            let worth = |users: &[(VmId, u32)]| {
                let own = users.iter().find(|(user, _)| user == id);
                let own = f64::from(own.map_or(0, |(_, count)| *count));
                // Of no page of its own, nothing is saved.
                let sharers = in_domain(&self.domains, domain, users).max(1);
                own - own / f64::from(sharers)
            };
            vm.would_save = pages(sketch.estimate(&self.frequent, worth));
        }
        let within = |users: &[(VmId, u32)]| saved_by(&self.domains, users);
        let by_all = |users: &[(VmId, u32)]| f64::from(all(users)) - 1.0;
        let sum =
            |of: fn(&VmShareEstimate) -> Pages| Pages(self.vms.iter().map(|vm| of(vm).0).sum());
        ShareEstimate {
            looked_at_pages: sum(|vm| vm.looked_at_pages),
            saved_pages: sum(|vm| vm.saved_pages),
            zero_pages: sum(|vm| vm.zero_pages),
            would_save: pages(sketch.estimate(&self.frequent, within)),
            without_salts: pages(sketch.estimate(&self.frequent, by_all)),
            contents: sketch.contents() as u64,
            sampled_percent: sketch.part() * 100.0,
            took_ms: 0,
            vms: self.vms,
            missing: self.missing,
        }
    }
}

/// How many pages have a content.
fn all(users: &[(VmId, u32)]) -> u32 {
    users.iter().map(|(_, count)| count).sum()
}

/// How many of them are in a domain.
fn in_domain(domains: &[(VmId, Domain)], domain: &Domain, users: &[(VmId, u32)]) -> u32 {
    let is_in = |id: &VmId| domains.iter().any(|(vm, its)| vm == id && its == domain);
    let users = users.iter().filter(|(vm, _)| is_in(vm));
    users.map(|(_, count)| count).sum()
}

/// What sharing saves of a content: all but one page in each domain.
fn saved_by(domains: &[(VmId, Domain)], users: &[(VmId, u32)]) -> f64 {
    let domain_of = |id: &VmId| domains.iter().find(|(vm, _)| vm == id).map(|(_, it)| it);
    let mut frames: Vec<&Domain> = users.iter().filter_map(|(vm, _)| domain_of(vm)).collect();
    frames.sort_unstable();
    frames.dedup();
    f64::from(all(users)) - f64::from(u32::try_from(frames.len()).unwrap_or(u32::MAX))
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
