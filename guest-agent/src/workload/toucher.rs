//! `toucher`: touches random pages of an active set, whose size changes at given times. The estimators
//! of active memory are tested with it.

use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use super::kind::{Allowed, CONTENT, Kind, PAUSE, Parameter, RATE, SIZE, Size, THREADS, WRITE};
use super::pageset::OwnPages;
use super::spec::{SpecError, parse};
use super::{Failure, Work, Worker, WorkloadSpec};
use memvisor_wire::units::parse_pages;

pub(super) const KIND: Kind = Kind {
    usage: "toucher",
    does: "touches random pages of an active set that can change",
    parameters: &[
        SIZE,
        ACTIVE,
        THEN,
        WRITE.or("50"),
        THREADS,
        RATE,
        PAUSE,
        CONTENT,
    ],
    check,
    size: |spec, _| Ok(spec.pages.map_or(Size::Rest(largest(spec)), Size::Memory)),
    build: |builder| {
        let spec = builder.spec;
        Ok(builder.each_with_pages(|pages, random| Thread {
            pages,
            active: spec.find(&ACTIVE, parse_active).unwrap_or(builder.pages),
            then: spec.all(&THEN, parse_change),
            write: spec.get(&WRITE, parse),
            random,
            started: None,
        }))
    },
    ..Kind::PLAIN
};

const ACTIVE: Parameter = Parameter {
    name: "active",
    default: None,
    allowed: Allowed::Text("0 or a size, such as 16M", |text| {
        parse_active(text).is_some()
    }),
    effect: "the part of its memory that is touched at first, otherwise all; with 0 none is until that changes",
};

const THEN: Parameter = Parameter {
    name: "then",
    default: None,
    allowed: Allowed::List(
        "SIZE@TIME, such as 120M@10s, in order of time, 64 at most",
        |text| parse_change(text).is_some(),
    ),
    effect: "from that time on the active set has that size; may be given several times",
};

/// The most changes of the active set, as [`THEN`] says it. Each step looks through them.
const MAX_CHANGES: usize = 64;

/// Checks that changes are in order, and that no active set is larger than the memory of which it is a part.
fn check(spec: &WorkloadSpec) -> Result<(), SpecError> {
    let changes = spec.all(&THEN, parse_change);
    let is_wrong = |at: &usize| *at >= MAX_CHANGES || changes[*at].0 <= changes[*at - 1].0;
    if let Some(at) = (1..changes.len()).find(is_wrong) {
        let texts = spec.all(&THEN, parse::<String>);
        return Err(SpecError::value(&THEN, texts[at].clone()));
    }
    match spec.pages {
        Some(size) if largest(spec) > size => Err(SpecError::Value {
            name: ACTIVE.name,
            value: format!("{} pages", largest(spec)),
            allowed: format!("at most the size, which is {size} pages"),
        }),
        _ => Ok(()),
    }
}

/// The largest active set that was asked for.
fn largest(spec: &WorkloadSpec) -> u32 {
    let later = spec.all(&THEN, parse_change).into_iter();
    let sizes = later.map(|(_, pages)| pages);
    sizes
        .chain(spec.find(&ACTIVE, parse_active))
        .max()
        .unwrap_or(0)
}

/// Reads the size of an active set, which can be empty: then nothing is done until it grows.
fn parse_active(text: &str) -> Option<u32> {
    match text {
        "0" => Some(0),
        _ => parse_pages(text),
    }
}

/// Reads the size of an active set and the time after the start from which it holds.
fn parse_change(text: &str) -> Option<(Duration, u32)> {
    let (size, at) = text.split_once('@')?;
    Some((super::kind::parse_time(at)?, parse_active(size)?))
}

/// One thread that touches pages of its share.
#[derive(Debug)]
struct Thread {
    pages: OwnPages,
    active: u32,
    then: Vec<(Duration, u32)>,
    write: u8,
    random: StdRng,
    /// When the first step began; the times of `then` count from here.
    started: Option<Instant>,
}

impl Thread {
    /// The size of the active set at this time after the start.
    fn active_at(&self, elapsed: Duration) -> u32 {
        let passed = self.then.iter().rev().find(|(at, _)| *at <= elapsed);
        passed.map_or(self.active, |(_, pages)| *pages)
    }
}

impl Worker for Thread {
    fn pages(&self) -> Option<&OwnPages> {
        Some(&self.pages)
    }

    fn step(&mut self) -> Result<Option<Work>, Failure> {
        let started = *self.started.get_or_insert_with(Instant::now);
        let active = self.active_at(started.elapsed());
        if active == 0 {
            return Ok(None);
        }
        let count = self.pages.share.count(active.min(self.pages.set.pages()));
        if count == 0 && self.then.is_empty() {
            return Ok(None);
        }
        // A thread that has no page of the active set touches its own first page, if the set ever changes.
        let count = count.max(1).min(self.pages.count());
        if count == 0 {
            return Ok(None);
        }
        let number = self.random.random_range(0..count);
        let done = match self.random.random_range(0..100) < self.write {
            true => self.pages.rewrite(number),
            false => self.pages.verify(number),
        };
        done.map(Some)
    }

    fn idle_for(&self) -> Option<Duration> {
        let elapsed = self.started?.elapsed();
        let next = self.then.iter().map(|(at, _)| *at).find(|at| *at > elapsed);
        next.map(|at| at.saturating_sub(elapsed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_sets_are_read_in_their_order_and_no_more_than_fit() {
        let text = "toucher,size=200M,active=40M,then=120M@10s,then=8M@1m";
        let spec: WorkloadSpec = text.parse().expect(text);
        assert_eq!(spec.find(&ACTIVE, parse_active), Some(40 << 8));
        let changes = [(10, 120 << 8), (60, 8 << 8)];
        let changes = changes.map(|(at, pages)| (Duration::from_secs(at), pages));
        assert_eq!(spec.all(&THEN, parse_change), changes);
        assert_eq!(largest(&spec), 120 << 8);

        let changes: String = (1..=64).map(|at| format!(",then=4K@{at}s")).collect();
        let text = format!("toucher{changes}");
        text.parse::<WorkloadSpec>().expect("64 are allowed");
        let error = format!("{text},then=8K@65s").parse::<WorkloadSpec>();
        let error = error.expect_err("one too many").to_string();
        assert!(
            error.contains("`8K@65s`") && error.contains("64 at most"),
            "{error}"
        );
    }
}
