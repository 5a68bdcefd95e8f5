//! What a workload is to do, as text: `kv,size=128M,threads=4,write=20`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use memvisor_wire::PAGE_SIZE;
use thiserror::Error;

use super::content::Mix;
use memvisor_wire::units::{DURATIONS, SIZES, parse_bytes, parse_duration, parse_pages};

/// The most threads one workload can have.
pub const MAX_THREADS: u32 = 64;

/// The most changes of its active set that a toucher can be given.
pub const MAX_CHANGES: usize = 64;

/// The longest pause and the latest change.
const LONGEST: Duration = Duration::from_secs(1000 * 3600);

/// The highest rate in bytes per second, low enough for sums of bytes.
const HIGHEST_RATE: u64 = 1 << 52;

const KINDS: &str = "idle, stream, toucher, kv, files:PATH, image:PATH, churn";

/// The rate of re-reading an image. It is low because the working set of a booted system is small.
const IMAGE_RATE: u64 = 4 << 20;

/// Why a text is not a workload.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecError {
    /// There is no such workload.
    #[error("there is no workload `{0}`; allowed: {KINDS}")]
    Kind(String),
    /// A path is missing, or the workload takes no path.
    #[error("workload `{0}` is not written so; allowed: {KINDS}")]
    Path(String),
    /// The workload has no such parameter.
    #[error("workload `{kind}` has no parameter `{name}`; allowed: {allowed}")]
    Parameter {
        /// The workload.
        kind: &'static str,
        /// The parameter.
        name: String,
        /// The parameters that the workload has.
        allowed: &'static str,
    },
    /// A parameter has a value that is not allowed.
    #[error("parameter `{name}` of a workload cannot be `{value}`; allowed: {allowed}")]
    Value {
        /// The parameter.
        name: String,
        /// The value.
        value: String,
        /// The values that are allowed.
        allowed: String,
    },
    /// A parameter is given twice.
    #[error("parameter `{0}` of a workload is given twice")]
    Twice(String),
}

/// The kind of a workload, and the parameters that only this kind has.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// Fills memory once, if it was given a size, and then does nothing at all.
    Idle,
    /// Rewrites memory from the first page to the last, again and again.
    Stream,
    /// Touches random pages of an active set that can change over time.
    Toucher {
        /// The pages in the active set at first; all pages when not given.
        active: Option<u32>,
        /// The later sizes of the active set, each with the time after the start from which it holds.
        then: Vec<(Duration, u32)>,
        /// How many of 100 touches write.
        write: u8,
    },
    /// A store of small values that are read and written with Zipf popularity.
    Kv {
        /// How many of 100 operations write.
        write: u8,
        /// The exponent of the Zipf distribution; 0 is uniform.
        zipf: f64,
        /// Bytes of one value.
        value: u16,
    },
    /// Reads real files through the page cache with Zipf popularity.
    Files {
        /// A file, or a directory whose files are read.
        path: PathBuf,
        /// The exponent of the Zipf distribution; 0 is uniform.
        zipf: f64,
    },
    /// Brings a file into memory, as a boot does, and re-reads that memory.
    Image {
        /// The file.
        path: PathBuf,
        /// Whether the host is asked to attach its pages; pages that the host does not attach are copied.
        attach: bool,
    },
    /// Allocates, fills, verifies and frees.
    Churn,
}

impl Kind {
    /// The name of the kind in a specification.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Stream => "stream",
            Self::Toucher { .. } => "toucher",
            Self::Kv { .. } => "kv",
            Self::Files { .. } => "files",
            Self::Image { .. } => "image",
            Self::Churn => "churn",
        }
    }

    const fn parameters(&self) -> &'static str {
        match self {
            Self::Idle => "size, content",
            Self::Stream | Self::Churn => "size, threads, rate, pause, content",
            Self::Toucher { .. } => "size, active, then, write, threads, rate, pause, content",
            Self::Kv { .. } => "size, threads, write, zipf, value, rate, pause, content",
            Self::Files { .. } => "size, threads, zipf, rate, pause",
            Self::Image { .. } => "size, attach, rate, pause",
        }
    }
}

/// One workload as it was asked for.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkloadSpec {
    text: String,
    /// What the workload does.
    pub kind: Kind,
    /// How many pages it works on; a share of the guest's memory when not given.
    pub pages: Option<u32>,
    /// How many threads it has.
    pub threads: u32,
    /// The most bytes per second that all threads together read and write.
    pub rate: Option<u64>,
    /// How long each thread waits between two operations.
    pub pause: Duration,
    /// The content that it writes.
    pub content: Mix,
}

impl fmt::Display for WorkloadSpec {
    /// Writes the text that the specification was made from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for WorkloadSpec {
    type Err = SpecError;

