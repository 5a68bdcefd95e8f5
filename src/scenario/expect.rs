//! Reads what is expected of a scenario.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::expected::{Bound, Expect, Figure, Published, Value};
use super::read::Time;
use super::said::{Known, known};
use super::{Variant, matches};
use crate::settings::{Reading, Scalar, nearest, shown};
use crate::units::{Bytes, parse_duration};

/// What stands for the host in `of`.
const HOST: &str = "host";
/// What stands for all VMs in `of`.
const ALL: &str = "*";

/// A table `[[expect]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct WrittenExpect {
    text: Spanned<String>,
    of: Option<Spanned<String>>,
    series: Spanned<Names>,
    value: Option<Value>,
    from: Option<Spanned<Time>>,
    to: Option<Spanned<Time>>,
    variant: Option<Spanned<String>>,
    per: Option<Spanned<WrittenPer>>,
    at_least: Option<Spanned<Scalar>>,
    at_most: Option<Spanned<Scalar>>,
    published: Option<Published>,
}

/// What a figure is divided by. What is left out is as in the figure.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct WrittenPer {
    of: Option<Spanned<String>>,
    series: Option<Spanned<Names>>,
    value: Option<Value>,
    from: Option<Spanned<Time>>,
    to: Option<Spanned<Time>>,
    variant: Option<Spanned<String>>,
}

/// A name, or several whose values are added up.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "the name of a series, or a list of names")]
enum Names {
    One(String),
    Many(Vec<String>),
}

/// What a figure is read against.
struct Against<'a> {
    known: BTreeMap<String, Known>,
    variants: &'a [Variant],
}

impl Reading {
    /// What is expected of these variants.
    pub(super) fn expects(
        &mut self,
        written: BTreeMap<String, Spanned<WrittenExpect>>,
        variants: &[Variant],
    ) -> Vec<Expect> {
        let mut tables: Vec<_> = written.into_values().collect();
        tables.sort_by_key(|table| table.span().start);
        let against = Against {
            known: known(),
            variants,
        };
        let read = |table: Spanned<WrittenExpect>| {
            let at = table.span();
            let expect = Self::expect(table.get_ref(), &against);
            expect.map_err(|(place, wrong)| {
                let place = if place.is_empty() { at } else { place };
                self.wrong(place, &wrong);
            })
        };
        tables
            .into_iter()
            .map(read)
            .filter_map(Result::ok)
            .collect()
    }

    fn expect(written: &WrittenExpect, against: &Against<'_>) -> Result<Expect, Wrong> {
        let text = written.text.get_ref().clone();
        let bound = Bound {
            at_least: bound("at-least", written.at_least.as_ref())?,
            at_most: bound("at-most", written.at_most.as_ref())?,
        };
        let own = WrittenPer {
            of: written.of.clone(),
            series: Some(written.series.clone()),
            value: written.value,
            from: written.from.clone(),
            to: written.to.clone(),
            variant: written.variant.clone(),
        };
        let (figure, unit) = against.figure(&own)?;
        let per = written.per.as_ref().map(|per| per.get_ref().over(&own));
        let per = per.map(|per| against.figure(&per)).transpose()?;
        // Equal units cancel out.
        let unit = match &per {
            None => unit,
            Some((_, of)) if *of == unit => "ratio".to_owned(),
            Some((_, of)) => format!("{unit} per {of}"),
        };
        Ok(Expect {
            text,
            figure,
            per: per.map(|(per, _)| per),
            unit,
            bound,
            published: written.published.clone(),
        })
    }
}

/// What is wrong, and where.
type Wrong = (std::ops::Range<usize>, String);

impl WrittenPer {
    /// This, with what `own` says in the place of what is left out.
    fn over(&self, own: &Self) -> Self {
        // Another series is perhaps not one of the same owner, so neither is what becomes of its values.
        let is_same = self.series.is_none();
        let own_of = own.of.as_ref().filter(|_| is_same || self.of.is_none());
        Self {
            of: self.of.as_ref().or(own_of).cloned(),
            series: self.series.as_ref().or(own.series.as_ref()).cloned(),
            value: self.value.or(own.value),
            from: self.from.as_ref().or(own.from.as_ref()).cloned(),
            to: self.to.as_ref().or(own.to.as_ref()).cloned(),
            variant: self.variant.as_ref().or(own.variant.as_ref()).cloned(),
        }
    }
}

