//! Replays as a page.

use super::results::{Bound, Outcome, Results};
use super::story::Story;
use crate::view::{self, Report, Run, Table};

/// The page: charts of all replays, and what they found beside the bounds.
#[must_use]
pub fn page(story: &Story, results: &Results) -> String {
    let runs = results.outcomes.iter().filter_map(|outcome| {
        Some(Run {
            variant: format!("{} {}", outcome.policy, outcome.victims),
            repetition: 1,
            recording: outcome.recording.as_ref()?,
        })
    });
    let recorded = results.recorded.iter().map(|it| row("recorded: ", it));
    let replayed = results.outcomes.iter().map(|it| row("", it));
    let bounds = results.bounds.iter().map(bound);
    let head = ["host", "refaults", "evicted", "spilled", "stall, s", "peak"];
    view::page(&Report {
        title: "memvisor replay".to_owned(),
        facts: facts(story, results),
        unfinished: None,
        runs: runs.collect(),
        expectations: Vec::new(),
        tables: vec![Table {
            caption: "Pages, and the time for which threads stood still".to_owned(),
            head: head.map(str::to_owned).into(),
            rows: recorded.chain(replayed).chain(bounds).collect(),
        }],
    })
}

fn facts(story: &Story, results: &Results) -> Vec<(String, String)> {
    let costs = &results.costs;
    let us = |nanos: u64| nanos as f64 / 1000.0;
    let names = story.vms.iter().map(|vm| vm.facts.name.as_str());
    let accesses = format!(
        "{} in {:.1} s",
        results.accesses,
        results.length_us as f64 / 1e6
    );
    let costs = format!(
        "touch {} us, zip {}, swap {}, open {}, evict {}",
        us(costs.touch),
        us(costs.zip),
        us(costs.swap),
        us(costs.open),
        us(costs.evict)
    );
    let facts = [
        ("Memory", results.memory.bytes().to_string()),
        ("VMs", names.collect::<Vec<_>>().join(", ")),
        ("Accesses", accesses),
        ("Costs", costs),
        ("Remarks", results.remarks.join("; ")),
    ];
    let facts = facts.into_iter().filter(|(_, value)| !value.is_empty());
    facts
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn row(what: &str, outcome: &Outcome) -> Vec<String> {
    let peak = outcome.peak.map(|pages| pages.bytes().to_string());
    vec![
        format!("{what}{} {}", outcome.policy, outcome.victims),
        outcome.refaults.to_string(),
        outcome.counts.evicted().to_string(),
        outcome.counts.spilled.to_string(),
        outcome.stalled_us.map_or_else(String::new, seconds),
        peak.unwrap_or_default(),
    ]
}

fn bound(bound: &Bound) -> Vec<String> {
    let mut row = vec![bound.name.to_owned(), bound.refaults.to_string()];
    row.extend([
        String::new(),
        String::new(),
        seconds(bound.stalled_us),
        String::new(),
    ]);
    row
}

fn seconds(us: u64) -> String {
    format!("{:.3}", us as f64 / 1e6)
}