    /// Reads `KIND[:PATH][,PARAMETER=VALUE]...`. A path ends at the first comma.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut parts = text.trim().split(',');
        let kind = parse_kind(parts.next().unwrap_or_default())?;
        let mut spec = Self {
            text: text.trim().to_owned(),
            rate: matches!(kind, Kind::Image { .. }).then_some(IMAGE_RATE),
            kind,
            pages: None,
            threads: 1,
            pause: Duration::ZERO,
            content: Mix::default(),
        };
        let mut seen = Vec::new();
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if seen.contains(&name) && name != "then" {
                return Err(SpecError::Twice(name.to_owned()));
            }
            seen.push(name);
            spec.set(name, value)?;
        }
        spec.check_active()?;
        Ok(spec)
    }
}

fn parse_kind(text: &str) -> Result<Kind, SpecError> {
    let (name, path) = match text.split_once(':') {
        Some((name, path)) => (name, Some(PathBuf::from(path))),
        None => (text, None),
    };
    let kind = match (name, path) {
        ("idle", None) => Kind::Idle,
        ("stream", None) => Kind::Stream,
        ("churn", None) => Kind::Churn,
        ("toucher", None) => Kind::Toucher {
            active: None,
            then: Vec::new(),
            write: 50,
        },
        ("kv", None) => Kind::Kv {
            write: 20,
            zipf: 0.99,
            value: 400,
        },
        ("files", Some(path)) if path.as_os_str() != "" => Kind::Files { path, zipf: 0.99 },
        ("image", Some(path)) if path.as_os_str() != "" => Kind::Image { path, attach: true },
        ("idle" | "stream" | "churn" | "toucher" | "kv" | "files" | "image", _) => {
            return Err(SpecError::Path(text.to_owned()));
        }
        _ => return Err(SpecError::Kind(name.to_owned())),
    };
    Ok(kind)
}

impl WorkloadSpec {
    fn set(&mut self, name: &str, value: &str) -> Result<(), SpecError> {
        let allowed = self.kind.parameters();
        if !allowed.split(", ").any(|known| known == name) {
            return Err(SpecError::Parameter {
                kind: self.kind.name(),
                name: name.to_owned(),
                allowed,
            });
        }
        self.set_common(name, value)
            .or_else(|| self.set_of_kind(name, value))
            .unwrap_or(Err(allowed_values(name)))
            .map_err(|allowed| SpecError::Value {
                name: name.to_owned(),
                value: value.to_owned(),
                allowed,
            })
    }

    /// Sets a parameter that several kinds have. `None` if it is not one of these; an error is the values that
    /// are allowed.
    fn set_common(&mut self, name: &str, value: &str) -> Option<Result<(), String>> {
        let done = match name {
            "size" => parse_pages(value).map(|pages| self.pages = Some(pages)),
            "threads" => parse_number(value, 1..=MAX_THREADS).map(|threads| self.threads = threads),
            "rate" => parse_bytes(value)
                .filter(|rate| (1..=HIGHEST_RATE).contains(rate))
                .map(|rate| self.rate = Some(rate)),
            "pause" => parse_time(value).map(|pause| self.pause = pause),
            "content" => value.parse().ok().map(|content| self.content = content),
            _ => return None,
        };
        Some(done.ok_or_else(|| allowed_values(name)))
    }

    /// Sets a parameter of this kind. Returns the same as [`set_common`](Self::set_common).
    fn set_of_kind(&mut self, name: &str, text: &str) -> Option<Result<(), String>> {
        let done = match (name, &mut self.kind) {
            ("active", Kind::Toucher { active, .. }) => {
                parse_active(text).map(|pages| *active = Some(pages))
            }
            ("then", Kind::Toucher { then, .. }) => parse_change(text)
                .filter(|(at, _)| then.last().is_none_or(|(last, _)| last < at))
                .filter(|_| then.len() < MAX_CHANGES)
                .map(|change| then.push(change)),
            ("write", Kind::Toucher { write, .. } | Kind::Kv { write, .. }) => {
                parse_number(text, 0..=100).map(|percent| *write = percent as u8)
            }
            ("zipf", Kind::Kv { zipf, .. } | Kind::Files { zipf, .. }) => text
                .parse()
                .ok()
                .filter(|exponent| (0.0..=10.0).contains(exponent))
                .map(|exponent| *zipf = exponent),
            ("value", Kind::Kv { value, .. }) => {
                parse_number(text, 8..=PAGE_SIZE as u32).map(|bytes| *value = bytes as u16)
            }
            ("attach", Kind::Image { attach, .. }) => {
                let known = [("no", false), ("yes", true)];
                let chosen = known.iter().find(|(name, _)| *name == text);
                chosen.map(|(_, yes)| *attach = *yes)
            }
            _ => return None,
        };
        Some(done.ok_or_else(|| allowed_values(name)))
    }

    /// Checks that no active set is larger than the memory of which it is a part.
    fn check_active(&self) -> Result<(), SpecError> {
        let (Kind::Toucher { active, then, .. }, Some(size)) = (&self.kind, self.pages) else {
            return Ok(());
        };
        let largest = active
            .iter()
            .chain(then.iter().map(|(_, pages)| pages))
            .max();
        match largest {
            Some(&pages) if pages > size => Err(SpecError::Value {
                name: "active".to_owned(),
                value: format!("{pages} pages"),
                allowed: format!("at most the size, which is {size} pages"),
            }),
            _ => Ok(()),
        }
    }
}

