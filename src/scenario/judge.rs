//! Figures of recordings, and whether they are as expected.
//!
//! One run proves little: the speed of a machine differs from one minute to the next. So a figure is that of each
//! repetition, and the median of them is judged, with the spread beside it. A counter that belongs to a VM which died
//! and came back begins at zero again; only what it grew counts.

use serde::{Deserialize, Serialize};

use super::expected::{Bound, Expect, Figure, Published, Value};
use super::matches;
use super::units::number;
use crate::recording::{Column, Recording};

/// An expectation and what was measured of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// What was expected, as a sentence.
    pub text: String,
    /// The variant it was judged in; empty if there is only one, or if variants were compared.
    pub variant: String,
    /// The median of what was measured; `None`: there was nothing to measure.
    pub value: Option<f64>,
    /// What it was in each repetition.
    pub values: Vec<f64>,
    /// What it counts in.
    pub unit: String,
    /// The bounds.
    pub bound: Bound,
    /// Whether it holds; `None` if it has no bounds.
    pub holds: Option<bool>,
    /// What others have published.
    pub published: Option<Published>,
}

impl Verdict {
    /// What was measured, with its spread.
    #[must_use]
    pub fn measured(&self) -> String {
        let of = |value| number(value, &self.unit);
        match (self.value, spread(&self.values)) {
            (None, _) => "nothing".to_owned(),
            (Some(value), Some((least, most))) if least < most => {
                format!("{} ({} to {})", of(value), of(least), of(most))
            }
            (Some(value), _) => of(value),
        }
    }
}

impl Verdict {
    /// What would be right, and what was published, in parentheses; empty if there is neither.
    #[must_use]
    pub fn allowed(&self) -> String {
        let of = |value: f64| number(value, &self.unit);
        let Bound { at_least, at_most } = self.bound;
        let least = at_least.map(|least| format!("at least {}", of(least)));
        let most = at_most.map(|most| format!("at most {}", of(most)));
        let published = self.published.as_ref();
        let published = published
            .map(|published| format!("published: {} ({})", of(published.value), published.source));
        let all: Vec<_> = [least, most, published].into_iter().flatten().collect();
        if all.is_empty() {
            return String::new();
        }
        format!(" ({})", all.join("; "))
    }
}

/// The repetitions of a variant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recorded<'a> {
    /// The name of the variant.
    pub(super) variant: &'a str,
    /// What was recorded of each repetition that ran to its end.
    pub(super) runs: &'a [Recording],
}

/// Judges an expectation in each variant that it is about.
#[must_use]
pub(super) fn judge(expect: &Expect, all: &[Recorded<'_>]) -> Vec<Verdict> {
    let is_meant = |recorded: &&Recorded<'_>| {
        expect
            .figure
            .variant
            .as_deref()
            .is_none_or(|name| name == recorded.variant)
    };
    let judged = all.iter().filter(is_meant);
    judged
        .map(|recorded| verdict(expect, recorded, all))
        .collect()
}

fn verdict(expect: &Expect, recorded: &Recorded<'_>, all: &[Recorded<'_>]) -> Verdict {
    let values = match &expect.per {
        None => each(&expect.figure, recorded),
        Some(per) => match per
            .variant
            .as_deref()
            .filter(|name| *name != recorded.variant)
        {
            // Repetitions of different variants have nothing to do with each other.
            Some(name) => {
                let other = all.iter().find(|other| other.variant == name);
                let divisor = other.and_then(|other| median(&each(per, other)));
                let values = each(&expect.figure, recorded).into_iter();
                values.filter_map(|value| ratio(value, divisor?)).collect()
            }
            None => recorded
                .runs
                .iter()
                .filter_map(|run| ratio(value(&expect.figure, run)?, value(per, run)?))
                .collect(),
        },
    };
    let middle = median(&values);
    let Bound { at_least, at_most } = expect.bound;
    let is_judged = at_least.is_some() || at_most.is_some();
    let holds = middle.is_some_and(|value| {
        at_least.is_none_or(|least| value >= least) && at_most.is_none_or(|most| value <= most)
    });
    Verdict {
        text: expect.text.clone(),
        variant: recorded.variant.to_owned(),
        value: middle,
        values,
        unit: expect.unit.clone(),
        bound: expect.bound,
        holds: is_judged.then_some(holds),
        published: expect.published.clone(),
    }
}

