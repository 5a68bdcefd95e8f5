//! What replays have found, beside what was recorded and what is possible.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::bounds::Accesses;
use super::counts::Counts;
use super::error::ReplayError;
use super::machine::{Machine, Played};
use super::split::fair_split;
use super::story::{Doing, Recorded, Story};
use super::{Costs, Options};
use crate::reclaim::victims::Choice;
use crate::recording::Recording;
use crate::trace::format::Stalls;
use crate::units::Pages;
use crate::vm::VmParams;

/// What was replayed, and what came of it.
#[derive(Debug, Serialize)]
pub struct Results {
    /// The memory of the simulated host, in pages.
    pub memory: Pages,
    /// How long the story is, in microseconds.
    pub length_us: u64,
    /// Accesses in it.
    pub accesses: u64,
    /// What takes how long, in nanoseconds.
    pub costs: Costs,
    /// What the recorded host did, if it was recorded.
    pub recorded: Option<Outcome>,
    /// What each policy with each choice of victims did.
    pub outcomes: Vec<Outcome>,
    /// What is possible.
    pub bounds: Vec<Bound>,
    /// What is to be known of the story.
    pub remarks: Vec<String>,
}

/// What a host did with the guests of a story.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// By which policy it divided memory.
    pub policy: String,
    /// By which choice it evicted.
    pub victims: String,
    /// Pages, of all VMs.
    #[serde(flatten)]
    pub counts: Counts,
    /// Pages that were there and were brought back.
    pub refaults: u64,
    /// For how long threads stood still, in microseconds; `None`: not recorded.
    pub stalled_us: Option<u64>,
    /// Faults that found no memory; `None`: not recorded.
    pub starved: Option<u64>,
    /// Accesses that were left out, because no memory came free for them in five seconds.
    pub unserved: u64,
    /// The most memory that was used, in pages; `None`: not recorded.
    pub peak: Option<Pages>,
    /// VM by VM.
    pub vms: Vec<VmOutcome>,
    /// How many steps of the story were played in a second.
    pub steps_per_s: Option<u64>,
    /// Over time.
    #[serde(skip)]
    pub recording: Option<Recording>,
}

/// What a host did with one guest.
#[derive(Clone, Debug, Serialize)]
pub struct VmOutcome {
    /// Its name.
    pub name: String,
    /// Its pages.
    #[serde(flatten)]
    pub counts: Counts,
    /// For how long its threads stood still, in microseconds.
    pub stalled_us: Option<u64>,
}

/// What is possible with as much memory.
#[derive(Debug, Serialize)]
pub struct Bound {
    /// What it is.
    pub name: &'static str,
    /// Pages that are brought back.
    pub refaults: u64,
    /// What threads stand still for that, in microseconds: with the optimum if each page came from where it comes from
    /// soonest, with a split if each came from the swap file. First touches are in it.
    pub stalled_us: u64,
}

/// Replays a story by each policy with each choice of victims.
///
/// # Errors
/// [`ReplayError`].
pub fn replay(story: &Story, options: &Options) -> Result<Results, ReplayError> {
    let mut outcomes = Vec::new();
    for policy in &options.policies {
        for victims in &options.victims {
            let Some(choice) = Choice::named(victims) else {
                continue;
            };
            let began = Instant::now();
            let played = Machine::new(story, options, *policy, choice)?.play()?;
            let speed = speed(story, began.elapsed());
            outcomes.push(outcome(story, (policy.name(), victims), played, speed));
        }
    }
    let is_access = |what| matches!(what, Doing::Read | Doing::Write);
    let accesses = story.steps.iter().filter(|step| is_access(step.what));
    Ok(Results {
        memory: options.memory,
        length_us: story.length_us,
        accesses: accesses.count() as u64,
        costs: options.costs,
        recorded: recorded(story),
        outcomes,
        bounds: bounds(story, options),
        remarks: story.remarks.clone(),
    })
}

