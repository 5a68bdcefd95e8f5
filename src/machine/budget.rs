//! How large the budget is, as it is given and in bytes.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::Machine;
use crate::units::{Bytes, Pages};

/// What `auto` leaves besides [`OVERHEAD_FLAT`]: one part of the budget in so many.
const OVERHEAD_PART: u64 = 8;
/// What `auto` leaves however small the budget is.
const OVERHEAD_FLAT: Bytes = Bytes::from_mib(64);
/// The most percent.
const ALL: u32 = 100;

/// The budget as it is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BudgetChoice {
    /// So much.
    Size(Bytes),
    /// A part of what the machine has, or of what the daemon's cgroup allows if that is less, when the daemon starts.
    Percent(u32),
    /// What the same leaves beside an [`overhead`], also when the limit changes.
    Auto,
}

/// A text that is no budget.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{0}` is no budget; allowed: {allowed}", allowed = Self::ALLOWED)]
pub struct BudgetError(String);

impl BudgetError {
    /// What is allowed.
    pub const ALLOWED: &str = "a size of whole pages, such as 512M, a part of the machine's memory, from 1% to 100%, or auto";
}

/// The machine does not say how much memory it has, or has too little.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Unbounded {
    /// It does not say.
    #[error(
        "--memory {0} needs to know this machine's memory, and neither /proc/meminfo nor a cgroup tells; give a size"
    )]
    Unknown(BudgetChoice),
    /// Nothing would be left.
    #[error("--memory auto: {bound} {memory}, and {flat} of that are for what no budget counts; give a size", flat = OVERHEAD_FLAT)]
    TooSmall {
        /// What bounds the memory.
        bound: String,
        /// How much it is.
        memory: Bytes,
    },
}

impl BudgetChoice {
    /// The budget on this machine.
    ///
    /// # Errors
    /// [`Unbounded`]: how much memory there is, is not known or hardly anything.
    pub fn on(self, machine: &Machine) -> Result<Bytes, Unbounded> {
        if let Self::Size(bytes) = self {
            return Ok(bytes);
        }
        let memory = machine.memory().ok_or(Unbounded::Unknown(self))?;
        let bytes = match self {
            Self::Size(bytes) => bytes.0,
            Self::Percent(percent) => (memory.0 / u64::from(ALL)) * u64::from(percent),
            Self::Auto => {
                let left = memory.0.saturating_sub(OVERHEAD_FLAT.0);
                left / (OVERHEAD_PART + 1) * OVERHEAD_PART
            }
        };
        // Whole pages, downwards.
        let pages = Pages(bytes / Pages(1).bytes().0);
        if pages == Pages(0) {
            let bound = machine.bound();
            return Err(Unbounded::TooSmall { bound, memory });
        }
        Ok(pages.bytes())
    }
}

/// What a host with this budget needs beside it at most: an eighth of the budget and 64 MiB. Of these, the daemon's own
/// program, heap and stacks are the flat part, with the buffers of its sockets and the pages that it writes to swap
/// files. The eighth is for page tables of the daemon, which maps the RAM of all guests and the share pools (8 bytes a
/// page in each mapping), for the kernel's own records of pages that are on their way, and for the programs of guests
/// that run in the same cgroup, about 3 MiB each.
#[must_use]
pub fn overhead(budget: Bytes) -> Bytes {
    Bytes(budget.0 / OVERHEAD_PART + OVERHEAD_FLAT.0)
}

impl fmt::Display for BudgetChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(bytes) => bytes.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for BudgetChoice {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let wrong = || BudgetError(text.escape_debug().to_string());
        let text = text.trim();
        if text == "auto" {
            return Ok(Self::Auto);
        }
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.trim().parse().ok();
            let percent = percent.filter(|percent| (1..=ALL).contains(percent));
            return percent.map(Self::Percent).ok_or_else(wrong);
        }
        let bytes: Option<Bytes> = text.parse().ok();
        let pages = bytes.and_then(Bytes::whole_pages);
        let pages = pages.filter(|pages| *pages > Pages(0));
        Ok(Self::Size(pages.ok_or_else(wrong)?.bytes()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn machine(total: u64, limit: Option<u64>) -> Machine {
        Machine {
            total: Some(Bytes::from_mib(total)),
            limit: limit.map(|limit| (Bytes::from_mib(limit), PathBuf::from("/sys/fs/cgroup/a"))),
            ..Machine::default()
        }
    }

    fn on(text: &str, machine: &Machine) -> Result<u64, String> {
        let budget: BudgetChoice = text.parse().expect("a budget");
        let bytes = budget.on(machine).map_err(|error| error.to_string());
        bytes.map(|bytes| bytes.0 >> 20)
    }

    #[test]
    fn part_is_of_the_machine_or_of_the_cgroup_that_allows_less() {
        assert_eq!(on("50%", &machine(8000, None)), Ok(4000));
        assert_eq!(on("50%", &machine(8000, Some(1000))), Ok(500));
        assert_eq!(on("100 %", &machine(800, None)), Ok(800));
        assert_eq!(
            on("512M", &machine(100, Some(50))),
            Ok(512),
            "it was asked for"
        );
    }

    #[test]
    fn auto_leaves_the_overhead_that_it_says() {
        for (total, limit) in [(8192, None), (8192, Some(640)), (200, Some(100))] {
            let machine = machine(total, limit);
            let budget = BudgetChoice::Auto.on(&machine).expect("enough");
            let memory = machine.memory().expect("known");
            let left = memory.0 - budget.0;
            let overhead = overhead(budget).0;
            assert!(left >= overhead, "{left} {overhead}");
            assert!(
                left < overhead + 2 * 4096 * OVERHEAD_PART,
                "{left} {overhead}"
            );
        }
        assert_eq!(on("auto", &machine(8192, Some(640))), Ok(512));
    }

    #[test]
    fn machine_that_tells_nothing_or_has_next_to_nothing_is_told() {
        let error = on("auto", &Machine::default()).expect_err("unknown");
        assert!(error.contains("--memory auto needs to know"), "{error}");
        assert!(on("20%", &Machine::default()).is_err());
        let error = on("auto", &machine(8192, Some(64))).expect_err("too small");
        let expected = "the daemon's cgroup /sys/fs/cgroup/a allows 64.0 MiB";
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_is_no_budget_is_named_with_what_is_allowed() {
        for text in [
            "", "0", "101%", "0%", "-1%", "Auto", "1.5%", "5000", "x", "%",
        ] {
            let error = text.parse::<BudgetChoice>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("`{text}`")), "{error}");
            assert!(error.contains("from 1% to 100%, or auto"), "{error}");
        }
        for text in ["512.0 MiB", "60%", "auto"] {
            let budget: BudgetChoice = text.parse().expect(text);
            assert_eq!(budget.to_string(), text);
        }
    }
}
