//! The report of a run as a page.

use super::Verdict;
use super::compare::Compared;
use super::results::Results;
use super::run::Recordings;
use super::units::{date, number};
use crate::view::{self, Expectation, Report, Table};

/// The page.
pub(super) fn page(results: &Results, recordings: &Recordings) -> String {
    view::page(&report(results, recordings))
}

/// The page of several runs, named by their directories.
pub(super) fn of_many(all: &[(String, &Results, Recordings)]) -> String {
    let runs = all.iter().flat_map(|(name, results, recordings)| {
        let named = report(results, recordings).runs.into_iter();
        named.map(move |run| view::Run {
            variant: format!("{name} {}", run.variant).trim_end().to_owned(),
            ..run
        })
    });
    let names: Vec<&str> = all.iter().map(|(name, ..)| name.as_str()).collect();
    let unfinished = all.iter().filter_map(|(name, results, _)| {
        let why = results.why.as_ref()?;
        Some(format!("{name}: {why}"))
    });
    let unfinished: Vec<String> = unfinished.collect();
    let sides: Vec<_> = all
        .iter()
        .map(|(name, results, _)| (name.clone(), *results))
        .collect();
    view::page(&Report {
        title: names.join(", "),
        facts: Vec::new(),
        unfinished: Some(unfinished.join("; ")).filter(|text| !text.is_empty()),
        runs: runs.collect(),
        expectations: Vec::new(),
        tables: vec![figures(&super::compare::side_by_side(&sides))],
    })
}

/// What the page tells.
fn report<'a>(results: &Results, recordings: &'a Recordings) -> Report<'a> {
    let runs = recordings.iter().flat_map(|(variant, runs)| {
        (1..).zip(runs).map(|(repetition, recording)| view::Run {
            variant: variant.clone(),
            repetition,
            recording,
        })
    });
    Report {
        title: results.heading().to_owned(),
        facts: facts(results),
        unfinished: results.why.clone(),
        runs: runs.collect(),
        expectations: results.verdicts.iter().map(expectation).collect(),
        tables: tables(results),
    }
}

fn facts(results: &Results) -> Vec<(String, String)> {
    let repetitions = || {
        results
            .variants
            .iter()
            .flat_map(|variant| &variant.repetitions)
    };
    let mut seeds: Vec<String> = repetitions().map(|one| one.seed.to_string()).collect();
    seeds.dedup();
    let mut engines: Vec<&str> = repetitions().map(|one| one.engine.as_str()).collect();
    engines.dedup();
    let verified = repetitions().flat_map(|one| &one.guests);
    let verified = verified.fold(0_u64, |sum, guest| {
        // Of a damaged file it may be any number.
        sum.saturating_add(guest.pages_verified)
    });
    [
        ("About", results.about.trim().to_owned()),
        ("Command", results.command.clone()),
        ("Version", results.memvisor.clone()),
        ("Machine", results.machine.to_string()),
        ("Engine", engines.join(", ")),
        ("Seeds", seeds.join(", ")),
        ("Began", date(results.began_unix_s)),
        (
            "Verified",
            format!("{verified} pages, all as they were written"),
        ),
    ]
    .into_iter()
    .filter(|(name, value)| !value.is_empty() && (*name != "Verified" || !results.corrupt))
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn expectation(verdict: &Verdict) -> Expectation {
    Expectation {
        run: match verdict.variant.as_str() {
            "" => "all".to_owned(),
            variant => variant.to_owned(),
        },
        text: format!("{}{}", verdict.text, verdict.allowed()),
        measured: verdict.measured(),
        held: verdict.holds,
    }
}

fn tables(results: &Results) -> Vec<Table> {
    let published: Vec<Vec<String>> = results
        .verdicts
        .iter()
        .filter_map(|verdict| {
            let published = verdict.published.as_ref()?;
            Some(vec![
                verdict.text.clone(),
                verdict.variant.clone(),
                verdict.measured(),
                number(published.value, &verdict.unit),
                published.source.clone(),
            ])
        })
        .collect();
    let mut tables = Vec::new();
    if !published.is_empty() {
        let head = ["figure", "variant", "measured", "published", "by"];
        tables.push(Table {
            caption: "Beside published figures".to_owned(),
            head: head.map(str::to_owned).into(),
            rows: published,
        });
    }
    tables.push(figures(&super::compare::side_by_side(&[(
        String::new(),
        results,
    )])));
    tables
}

/// The figures that each run has, by variant.
fn figures(compared: &Compared) -> Table {
    let mut head = vec!["figure".to_owned()];
    head.extend(compared.sides.iter().map(|side| match side.as_str() {
        "" => "median, least to most".to_owned(),
        side => side.to_owned(),
    }));
    Table {
        caption: "Medians of all runs, and their spread".to_owned(),
        head,
        rows: compared
            .rows
            .iter()
            .map(super::compare::Row::cells)
            .collect(),
    }
}
