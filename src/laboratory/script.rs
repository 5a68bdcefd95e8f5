//! Agents as scripts: what one says, in which order, in a TOML file.
//!
//! A named behaviour is such a file too (`behaviours/`), so that one's own begins as a copy of it. The language has no
//! conditions: what depends on the host's answers (the target, which pages are held) is inside the steps.

use std::collections::BTreeMap;
use std::time::Duration;

use memvisor_wire::balloon::{Capabilities, Protocol, RangeBatch, Stat, StatTag};
use serde::Deserialize;
use strsim::jaro_winkler;

use super::schedule::Time;
use crate::units::{Gfn, GfnRun};

/// The agent of a script.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Script {
    /// What it does, in a sentence.
    pub about: String,
    /// Whether it is the agent of every guest, on memory that may be slow.
    #[serde(default)]
    pub bundled: bool,
    /// The most pages that the memory of a bundled agent gives at once; all if it is not said.
    pub at_most: Option<u32>,
    /// How it names pages, if the host agrees to that.
    #[serde(default)]
    pub protocol: Spoken,
    /// Whether it keeps its pages when the host resets it, and says nothing.
    #[serde(default)]
    pub ignores_reset: bool,
    /// Whether it connects again when its connection has ended.
    #[serde(default)]
    pub comes_back: bool,
    /// What it does.
    #[serde(default)]
    pub step: Vec<Step>,
}

/// A step of a script.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Says `START`, with what is given here in place of what is right.
    #[serde(rename_all = "kebab-case")]
    Start {
        /// The token.
        token: Option<u64>,
        /// The pages of its guest.
        total_pages: Option<u64>,
        /// What it can do; all if it is not said.
        capabilities: Option<Offer>,
        /// The lowest version.
        min_version: Option<u16>,
        /// The highest version.
        max_version: Option<u16>,
    },
    /// Says `GET_TARGET`.
    Poll {
        /// The pages that it claims to hold, in place of those it holds.
        claim: Option<u64>,
    },
    /// Locks free pages until it holds the target, or `pages` more.
    Inflate {
        /// How many, whatever the target is.
        pages: Option<u32>,
    },
    /// Unlocks what it holds over the target, or `pages`.
    Deflate {
        /// How many, whatever the target is.
        pages: Option<u32>,
    },
    /// Locks these pages, without having pinned them: `[[256, 4]]`.
    Lock {
        /// First page and number of pages of each range.
        ranges: Ranges,
    },
    /// Locks `pages` of those that it holds already.
    LockHeld {
        /// How many.
        pages: u32,
    },
    /// Unlocks these pages, whether it holds them or not.
    Unlock {
        /// First page and number of pages of each range.
        ranges: Ranges,
    },
    /// Gives `pages` of those it holds to the guest, and does not tell the host.
    Reuse {
        /// How many.
        pages: u32,
    },
    /// Says `REPORT` of these pages, without having pinned them.
    Report {
        /// First page and number of pages of each range.
        ranges: Ranges,
    },
    /// Says `OFFER` of these pages, whoever has them.
    Offer {
        /// First page and number of pages of each range.
        ranges: Ranges,
    },
    /// Says `GIVE` of what the host wants of the latest offer, without having pinned it.
    Give,
    /// Makes these pages FREE in the shared map, without having pinned them.
    Show {
        /// First page and number of pages of each range.
        ranges: Ranges,
    },
    /// Makes those of these pages USED in the shared map that the host has.
    TakeBack {
        /// First page and number of pages of each range.
        ranges: Ranges,
    },
    /// Says `STATS` with these values, by the numbers of their tags, or with those of its guest.
    Stats {
        /// The values.
        values: Option<Values>,
    },
    /// Says `RELIEF`.
    Relief {
        /// How many pages.
        pages: u64,
    },
    /// Hears what the host says, for a poll or the time that is given.
    Wait {
        /// How long.
        time: Option<TimeSpan>,
    },
    /// Sends these bytes, and waits for nothing: `"00 00 01 00"`.
    Raw {
        /// Hexadecimal digits.
        bytes: Hex,
    },
    /// Says `STOP`.
    Stop,
    /// Ends at once, and leaves its connection to the kernel.
    Die,
    /// Does steps again and again.
    Repeat {
        /// How often; without end if it is not said.
        times: Option<u32>,
        /// The steps.
        steps: Vec<Step>,
    },
}

/// A protocol by its name.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "String")]
pub struct Spoken(pub Protocol);

impl TryFrom<String> for Spoken {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let known = name.parse().map(Self);
        known.map_err(|()| {
            let all = Protocol::ALL.map(Protocol::name).join(", ");
            format!("`{name}` is no protocol: {all}")
        })
    }
}

/// Capabilities by name.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Offer(pub Capabilities);

impl TryFrom<Vec<String>> for Offer {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<Self, String> {
        let mut offered = Capabilities::empty();
        for name in names {
            let known = Capabilities::from_name(&name);
            offered |= known.ok_or_else(|| {
                let all = Capabilities::all().iter_names().map(|(name, _)| name);
                let all: Vec<_> = all.collect();
                format!("`{name}` is no capability: {}", all.join(", "))
            })?;
        }
        Ok(Self(offered))
    }
}

/// Ranges that keep the form of a batch.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Vec<[u32; 2]>")]
pub struct Ranges(pub RangeBatch);

