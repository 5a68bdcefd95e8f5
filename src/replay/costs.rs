//! How long things take in a replay.

use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use super::Counts;
use crate::settings::nearest;
use crate::units::{DURATIONS, parse_duration};

/// How long things take, in nanoseconds, a page. A thread that faults stands still for each page that comes with its own
/// too, so a page of a long stream costs as much as one that is asked for: costs that were recorded are means of both.
/// Waits for memory come on top.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Costs {
    /// A page of zeroes.
    pub touch: u64,
    /// A page from the compression cache.
    pub zip: u64,
    /// A page from the swap file.
    pub swap: u64,
    /// A page that is there and was frozen.
    pub open: u64,
    /// Evicting a page, of its VM's worker's time. A fault that waits for memory waits for that.
    pub evict: u64,
}

impl Default for Costs {
    /// Inline faults on the machine of docs/benchmarks.md, and a disk that answers in 100 us.
    fn default() -> Self {
        Self {
            touch: 8_000,
            zip: 12_000,
            swap: 100_000,
            open: 7_000,
            evict: 10_000,
        }
    }
}

/// A text that is no cost.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CostError {
    /// It has no `=`.
    #[error("`{0}` is not NAME=TIME, such as swap=200us")]
    Form(String),
    /// There is no such cost.
    #[error("there is no cost `{name}`{hint}; allowed: touch, zip, swap, open, evict")]
    Name {
        /// What was written.
        name: String,
        /// What may have been meant.
        hint: String,
    },
    /// It is no time.
    #[error("`{0}` is not a time: write {DURATIONS}")]
    Time(String),
}

impl Costs {
    const NAMES: [&str; 5] = ["touch", "zip", "swap", "open", "evict"];

    /// Sets one, from `NAME=TIME`.
    ///
    /// # Errors
    /// [`CostError`].
    pub fn set(&mut self, text: &str) -> Result<(), CostError> {
        let pair = text.split_once('=');
        let (name, time) = pair.ok_or_else(|| CostError::Form(text.to_owned()))?;
        let field = match name {
            "touch" => &mut self.touch,
            "zip" => &mut self.zip,
            "swap" => &mut self.swap,
            "open" => &mut self.open,
            "evict" => &mut self.evict,
            _ => {
                let near = nearest(name, Self::NAMES.into_iter());
                let hint = near.first().map(|near| format!(" (`{near}`?)"));
                return Err(CostError::Name {
                    name: name.to_owned(),
                    hint: hint.unwrap_or_default(),
                });
            }
        };
        let duration = parse_duration(time).ok_or_else(|| CostError::Time(time.to_owned()))?;
        *field = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// For how long a thread stood still that had pages brought, from what was counted before and after.
    pub(super) fn of(&self, before: &Counts, after: &Counts) -> Duration {
        let zeroes = |counts: &Counts| counts.first_touches + counts.refills_zero + counts.pops;
        let each = [
            (self.touch, zeroes(after) - zeroes(before)),
            (self.zip, after.refills_zip - before.refills_zip),
            (self.swap, after.refills_swap - before.refills_swap),
        ];
        Duration::from_nanos(each.iter().map(|(cost, pages)| cost * pages).sum())
    }

    /// The cheapest way in which a page can come back.
    pub(super) fn cheapest_refill(&self) -> u64 {
        self.touch.min(self.zip).min(self.swap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_set_by_name_and_mistakes_are_named() {
        let mut costs = Costs::default();
        costs.set("swap=2ms").expect("right");
        assert_eq!(costs.swap, 2_000_000);
        for (text, said) in [
            ("swap", "`swap` is not NAME=TIME"),
            ("swop=1ms", "no cost `swop` (`swap`?)"),
            ("zip=fast", "`fast` is not a time"),
        ] {
            let error = costs.set(text).expect_err(text).to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
