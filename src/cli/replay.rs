//! `memvisor replay`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::exit::{Exit, UsageError};
use super::{complain, print, table, values};
use crate::chain::chain;
use crate::policy::{Policy, policies};
use crate::reclaim::victims;
use crate::replay::story::Story;
use crate::replay::{Bound, Costs, Options, Outcome, Results, page, replay};
use crate::settings::{Key, Layer, Layers, Profile, nearest};
use crate::units::{Bytes, Pages};

#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// A trace that a host has recorded (`memvisor host --record-trace`), lists of accesses, or both. Lists are those of
    /// `memvisor guest --record-accesses`, CSV with the columns time_us, vm, gfn and perhaps write, and records of DAMON.
    #[arg(value_name = "FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,

    /// The policies [default: the recorded one, or esx]; `memvisor policies` lists them.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = policies::named)]
    policy: Vec<&'static dyn Policy>,

    /// The choices of victims [default: the recorded one, or random]; `memvisor get Memvisor.Victims` lists them.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = choice)]
    victims: Vec<&'static str>,

    /// The memory of the host [default: as recorded].
    #[arg(long, value_name = "SIZE", value_parser = values::memory)]
    memory: Option<Bytes>,

    /// A setting of the host, such as Mem.IdleTax=50, instead of the recorded one; may be given more than once.
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::pair)]
    set: Vec<(Key, String)>,

    /// How long something takes, such as swap=200us; touch, zip, swap, open or evict; may be given more than once
    /// [default: as recorded].
    #[arg(long, value_name = "NAME=TIME")]
    cost: Vec<String>,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// Write the replays to this file too, as a page with charts.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A choice of victims, by its name.
fn choice(name: &str) -> Result<&'static str, String> {
    let known = victims::NAMES.into_iter().find(|known| *known == name);
    known.ok_or_else(|| {
        let near = nearest(name, victims::NAMES.into_iter());
        let near = near.first().map(|near| format!(" (`{near}`?)"));
        let near = near.unwrap_or_default();
        let all = victims::NAMES.join(", ");
        format!("there is no choice of victims `{name}`{near}; allowed: {all}")
    })
}

pub(super) fn run(args: &ReplayArgs) -> anyhow::Result<Exit> {
    let story = Story::load(&args.files).map_err(|error| UsageError(chain(&error)))?;
    for remark in &story.remarks {
        complain(remark);
    }
    let options = args.options(&story)?;
    let results = replay(&story, &options)?;
    if let Some(path) = &args.html {
        let page = page(&story, &results);
        std::fs::write(path, page).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&results)?))?;
    } else {
        print(&text(&results))?;
    }
    Ok(Exit::Success)
}

impl ReplayArgs {
    fn options(&self, story: &Story) -> Result<Options, UsageError> {
        let host = story.host.as_ref();
        let mut layer = Layer::default();
        let recorded = host.iter().flat_map(|host| &host.settings);
        for (name, value) in recorded {
            if let Err(error) = layer.put(name, value) {
                complain(&format!("a recorded setting is left out: {error}"));
            }
        }
        for (key, value) in &self.set {
            let put = layer.put(key.spec().name, value);
            put.map_err(|error| UsageError(error.to_string()))?;
        }
        let settings = Layers::new(Profile::default(), Layer::default(), layer).effective();
        let memory = (self.memory.map(Bytes::pages)).or(host.map(|host| host.memory));
        let memory = memory.ok_or_else(|| {
            let text = "--memory SIZE is needed: there is no trace of a host that says it";
            UsageError(text.to_owned())
        })?;
        let mut costs = Costs::default().as_recorded(story);
        for cost in &self.cost {
            costs
                .set(cost)
                .map_err(|error| UsageError(error.to_string()))?;
        }
        Ok(Options {
            policies: self.policies(story)?,
            victims: self.victims(story),
            memory,
            settings,
            costs,
        })
    }

    fn policies(&self, story: &Story) -> Result<Vec<&'static dyn Policy>, UsageError> {
        if !self.policy.is_empty() {
            return Ok(self.policy.clone());
        }
        let Some(host) = &story.host else {
            return Ok(vec![<&dyn Policy>::default()]);
        };
        let recorded = policies::named(&host.policy);
        let text = |error| format!("the recorded policy: {error}; name others with --policy");
        Ok(vec![recorded.map_err(|error| UsageError(text(error)))?])
    }

    fn victims(&self, story: &Story) -> Vec<&'static str> {
        if !self.victims.is_empty() {
            return self.victims.clone();
        }
        let recorded = story.host.as_ref();
        let recorded = recorded.and_then(|host| host.settings.get("Memvisor.Victims"));
        let known = recorded.and_then(|name| choice(name).ok());
        vec![known.unwrap_or(victims::RANDOM)]
    }
}

fn text(results: &Results) -> String {
    let mut rows = vec![
        [
            "HOST", "REFAULTS", "ZIP", "SWAP", "ZERO", "EVICTED", "ZIP", "SWAP", "ZERO", "SPILLED",
            "STARVED", "STALL s", "PEAK", "",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let recorded = results.recorded.iter();
    rows.extend(recorded.map(|outcome| row("recorded: ", outcome)));
    rows.extend(results.outcomes.iter().map(|outcome| row("", outcome)));
    rows.extend(results.bounds.iter().map(bound));
    let costs = &results.costs;
    let us = |nanos: u64| nanos as f64 / 1000.0;
    let mut text = format!(
        "{} accesses to {} VMs in {:.1} s, on {} of memory\n\n{}\n",
        results.accesses,
        results
            .outcomes
            .first()
            .map_or(0, |outcome| outcome.vms.len()),
        results.length_us as f64 / 1e6,
        Pages(results.memory.0).bytes(),
        table::numbers(&rows)
    );
    text += &format!(
        "Pages, and the time for which threads stood still. A first touch takes {} us, a page from the cache {}, from \
         the swap\nfile {}, a frozen one {}; evicting a page takes {} us of a worker.\n",
        us(costs.touch),
        us(costs.zip),
        us(costs.swap),
        us(costs.open),
        us(costs.evict)
    );
    for outcome in results.outcomes.iter().filter(|it| it.unserved > 0) {
        text += &format!(
            "{} {}: {} accesses found no memory in five seconds, and were left out\n",
            outcome.policy, outcome.victims, outcome.unserved
        );
    }
    text
}

fn row(what: &str, outcome: &Outcome) -> Vec<String> {
    let counts = &outcome.counts;
    let known = |number: Option<u64>| number.map_or("-".to_owned(), |it| it.to_string());
    vec![
        format!("{what}{} {}", outcome.policy, outcome.victims),
        outcome.refaults.to_string(),
        counts.refills_zip.to_string(),
        counts.refills_swap.to_string(),
        counts.refills_zero.to_string(),
        counts.evicted().to_string(),
        counts.evicted_zip.to_string(),
        counts.evicted_swap.to_string(),
        counts.evicted_zero.to_string(),
        counts.spilled.to_string(),
        known(outcome.starved),
        outcome.stalled_us.map_or("-".to_owned(), seconds),
        outcome
            .peak
            .map_or("-".to_owned(), |pages| pages.bytes().to_string()),
        String::new(),
    ]
}

fn bound(bound: &Bound) -> Vec<String> {
    let mut row = vec![bound.name.to_owned(), bound.refaults.to_string()];
    row.extend(std::iter::repeat_n("-".to_owned(), 9));
    row.extend([seconds(bound.stalled_us), "-".to_owned(), String::new()]);
    row
}

fn seconds(us: u64) -> String {
    format!("{:.3}", us as f64 / 1e6)
}