impl Against<'_> {
    /// A figure and its unit.
    fn figure(&self, written: &WrittenPer) -> Result<(Figure, String), Wrong> {
        let Some(series) = &written.series else {
            return Err((0..0, "series: a figure needs one".to_owned()));
        };
        let names = match series.get_ref() {
            Names::One(name) => std::slice::from_ref(name),
            Names::Many(names) => names,
        };
        let mut found = Vec::new();
        for name in names {
            let one = self.known.get(name);
            found.push(*one.ok_or_else(|| (series.span(), self.no_series(name)))?);
        }
        let Some(first) = found.first() else {
            return Err((series.span(), "series: at least one".to_owned()));
        };
        let alike = |one: &Known| one.is_of_host == first.is_of_host && one.unit == first.unit;
        if !found.iter().all(alike) {
            let text = "series: all must be of the host or all of VMs, and count in one unit";
            return Err((series.span(), text.to_owned()));
        }
        let of = self.of(written, first, &series.span())?;
        let (from_ms, to_ms) = self.window(written)?;
        let variant = self.variant(written)?;
        let usual = if first.is_counter {
            Value::Rate
        } else {
            Value::Mean
        };
        let value = written.value.unwrap_or(usual);
        let unit = match value {
            Value::Rate => format!("{}/s", first.unit),
            _ => first.unit.to_owned(),
        };
        let series = names.to_vec();
        let figure = Figure {
            of_host: first.is_of_host,
            counter: first.is_counter,
            of,
            series,
            value,
            from_ms,
            to_ms,
            variant,
        };
        Ok((figure, unit))
    }

    fn no_series(&self, name: &str) -> String {
        let near = nearest(name, self.known.keys().map(String::as_str));
        let near = match &near[..] {
            [] => String::new(),
            near => format!("near: {}; ", near.join(", ")),
        };
        format!(
            "there is no series `{}`; {near}docs/metrics.md and docs/scenarios.md list them",
            shown(name)
        )
    }

    /// Whose a series is.
    fn of(
        &self,
        written: &WrittenPer,
        first: &Known,
        at: &std::ops::Range<usize>,
    ) -> Result<String, Wrong> {
        let of = match &written.of {
            None if first.is_of_host => return Ok(HOST.to_owned()),
            None => return Ok(ALL.to_owned()),
            Some(of) => of,
        };
        let name = of.get_ref();
        if first.is_of_host {
            let is_host = name == HOST;
            let text = || format!("of: this is a series of the host, not of `{}`", shown(name));
            return is_host
                .then(|| HOST.to_owned())
                .ok_or_else(|| (of.span(), text()));
        }
        let of_all = self
            .variants
            .iter()
            .flat_map(|variant| &variant.setup.guests);
        let names: BTreeSet<&str> = of_all.map(|guest| guest.name.as_str()).collect();
        if names.iter().any(|guest| matches(name, guest)) {
            return Ok(name.clone());
        }
        let names: Vec<_> = names.into_iter().collect();
        let text = format!(
            "of: there is no guest `{}`; allowed: {}, or the beginning of names with a *",
            shown(name),
            names.join(", ")
        );
        Err((
            if of.span().is_empty() {
                at.clone()
            } else {
                of.span()
            },
            text,
        ))
    }

    /// From when to when.
    fn window(&self, written: &WrittenPer) -> Result<(u64, u64), Wrong> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let ends = self.variants.iter().map(|variant| variant.setup.duration);
        let longest = ends.max().unwrap_or_default();
        let time = |time: &Spanned<Time>| time.get_ref().0;
        let from = written.from.as_ref().map_or(Duration::ZERO, time);
        let to = written.to.as_ref().map_or(longest, time);
        if from >= to || to > longest {
            let place = written.from.as_ref().or(written.to.as_ref());
            let text = format!(
                "from {} to {} is no part of the {} of a run",
                Time(from),
                Time(to),
                Time(longest)
            );
            return Err((place.map_or(0..0, Spanned::span), text));
        }
        // What runs to the end takes a last sample that came a little late with it.
        let to = if to == longest { u64::MAX } else { ms(to) };
        Ok((ms(from), to))
    }

    fn variant(&self, written: &WrittenPer) -> Result<Option<String>, Wrong> {
        let Some(variant) = &written.variant else {
            return Ok(None);
        };
        let names: Vec<_> = self
            .variants
            .iter()
            .map(|known| known.name.as_str())
            .collect();
        let name = variant.get_ref();
        if names.contains(&name.as_str()) {
            return Ok(Some(name.clone()));
        }
        let near = nearest(name, names.iter().copied());
        let names = if near.is_empty() { names } else { near };
        let text = format!(
            "variant: there is no variant `{}`; allowed: {}",
            shown(name),
            names.join("; ")
        );
        Err((variant.span(), text))
    }
}

fn bound(name: &str, value: Option<&Spanned<Scalar>>) -> Result<Option<f64>, Wrong> {
    let Some(value) = value else {
        return Ok(None);
    };
    let text = value.get_ref().to_string();
    let number = number(&text).ok_or_else(|| {
        let text = shown(&text);
        let wrong =
            format!("{name} cannot be `{text}`; allowed: a number, a percentage, a size or a time");
        (value.span(), wrong)
    })?;
    Ok(Some(number))
}

/// A number in the unit of its series: a percentage is a ratio, a size is in bytes, a time in seconds.
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let plain = text.parse::<f64>().ok();
    let percent = || Some(text.strip_suffix('%')?.trim().parse::<f64>().ok()? / 100.0);
    // Units of sizes are capital by custom: `m` is a minute, `M` a mebibyte.
    let time = || {
        let is_time = text.ends_with(['s', 'h', 'm']) && !text.ends_with("pages");
        let time = parse_duration(text).filter(|_| is_time);
        time.map(|time| time.as_secs_f64())
    };
    let size = || text.parse::<Bytes>().ok().map(|size| size.0 as f64);
    let number = plain.or_else(percent).or_else(time).or_else(size);
    number.filter(|number| number.is_finite())
}