impl TryFrom<Vec<[u32; 2]>> for Ranges {
    type Error = String;

    fn try_from(ranges: Vec<[u32; 2]>) -> Result<Self, String> {
        let run = |[start, count]: [u32; 2]| GfnRun::new(Gfn(start), count);
        let runs = ranges.into_iter().map(run).collect();
        let batch = RangeBatch::new(runs);
        (batch.map(Self)).map_err(|error| format!("{error} (send other ranges with `raw`)"))
    }
}

/// Statistics by the numbers of their tags.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "BTreeMap<String, u64>")]
pub struct Values(pub Vec<Stat>);

impl TryFrom<BTreeMap<String, u64>> for Values {
    type Error = String;

    fn try_from(values: BTreeMap<String, u64>) -> Result<Self, String> {
        let stat = |(tag, value): (String, u64)| {
            let number = (tag.parse()).map_err(|_| format!("`{tag}` is no tag: 0 to 65535"))?;
            Ok(Stat::new(StatTag(number), value))
        };
        values
            .into_iter()
            .map(stat)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// A time in a script.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(transparent)]
pub struct TimeSpan(Time);

impl TimeSpan {
    pub(super) const fn get(self) -> Duration {
        self.0.0
    }
}

/// Bytes in a script.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Hex(pub Vec<u8>);

impl TryFrom<String> for Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits: String = text.split_whitespace().collect();
        let wrong = || format!("`{text}` is not pairs of hexadecimal digits");
        if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
            return Err(wrong());
        }
        let pair = |at| u8::from_str_radix(&digits[at..at + 2], 16);
        let bytes = (0..digits.len()).step_by(2).map(pair);
        bytes
            .collect::<Result<_, _>>()
            .map(Self)
            .map_err(|_| wrong())
    }
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// What is wrong, with its line.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// What it can do, unless a step says otherwise.
    #[must_use]
    pub fn offer(&self) -> Capabilities {
        Capabilities::COMMON | self.protocol.0.capabilities()
    }
}

macro_rules! behaviours {
    ($($name:literal)*) => {
        /// The named behaviours: name and script.
        pub const BEHAVIOURS: &[(&str, &str)] = &[$(($name, include_str!(concat!("behaviours/", $name, ".toml")))),*];
    };
}

behaviours! {
    "well-behaved" "slow" "follower" "greedy" "never-deflates" "oscillates" "refuses" "trickles"
    "reuses-early" "gives-used-pages" "locks-twice" "locks-outside" "unlocks-unlocked" "locks-early"
    "claims-more" "claims-balloon" "wrong-token" "begs" "lies-in-stats" "floods" "ignores-reset"
    "reports-used-pages" "gives-used-hints" "shows-used-pages" "takes-back"
}

/// The script of a named behaviour.
///
/// # Errors
/// That there is none, with the nearest name.
pub fn behaviour(name: &str) -> Result<&'static str, String> {
    if let Some((_, script)) = BEHAVIOURS.iter().find(|(known, _)| *known == name) {
        return Ok(script);
    }
    let near = |known: &str| jaro_winkler(known, name);
    let names = BEHAVIOURS.iter().map(|(known, _)| *known);
    let nearest = names.clone().max_by(|a, b| near(a).total_cmp(&near(b)));
    let all: Vec<_> = names.collect();
    Err(format!(
        "`{name}` is no behaviour; did you mean `{}`? There are {}",
        nearest.unwrap_or_default(),
        all.join(", ")
    ))
}

/// What a script says of itself, without the rest being read.
#[must_use]
pub fn about(script: &str) -> String {
    Script::parse(script).map_or_else(|_| String::new(), |script| script.about)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_behaviour_is_a_script_that_does_something() {
        for (name, script) in BEHAVIOURS {
            let script = Script::parse(script).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(script.bundled == script.step.is_empty(), "{name}");
            assert!(script.about.len() > 10, "{name}: {}", script.about);
        }
        let files = concat!(env!("CARGO_MANIFEST_DIR"), "/src/laboratory/behaviours");
        let files = std::fs::read_dir(files).expect("there").count();
        assert_eq!(files, BEHAVIOURS.len(), "each file is a behaviour");
    }

    #[test]
    fn wrong_scripts_name_what_is_wrong() {
        for (step, part) in [
            ("do = \"lok\"", "`lok`"),
            ("do = \"lock\"\nranges = [[5, 0]]", "range count"),
            ("do = \"raw\"\nbytes = \"0 1x\"", "`0 1x`"),
            ("do = \"start\"\ncapabilities = [\"FLY\"]", "`FLY`"),
            ("do = \"stats\"\nvalues = { many = 1 }", "`many`"),
            ("do = \"wait\"\ntime = \"soon\"", "`soon`"),
            ("do = \"poll\"\nclaims = 1", "`claims`"),
            ("do = \"report\"\nranges = [[5, 1], [5, 1]]", "range start"),
        ] {
            let text = format!("about = \"x\"\n[[step]]\n{step}\n");
            let error = Script::parse(&text).expect_err(step).to_string();
            assert!(error.contains(part), "{error}");
        }
        let error = Script::parse("about = \"x\"\nprotocol = \"lists\"\n").expect_err("a typo");
        assert!(error.to_string().contains("page-lists"), "{error}");
        let error = behaviour("greddy").expect_err("a typo");
        assert!(error.contains("did you mean `greedy`?"), "{error}");
    }
}
