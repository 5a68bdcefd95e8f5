//! What of recordings is in the data of a page.
//!
//! A recording has every number of the status, many times a second. A page would be tens of megabytes with all of them,
//! for charts that are some hundred points wide. So the data has the series that charts draw, a column that never changes
//! as its one value, and of runs that are too long only each second, third, ... sample. The page says so where it
//! is so. Counters are in it as they counted, and the page makes rates of them: nothing that happened is lost. Of what is
//! measured at a moment, such as the free memory of the host, a sample that is left out can be the peak that somebody
//! looks for. So two neighbouring values stand for the least and the greatest of all samples from the first of them to
//! the next two, in the order in which they came. The last value is the last sample, which is how a run ended.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Serialize, Serializer};

use super::charts::{self, CHARTS, Chart, Described};
use super::{Expectation, Report, Table};
use crate::recording::{Column, Mark, Recording};

/// The most values in a report, of all runs together: about 3 MB of text.
const MOST_VALUES: usize = 300_000;

/// All that the script gets.
#[derive(Serialize)]
struct Data<'a> {
    charts: &'static [Chart],
    series: BTreeMap<String, Described>,
    /// `None` on the live page.
    report: Option<Page<'a>>,
}

#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    facts: &'a [(String, String)],
    unfinished: Option<&'a str>,
    /// Of how many samples each one is in the data.
    every: usize,
    runs: Vec<Run<'a>>,
    expectations: &'a [Expectation],
    tables: &'a [Table],
}

#[derive(Serialize)]
struct Run<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    variant: &'a str,
    repetition: u32,
    at_ms: Vec<u64>,
    host: BTreeMap<&'a str, Values>,
    vms: BTreeMap<&'a str, BTreeMap<&'a str, Values>>,
    marks: &'a [Mark],
}

/// A column, or the one value that it has at each moment.
#[derive(Serialize)]
#[serde(untagged)]
enum Values {
    Same(Number),
    Each(Vec<Option<Number>>),
}

/// A number that is written without a fraction if it has none.
#[derive(Clone, Copy, PartialEq)]
struct Number(f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        // Up to here a float holds each whole number.
        const EXACT: f64 = (1_u64 << 53) as f64;
        #[expect(clippy::cast_possible_truncation, reason = "a whole number of 53 bits")]
        if self.0.fract() == 0.0 && self.0.abs() <= EXACT {
            to.serialize_i64(self.0 as i64)
        } else {
            to.serialize_f64(self.0)
        }
    }
}

/// The data of a report.
pub(super) fn of_report(report: &Report<'_>) -> String {
    let drawn = charts::described();
    let values = report.runs.iter().map(|run| values(run.recording, &drawn));
    let every = values.sum::<usize>().div_ceil(MOST_VALUES).max(1);
    let runs = report.runs.iter().map(|run| Run {
        variant: &run.variant,
        repetition: run.repetition,
        ..thinned(run.recording, &drawn, every)
    });
    let runs = runs.collect();
    write(&Data {
        charts: CHARTS,
        series: drawn,
        report: Some(Page {
            title: &report.title,
            facts: &report.facts,
            unfinished: report.unfinished.as_deref(),
            every,
            runs,
            expectations: &report.expectations,
            tables: &report.tables,
        }),
    })
}

/// The data of the live page, to which samples come later.
pub(super) fn of_live_page() -> String {
    write(&Data {
        charts: CHARTS,
        series: charts::described(),
        report: None,
    })
}

/// A recording as an event of the live page.
pub(super) fn of_sample(recording: &Recording) -> String {
    write(&thinned(recording, &charts::described(), 1))
}

/// How many values of a recording would be in the data.
fn values(recording: &Recording, drawn: &BTreeMap<String, Described>) -> usize {
    let columns = recording.vms.values().chain([&recording.host]).flatten();
    let columns = columns
        .filter(|(name, _)| drawn.contains_key(*name))
        .count();
    columns * recording.at_ms.len()
}

/// Each `every`-th sample of a recording, and the last one, of the series that are drawn. See the module text.
fn thinned<'a>(
    recording: &'a Recording,
    drawn: &BTreeMap<String, Described>,
    every: usize,
) -> Run<'a> {
    let kept = kept(recording.at_ms.len(), every);
    let of = |columns: &'a BTreeMap<String, Column>| {
        let columns = columns.iter().filter_map(|(name, column)| {
            let described = drawn.get(name)?;
            let mut values: Vec<_> = kept.iter().map(|at| column[*at]).collect();
            if every > 1 && !described.counter {
                keep_peaks(&mut values, column, &kept);
            }
            Some((name.as_str(), packed(&values)?))
        });
        columns.collect::<BTreeMap<_, _>>()
    };
    let vms = recording.vms.iter();
    Run {
        variant: "",
        repetition: 1,
        at_ms: kept.iter().map(|at| recording.at_ms[*at]).collect(),
        host: of(&recording.host),
        vms: vms
            .map(|(vm, columns)| (vm.as_str(), of(columns)))
            .collect(),
        marks: &recording.marks,
    }
}

/// The places of each `every`-th of so many samples, counted from the last one.
fn kept(samples: usize, every: usize) -> Vec<usize> {
    let first = samples.saturating_sub(1) % every;
    (first..samples).step_by(every).collect()
}

/// Makes of each two values the least and the greatest of the samples for which they stand; the last value stays.
fn keep_peaks(values: &mut [Option<f64>], column: &Column, kept: &[usize]) {
    let Some(last) = kept.len().checked_sub(1) else {
        return;
    };
    // From the last one, so that a value without a partner is the first.
    let mut pair = last % 2;
    let mut from = 0;
    while pair < last {
        let window = from..kept[pair + 2];
        from = window.end;
        let [first, second] = extremes(column, window);
        (values[pair], values[pair + 1]) = (first, second);
        pair += 2;
    }
}

/// The least and the greatest of some samples, in the order in which they came.
fn extremes(column: &Column, window: Range<usize>) -> [Option<f64>; 2] {
    let there = || window.clone().filter_map(|at| Some((at, column[at]?)));
    let least = there().min_by(|a, b| a.1.total_cmp(&b.1));
    let greatest = there().max_by(|a, b| a.1.total_cmp(&b.1));
    let mut both = [least, greatest];
    both.sort_by_key(|found| found.map(|(at, _)| at));
    both.map(|found| found.map(|(_, value)| value))
}

/// A column without a value is none.
fn packed(column: &[Option<f64>]) -> Option<Values> {
    let column: Vec<_> = column.iter().map(|value| value.map(Number)).collect();
    let first = *column.first()?;
    if column.iter().any(|value| *value != first) {
        return Some(Values::Each(column));
    }
    first.map(Values::Same)
}

/// As JSON that can stand in an element of a document, whatever is in its texts.
fn write(data: &impl Serialize) -> String {
    let json = serde_json::to_string(data).expect("plain data with keys that are text");
    // Outside of texts there is none.
    json.replace('<', "\\u003c")
}