fn speed(story: &Story, took: Duration) -> u64 {
    let speed = story.steps.len() as f64 / took.as_secs_f64().max(1e-9);
    speed as u64
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn outcome(story: &Story, (policy, victims): (&str, &str), played: Played, speed: u64) -> Outcome {
    let each = story.vms.iter().zip(&played.counts).zip(&played.stalled);
    let vms = each.map(|((vm, counts), stalled)| VmOutcome {
        name: vm.facts.name.clone(),
        counts: *counts,
        stalled_us: Some(micros(*stalled)),
    });
    let counts = Counts::sum(&played.counts);
    Outcome {
        policy: policy.to_owned(),
        victims: victims.to_owned(),
        counts,
        refaults: counts.refaults(),
        stalled_us: Some(micros(played.stalled.iter().sum())),
        starved: Some(played.starved),
        unserved: played.unserved,
        peak: Some(played.peak),
        vms: vms.collect(),
        steps_per_s: Some(speed),
        recording: Some(played.over_time.into_recording()),
    }
}

fn recorded(story: &Story) -> Option<Outcome> {
    let (host, all) = (story.host.as_ref()?, story.recorded.as_ref()?);
    let stalled = |one: &Recorded| one.stalls.as_ref().map(Stalls::sum_us);
    let vms = story.vms.iter().zip(all).map(|(vm, one)| VmOutcome {
        name: vm.facts.name.clone(),
        counts: one.counts,
        stalled_us: stalled(one),
    });
    let counts = Counts::sum(all.iter().map(|one| &one.counts));
    let victims = host.settings.get("Memvisor.Victims");
    Some(Outcome {
        policy: host.policy.clone(),
        victims: victims.cloned().unwrap_or_default(),
        counts,
        refaults: counts.refaults(),
        stalled_us: all.iter().map(stalled).sum(),
        starved: None,
        unserved: 0,
        peak: None,
        vms: vms.collect(),
        steps_per_s: None,
        recording: None,
    })
}

fn bounds(story: &Story, options: &Options) -> Vec<Bound> {
    let Some(accesses) = Accesses::of(story) else {
        return Vec::new();
    };
    let frames = frames(story, options.memory);
    let footprints = accesses.footprints();
    let touches: u64 = footprints.iter().sum();
    let parts = fair_split(story, frames, &footprints);
    let Costs { touch, swap, .. } = options.costs;
    let bound = |name, refaults: u64, refill: u64| Bound {
        name,
        refaults,
        stalled_us: (touches * touch + refaults * refill) / 1000,
    };
    let cheapest = options.costs.cheapest_refill();
    vec![
        bound("optimum", accesses.optimum(frames.0), cheapest),
        bound(
            "fair split, optimum",
            accesses.split_optimum(&parts),
            cheapest,
        ),
        bound("fair split, LRU", accesses.split_lru(&parts), swap),
    ]
}

/// The memory that is left for pages of guests.
fn frames(story: &Story, memory: Pages) -> Pages {
    let overhead = story.host.as_ref().map_or(Pages(0), |host| host.overhead);
    let tables = story.vms.iter().map(|vm| {
        let params = VmParams {
            name: String::new(),
            pages: vm.facts.pages,
            workload: String::new(),
            inline: false,
            cached: false,
        };
        params.metadata().0
    });
    memory.saturating_sub(Pages(overhead.0 + tables.sum::<u64>()))
}

impl Costs {
    /// These costs, with those that a recorded host has had in their place: the time that its threads stood still for
    /// each page, where at least a hundred pages came like that.
    #[must_use]
    pub fn as_recorded(mut self, story: &Story) -> Self {
        let all = story.recorded.iter().flatten();
        let known: Vec<_> = all
            .filter_map(|one| Some((one.counts, one.stalls.as_ref()?)))
            .collect();
        let mean = |us: u64, pages: u64| (pages >= 100 && us > 0).then(|| us * 1000 / pages);
        let counts = Counts::sum(known.iter().map(|(counts, _)| counts));
        let sum = |of: fn(&Stalls) -> u64| known.iter().map(|(_, stalls)| of(stalls)).sum::<u64>();
        let touches = counts.first_touches + counts.refills_zero;
        for (cost, us, pages) in [
            (&mut self.touch, sum(|it| it.first_touch_us), touches),
            (
                &mut self.zip,
                sum(|it| it.refill_zip_us),
                counts.refills_zip,
            ),
            (
                &mut self.swap,
                sum(|it| it.refill_swap_us),
                counts.refills_swap,
            ),
        ] {
            *cost = mean(us, pages).unwrap_or(*cost);
        }
        self
    }
}
