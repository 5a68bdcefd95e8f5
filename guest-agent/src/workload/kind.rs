//! What a kind of workload is made of, and the parameters that several kinds have.
//!
//! Each kind is one file with a [`Kind`] and the `Worker` that each of its threads is. The list of all kinds is
//! [`KINDS`]; the help of the command line and the tables of docs/settings.md are made from it.

use std::fmt::{self, Write};
use std::time::Duration;

use memvisor_wire::units::{parse_bytes, parse_duration, parse_pages};

use super::build::{Builder, StartError};
use super::content::Mix;
use super::{KINDS, SpecError, Workers, WorkloadSpec};
use crate::kernel::{Kernel, KernelError};

/// The most threads one workload can have.
pub const MAX_THREADS: u32 = 64;

/// The longest pause, and the latest time after the start.
const LONGEST: Duration = Duration::from_secs(1000 * 3600);

/// The highest rate in bytes per second, low enough for sums of bytes.
const HIGHEST_RATE: u64 = 1 << 52;

/// A kind of workload.
#[derive(Debug)]
pub struct Kind {
    /// The kind as it is written, without its parameters: its name, with `:PATH` if it takes a path.
    pub usage: &'static str,
    /// What the workload does, as the end of a sentence that begins with its name.
    pub does: &'static str,
    /// The parameters, in the order in which they are shown.
    pub parameters: &'static [Parameter],
    /// Whether the workload ends by itself.
    pub(super) ends: bool,
    /// The memory that the workload cannot do without.
    pub(super) need: fn(&WorkloadSpec) -> Need,
    /// Checks how parameters go together. Each alone is right.
    pub(super) check: fn(&WorkloadSpec) -> Result<(), SpecError>,
    /// How much memory the workload works on.
    pub(super) size: fn(&WorkloadSpec, &Kernel) -> Result<Size, KernelError>,
    /// Makes a worker for each thread.
    pub(super) build: fn(&mut Builder<'_>) -> Result<Workers, StartError>,
}

/// A parameter of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// The name.
    pub name: &'static str,
    /// The value if none is given, as it would be written. With `None`, the effect says what holds then.
    pub default: Option<&'static str>,
    /// The values that are allowed.
    pub allowed: Allowed,
    /// What the parameter is.
    pub effect: &'static str,
}

/// The values that a parameter can have.
#[derive(Clone, Copy, Debug)]
pub enum Allowed {
    /// Whole numbers from the first to the second.
    Range(u32, u32),
    /// Values that the function allows, and the words that say which.
    Text(&'static str, fn(&str) -> bool),
    /// The same, for a parameter that can be given several times.
    List(&'static str, fn(&str) -> bool),
}

/// The pages a workload works on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Size {
    /// Memory of its own.
    Memory(u32),
    /// Page cache, which gives way to memory and so needs no room.
    Cache(u32),
    /// Memory that is free again when the workload ends, so that others need not leave room for it.
    Passing(u32),
    /// A part of the memory that no workload asked for, but at least so many pages.
    Rest(u32),
}

/// The memory of a guest that a workload cannot do without, as far as its specification says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// So many pages.
    Pages(u32),
    /// The pages of the file at its path; of a long one so many, if that was asked for.
    File(Option<u32>),
    /// A part of the memory that the guest has: no size was asked for.
    Part,
    /// None that is fixed: the page cache holds what it reads as far as there is room.
    Cache,
}

/// The parameter that all kinds have.
pub(super) const FOR: Parameter = Parameter {
    name: "for",
    default: None,
    allowed: Allowed::Text(
        "a number above 0 with us, ms, s, m or h, such as 30s or 1.5h, at most 1000h",
        |text| parse_lasts(text).is_some(),
    ),
    effect: "of any workload: how long it runs, filling memory included, before it verifies and frees all that \
             it owns; otherwise until the guest ends",
};

pub(super) const SIZE: Parameter = Parameter {
    name: "size",
    default: None,
    allowed: Allowed::Text(
        "at least one page, as a number with B, K, M, G, T or pages, such as 256M",
        |text| parse_pages(text).is_some(),
    ),
    effect: "the memory it works on, otherwise a part of the guest's; of files, the most it reads",
};

pub(super) const THREADS: Parameter = Parameter {
    name: "threads",
    default: Some("1"),
    allowed: Allowed::Range(1, MAX_THREADS),
    effect: "the number of its threads",
};

pub(super) const RATE: Parameter = Parameter {
    name: "rate",
    default: None,
    allowed: Allowed::Text("bytes per second, such as 200M", |text| {
        parse_rate(text).is_some()
    }),
    effect: "the most that all threads together read and write, otherwise as much as they can",
};

pub(super) const PAUSE: Parameter = Parameter {
    name: "pause",
    default: Some("0s"),
    allowed: Allowed::Text(
        "a number with us, ms, s, m or h, such as 10s or 1.5h, at most 1000h",
        |text| parse_time(text).is_some(),
    ),
    effect: "how long each thread waits between two operations",
};

