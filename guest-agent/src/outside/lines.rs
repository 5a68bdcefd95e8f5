//! The lines between a guest and an agent that is a program of its own.

use std::fmt::Write as _;
use std::str::FromStr;

use memvisor_wire::balloon::{Stat, StatTag};
use memvisor_wire::{Gfn, GfnRun};

/// What an agent asks its guest for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    Pin { max: u32, reclaim: bool },
    Unpin(Vec<GfnRun>),
    Total,
    Stats,
    Free { from: Gfn, max: u32, fresh: bool },
    PinFree(Vec<GfnRun>),
    Dropped(Vec<GfnRun>),
    Reclaim(u32),
}

/// What an [`Ask`] may be, for messages.
const ASKS: &str = "pin N, pin N reclaim, pin START+COUNT..., unpin START+COUNT..., total, stats, free FROM N, \
                    free FROM N fresh, dropped START+COUNT... or reclaim N";

impl Ask {
    pub(super) fn line(&self) -> String {
        match self {
            Self::Pin { max, reclaim } => {
                let reclaim = if *reclaim { " reclaim" } else { "" };
                format!("pin {max}{reclaim}\n")
            }
            Self::Unpin(runs) => format!("unpin{}\n", runs_text(runs)),
            Self::Total => "total\n".to_owned(),
            Self::Stats => "stats\n".to_owned(),
            Self::Free { from, max, fresh } => {
                let fresh = if *fresh { " fresh" } else { "" };
                format!("free {} {max}{fresh}\n", from.0)
            }
            Self::PinFree(runs) => format!("pin{}\n", runs_text(runs)),
            Self::Dropped(runs) => format!("dropped{}\n", runs_text(runs)),
            Self::Reclaim(max) => format!("reclaim {max}\n"),
        }
    }
}

impl FromStr for Ask {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let rest: Vec<&str> = words.collect();
        let number = |text: &str| {
            (text.parse::<u32>()).map_err(|_| format!("`{text}` is not a number of pages"))
        };
        match (first, rest.as_slice()) {
            ("pin", runs) if runs.iter().any(|run| run.contains('+')) => {
                Ok(Self::PinFree(parse_runs(runs)?))
            }
            ("pin", [max]) => Ok(Self::Pin {
                max: number(max)?,
                reclaim: false,
            }),
            ("pin", [max, "reclaim"]) => Ok(Self::Pin {
                max: number(max)?,
                reclaim: true,
            }),
            ("unpin", runs) => Ok(Self::Unpin(parse_runs(runs)?)),
            ("total", []) => Ok(Self::Total),
            ("stats", []) => Ok(Self::Stats),
            ("free", [from, max, rest @ ..]) if matches!(rest, [] | ["fresh"]) => Ok(Self::Free {
                from: Gfn(number(from)?),
                max: number(max)?,
                fresh: !rest.is_empty(),
            }),
            ("dropped", runs) => Ok(Self::Dropped(parse_runs(runs)?)),
            ("reclaim", [max]) => Ok(Self::Reclaim(number(max)?)),
            _ => Err(format!("`{line}` is no request: {ASKS}")),
        }
    }
}

/// The runs, each with a space before it.
pub(super) fn runs_text(runs: &[GfnRun]) -> String {
    runs.iter().fold(String::new(), |mut text, run| {
        let _ = write!(text, " {}+{}", run.start.0, run.count);
        text
    })
}

pub(super) fn parse_runs(words: &[&str]) -> Result<Vec<GfnRun>, String> {
    let parse = |word: &&str| {
        let (start, count) = word.split_once('+')?;
        let run = GfnRun::new(Gfn(start.parse().ok()?), count.parse().ok()?);
        (run.count > 0 && run.end() <= 1 << 32).then_some(run)
    };
    let wrong = |word: &str| format!("`{word}` is not START+COUNT, such as 256+4");
    let runs = words
        .iter()
        .map(|word| parse(word).ok_or_else(|| wrong(word)));
    runs.collect()
}

/// Free pages, and before them the page at which to go on.
pub(super) fn free_text(runs: &[GfnRun], next: Option<Gfn>) -> String {
    let next = next.map_or_else(|| END.to_owned(), |next| next.0.to_string());
    format!(" {next}{}", runs_text(runs))
}

/// What stands in place of the page at which to go on where none is left.
const END: &str = "end";

pub(super) fn parse_free(words: &[&str]) -> Option<(Vec<GfnRun>, Option<Gfn>)> {
    let (next, runs) = words.split_first()?;
    let next = match *next {
        END => None,
        next => Some(Gfn(next.parse().ok()?)),
    };
    Some((parse_runs(runs).ok()?, next))
}

pub(super) fn stats_text(stats: &[Stat]) -> String {
    stats.iter().fold(String::new(), |mut text, stat| {
        let _ = write!(text, " {}={}", stat.tag.0, stat.value);
        text
    })
}

pub(super) fn parse_stats(words: &[&str]) -> Vec<Stat> {
    let parse = |word: &&str| {
        let (tag, value) = word.split_once('=')?;
        Some(Stat::new(StatTag(tag.parse().ok()?), value.parse().ok()?))
    };
    words.iter().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_back() {
        let runs = vec![GfnRun::new(Gfn(256), 4), GfnRun::new(Gfn(9), 1)];
        let pin = |reclaim| Ask::Pin { max: 7, reclaim };
        let free = |fresh| Ask::Free {
            from: Gfn(5),
            max: 7,
            fresh,
        };
        for (ask, line) in [
            (pin(false), "pin 7\n"),
            (pin(true), "pin 7 reclaim\n"),
            (Ask::PinFree(runs.clone()), "pin 256+4 9+1\n"),
            (Ask::Dropped(runs.clone()), "dropped 256+4 9+1\n"),
            (Ask::Unpin(runs.clone()), "unpin 256+4 9+1\n"),
            (free(false), "free 5 7\n"),
            (free(true), "free 5 7 fresh\n"),
            (Ask::Reclaim(7), "reclaim 7\n"),
            (Ask::Total, "total\n"),
            (Ask::Stats, "stats\n"),
        ] {
            assert_eq!(ask.line(), line);
            assert_eq!(line.parse(), Ok(ask));
        }
        let stats = vec![Stat::new(StatTag(4), 99)];
        assert_eq!(parse_stats(&[stats_text(&stats).trim()]), stats);
        for (next, text) in [(Some(Gfn(260)), " 260 256+4 9+1"), (None, " end 256+4 9+1")] {
            assert_eq!(free_text(&runs, next), text);
            let words: Vec<&str> = text.split_whitespace().collect();
            assert_eq!(parse_free(&words), Some((runs.clone(), next)));
        }
    }

    #[test]
    fn wrong_lines_are_named_with_what_is_allowed() {
        for (line, part) in [
            ("pin many", "`many`"),
            ("pin 5 please", "pin N reclaim"),
            ("pin 5+1 6", "`6`"),
            ("free 5", "free FROM N"),
            ("free 5 6 stale", "free FROM N fresh"),
            ("unpin 5", "256+4"),
            ("unpin 5+0", "`5+0`"),
            ("unpin 4294967295+2", "`4294967295+2`"),
            ("hello", "`hello`"),
        ] {
            let error = line.parse::<Ask>().expect_err(line);
            assert!(error.contains(part), "{error}");
        }
    }
}