fn allowed_values(name: &str) -> String {
    match name {
        "size" => format!("at least a page: {SIZES}"),
        "active" => format!("0, or at least a page: {SIZES}"),
        "rate" => "bytes per second, such as 200M".to_owned(),
        "pause" => format!("{DURATIONS}, at most 1000h"),
        "threads" => format!("1 to {MAX_THREADS}"),
        "content" => Mix::NAMES.to_owned(),
        "then" => format!("SIZE@TIME, such as 120M@10s, in order of time, {MAX_CHANGES} at most"),
        "write" => "0 to 100 percent".to_owned(),
        "attach" => "yes or no".to_owned(),
        "zipf" => "0 to 10".to_owned(),
        "value" => format!("8 to {PAGE_SIZE} bytes"),
        _ => "nothing".to_owned(),
    }
}

fn parse_number(text: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
    text.parse().ok().filter(|number| range.contains(number))
}

fn parse_change(text: &str) -> Option<(Duration, u32)> {
    let (size, at) = text.split_once('@')?;
    Some((parse_time(at)?, parse_active(size)?))
}

fn parse_time(text: &str) -> Option<Duration> {
    parse_duration(text).filter(|time| *time <= LONGEST)
}

/// Reads the size of an active set, which can be empty: then nothing is done until it grows.
fn parse_active(text: &str) -> Option<u32> {
    if text == "0" {
        return Some(0);
    }
    parse_pages(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> WorkloadSpec {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn spec_with_every_parameter_is_read() {
        let kv = spec("kv,size=128M,threads=4,write=20,zipf=1.2,value=100,rate=1G,pause=5ms");
        assert_eq!(kv.pages, Some(128 << 8));
        assert_eq!((kv.threads, kv.rate), (4, Some(1 << 30)));
        assert_eq!(kv.pause, Duration::from_millis(5));
        let expected = Kind::Kv {
            write: 20,
            zipf: 1.2,
            value: 100,
        };
        assert_eq!(kv.kind, expected);

        let toucher = spec("toucher,size=200M,active=40M,then=120M@10s,then=8M@1m,content=text");
        assert_eq!(toucher.content, Mix::Text);
        let expected = Kind::Toucher {
            active: Some(40 << 8),
            then: vec![
                (Duration::from_secs(10), 120 << 8),
                (Duration::from_secs(60), 8 << 8),
            ],
            write: 50,
        };
        assert_eq!(toucher.kind, expected);
    }

    #[test]
    fn spec_of_every_kind_is_read_and_shown_as_written() {
        for text in [
            "idle",
            "idle,size=1M,content=zero",
            "stream,size=64M,rate=200M",
            "toucher,write=0",
            "toucher,active=0,then=4K@1s,then=0@2s",
            "kv",
            "files:/usr/lib,zipf=0,size=1G",
            "image:disk.img,rate=1M",
            "image:disk.img,attach=no",
            "churn,threads=2,content=random",
        ] {
            assert_eq!(spec(text).to_string(), text);
        }
    }

    #[test]
    fn spec_that_is_wrong_is_refused_by_name_with_what_is_allowed() {
        for (text, wrong, allowed) in [
            ("", "``", KINDS),
            ("kvs", "`kvs`", KINDS),
            ("files", "`files`", KINDS),
            ("files:", "`files:`", KINDS),
            ("kv:/tmp", "`kv:/tmp`", KINDS),
            ("kv,sise=1M", "`sise`", "threads, write, zipf"),
            ("kv,", "``", "threads, write, zipf"),
            ("idle,rate=1M", "`rate`", "size, content"),
            (
                "image:x,threads=2",
                "`threads`",
                "size, attach, rate, pause",
            ),
            ("image:x,attach=on", "`on`", "yes or no"),
            ("kv,size", "``", "256M"),
            ("kv,size=12Q", "`12Q`", "256M"),
            ("kv,threads=0", "`0`", "1 to 64"),
            ("kv,threads=65", "`65`", "1 to 64"),
            ("kv,write=101", "`101`", "0 to 100"),
            ("kv,zipf=NaN", "`NaN`", "0 to 10"),
            ("kv,value=4097", "`4097`", "8 to 4096"),
            ("kv,pause=5d", "`5d`", "10s"),
            ("kv,pause=1001h", "`1001h`", "1000h"),
            ("kv,content=noise", "`noise`", "random, text, zero, mixed"),
            ("kv,size=1M,size=2M", "`size`", "twice"),
            ("stream,rate=0", "`0`", "200M"),
            ("toucher,then=1M", "`1M`", "120M@10s"),
            ("toucher,then=1M@9s,then=1M@9s", "`1M@9s`", "in order"),
            ("toucher,size=1M,active=2M", "`512 pages`", "256 pages"),
            ("toucher,size=1M,then=2M@1s", "`512 pages`", "256 pages"),
        ] {
            let error = text.parse::<WorkloadSpec>().expect_err(text).to_string();
            assert!(
                error.contains(wrong) && error.contains(allowed),
                "{text}: {error}"
            );
        }
    }
}