pub(super) const CONTENT: Parameter = Parameter {
    name: "content",
    default: Some("mixed"),
    allowed: Allowed::Text(Mix::NAMES, |text| text.parse::<Mix>().is_ok()),
    effect: "what it writes; mixed: 15 % zeroes, 30 % text, 25 % incompressible, and equal in all guests \
             15 % text and 15 % incompressible; recorded: as the memory of real processes",
};

pub(super) const WRITE: Parameter = Parameter {
    name: "write",
    default: None,
    allowed: Allowed::Range(0, 100),
    effect: "how many of 100 operations write",
};

pub(super) const ZIPF: Parameter = Parameter {
    name: "zipf",
    default: Some("0.99"),
    allowed: Allowed::Text("0 to 10", |text| {
        text.parse()
            .is_ok_and(|exponent| (0.0..=10.0).contains(&exponent))
    }),
    effect: "the exponent of the Zipf distribution; 0 is uniform",
};

impl Kind {
    /// A kind that takes the size that it is given, or a part of the memory, and whose parameters have nothing to do
    /// with each other.
    pub(super) const PLAIN: Self = Self {
        usage: "",
        does: "",
        parameters: &[],
        ends: false,
        need: |spec| spec.pages.map_or(Need::Part, Need::Pages),
        check: |_| Ok(()),
        size: |spec, _| Ok(spec.pages.map_or(Size::Rest(0), Size::Memory)),
        build: |_| Ok(Vec::new()),
    };

    /// The name in a specification.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.usage.trim_end_matches(":PATH")
    }
}

impl Parameter {
    /// The same parameter with another default.
    pub(super) const fn or(self, default: &'static str) -> Self {
        Self {
            default: Some(default),
            ..self
        }
    }
}

impl Allowed {
    /// Whether a parameter can have this value.
    pub(super) fn has(self, text: &str) -> bool {
        match self {
            Self::Range(low, high) => text
                .parse()
                .is_ok_and(|number| (low..=high).contains(&number)),
            Self::Text(_, has) | Self::List(_, has) => has(text),
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(low, high) => write!(f, "{low} to {high}"),
            Self::Text(text, _) | Self::List(text, _) => f.write_str(text),
        }
    }
}

impl fmt::Display for Parameter {
    /// Writes the parameter with its default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        self.default.map_or(Ok(()), |value| write!(f, "={value}"))
    }
}

/// Reads a rate above 0, in bytes per second.
pub(super) fn parse_rate(text: &str) -> Option<u64> {
    parse_bytes(text).filter(|rate| (1..=HIGHEST_RATE).contains(rate))
}

/// Reads a time.
pub(super) fn parse_time(text: &str) -> Option<Duration> {
    parse_duration(text).filter(|time| *time <= LONGEST)
}

/// Reads how long a workload runs.
pub(super) fn parse_lasts(text: &str) -> Option<Duration> {
    parse_time(text).filter(|time| !time.is_zero())
}

/// Reads `yes` or `no`.
pub(super) fn parse_yes(text: &str) -> Option<bool> {
    match text {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// Separates what is shown by commas.
pub(super) fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    texts.join(", ")
}

/// All kinds as they are written.
pub(super) fn usages() -> String {
    list(KINDS.iter().map(|kind| kind.usage))
}

/// Each parameter once, as the first kind has it.
pub(super) fn parameters() -> Vec<&'static Parameter> {
    let mut all: Vec<&Parameter> = vec![&FOR];
    for parameter in KINDS.iter().flat_map(|kind| kind.parameters) {
        if all.iter().all(|known| known.name != parameter.name) {
            all.push(parameter);
        }
    }
    all
}

/// The help of an option that takes a workload, in a line.
#[must_use]
pub fn short_help() -> String {
    format!(
        "What the guest runs: {}, each with parameters as in `kv,size=128M`; one after the other with `;` \
         between them, at the same time if given more than once",
        usages()
    )
}

/// The help of an option that takes a workload, with all kinds and parameters.
#[must_use]
pub fn long_help() -> String {
    let mut help = "What the guest runs: KIND[:PATH][,PARAMETER=VALUE]..., such as `kv,size=128M`. Workloads that \
                    are given one by one run at the same time. Those of one value, with `;` between them, run one \
                    after the other: `boot; kv,size=128M,for=30s; idle`. Each but the last needs for=TIME, unless \
                    it ends by itself, as boot does.\n\nKinds, with their parameters and defaults:\n"
        .to_owned();
    for kind in KINDS {
        // Writing to a string cannot fail.
        let parameters = list(kind.parameters);
        let _ = writeln!(help, "- {}: {}\n  {parameters}", kind.usage, kind.does);
    }
    help += "\nParameters:";
    for parameter in parameters() {
        let Parameter {
            name,
            allowed,
            effect,
            ..
        } = parameter;
        let _ = write!(help, "\n- {name}: {effect} ({allowed})");
    }
    help
}