fn each(figure: &Figure, recorded: &Recorded<'_>) -> Vec<f64> {
    let runs = recorded.runs.iter();
    runs.filter_map(|run| value(figure, run)).collect()
}

/// 0 divided by 0 is no number, and neither is anything else.
fn ratio(value: f64, by: f64) -> Option<f64> {
    Some(value / by).filter(|ratio| ratio.is_finite())
}

/// The value of a figure in a recording; `None` if there is none.
#[must_use]
pub(super) fn value(figure: &Figure, recording: &Recording) -> Option<f64> {
    let columns = columns(figure, recording);
    let inside = |at: &u64| (figure.from_ms..=figure.to_ms).contains(at);
    let moments: Vec<usize> = (0..recording.at_ms.len())
        .filter(|moment| inside(&recording.at_ms[*moment]))
        .collect();
    let of = |column: &Column| -> Vec<(f64, f64)> {
        let values = moments.iter();
        values
            .filter_map(|moment| {
                let value = column.get(*moment).copied().flatten()?;
                Some((recording.at_ms[*moment] as f64 / 1000.0, value))
            })
            .collect()
    };
    match figure.value {
        Value::Growth | Value::Rate => {
            let grown = columns
                .iter()
                .map(|column| of(column))
                .filter(|one| one.len() > 1);
            let grown: Vec<f64> = grown.map(|values| grown_in(&values, figure)).collect();
            (!grown.is_empty()).then(|| grown.iter().sum())
        }
        _ => {
            let sums: Vec<f64> = moments
                .iter()
                .filter_map(|moment| {
                    let values = columns.iter();
                    let there: Vec<f64> = values
                        .filter_map(|column| column.get(*moment).copied().flatten())
                        .collect();
                    (!there.is_empty()).then(|| there.iter().sum())
                })
                .collect();
            of_values(figure.value, &sums)
        }
    }
}

fn of_values(value: Value, values: &[f64]) -> Option<f64> {
    let (first, last) = (*values.first()?, *values.last()?);
    Some(match value {
        Value::Mean | Value::Growth | Value::Rate => {
            values.iter().sum::<f64>() / values.len() as f64
        }
        Value::Max => values.iter().copied().fold(first, f64::max),
        Value::Min => values.iter().copied().fold(first, f64::min),
        Value::First => first,
        Value::Last => last,
    })
}

/// By how much a series grew, altogether or in a second. It is given by time in seconds and value.
fn grown_in(values: &[(f64, f64)], figure: &Figure) -> f64 {
    let grown = values.windows(2).map(|pair| {
        let (before, after) = (pair[0].1, pair[1].1);
        let began_again = figure.counter && after < before;
        if began_again { after } else { after - before }
    });
    let grown: f64 = grown.sum();
    let time = values[values.len() - 1].0 - values[0].0;
    match figure.value {
        Value::Rate if time > 0.0 => grown / time,
        _ => grown,
    }
}

/// The columns of a figure that there are.
fn columns<'a>(figure: &Figure, recording: &'a Recording) -> Vec<&'a Column> {
    if figure.of_host {
        let names = figure.series.iter();
        return names.filter_map(|name| recording.host.get(name)).collect();
    }
    let vms = recording.vms.iter();
    vms.filter(|(name, _)| matches(&figure.of, name))
        .flat_map(|(_, columns)| figure.series.iter().filter_map(|name| columns.get(name)))
        .collect()
}

/// The middle of some values, or the mean of the two in the middle.
#[must_use]
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len().is_multiple_of(2) {
        return Some(f64::midpoint(sorted[middle - 1], upper));
    }
    Some(upper)
}

/// The least and the most.
#[must_use]
pub(super) fn spread(values: &[f64]) -> Option<(f64, f64)> {
    let least = values.iter().copied().reduce(f64::min)?;
    let most = values.iter().copied().reduce(f64::max)?;
    Some((least, most))
}

#[cfg(test)]
mod tests;
