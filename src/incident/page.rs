//! Incidents as a page.

use super::{ALL, Outcome};
use crate::view::{self, Report, Run, Table};

/// The names of the columns of [`row`].
pub const HEAD: [&str; 9] = [
    "LAW",
    "OVERSHOOT",
    "%",
    "TURNS",
    "STALL s",
    "OOM",
    "SETTLED s",
    "TAKEN MiB",
    "WORK",
];

/// What a law did, as cells.
#[must_use]
pub fn row(outcome: &Outcome) -> [String; HEAD.len()] {
    let figures = &outcome.figures;
    let settled = figures.settled_s;
    [
        if outcome.as_it_was {
            format!("({})", outcome.law)
        } else {
            outcome.law.to_owned()
        },
        format!("{:.1}", figures.overshoot_mib),
        format!("{:.0}", figures.overshoot_percent),
        figures.oscillations.to_string(),
        format!("{:.2}", figures.stall_s),
        figures.oom_kills.to_string(),
        settled.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.1}")),
        format!("{:.0}", figures.taken_mib),
        format!("{:.1}", figures.accesses_m),
    ]
}

/// The page of one incident: how memory moved under each law.
#[must_use]
pub fn page(outcomes: &[Outcome], command: &str) -> String {
    let name = outcomes.first().map_or("", |first| first.incident);
    let incident = ALL.iter().find(|incident| incident.name == name);
    let facts = incident.map(|incident| {
        [
            (
                "Incident",
                format!("{}: {}", incident.source, incident.about),
            ),
            ("Memory", incident.budget.bytes().to_string()),
            ("Command", command.to_owned()),
        ]
    });
    let runs = outcomes.iter().map(|outcome| Run {
        variant: row(outcome)[0].clone(),
        repetition: 1,
        recording: &outcome.recording,
    });
    view::page(&Report {
        title: format!("memvisor balloon laws: {name}"),
        facts: (facts.into_iter().flatten())
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        unfinished: None,
        runs: runs.collect(),
        expectations: Vec::new(),
        tables: vec![Table {
            caption: "What each law did; in brackets the controller with which it happened"
                .to_owned(),
            head: HEAD.map(str::to_lowercase).into(),
            rows: outcomes.iter().map(|outcome| row(outcome).into()).collect(),
        }],
    })
}
