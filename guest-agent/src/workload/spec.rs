//! What a workload is to do, as text: `kv,size=128M,threads=4,write=20`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use super::KINDS;
use super::content::Mix;
use super::kind::{self, Allowed, CONTENT, FOR, Kind, Need, PAUSE, Parameter, RATE, SIZE, THREADS};
use memvisor_wire::units::parse_pages;

/// Why a text is not a workload.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecError {
    /// There is no such workload.
    #[error("there is no workload `{0}`; allowed: {allowed}", allowed = kind::usages())]
    Kind(String),
    /// The workload needs a path.
    #[error("workload `{0}` needs a path: {0}:PATH")]
    NoPath(String),
    /// The workload takes no path.
    #[error("`{0}` has a path, but this workload takes none")]
    Path(String),
    /// The workload has no such parameter.
    #[error("workload `{kind}` has no parameter `{name}`; allowed: {allowed}")]
    Parameter {
        /// The workload.
        kind: &'static str,
        /// The parameter.
        name: String,
        /// The parameters that the workload has.
        allowed: String,
    },
    /// A parameter has a value that is not allowed.
    #[error("parameter `{name}` of a workload cannot be `{value}`; allowed: {allowed}")]
    Value {
        /// The parameter.
        name: &'static str,
        /// The value.
        value: String,
        /// The values that are allowed.
        allowed: String,
    },
    /// A workload that never ends has others after it.
    #[error("`{0}` never ends, so nothing can follow it; give it for=TIME, such as for=30s")]
    Endless(String),
    /// A parameter is given twice.
    #[error("parameter `{0}` of a workload is given twice")]
    Twice(&'static str),
}

impl SpecError {
    pub(super) fn value(parameter: &Parameter, value: String) -> Self {
        Self::Value {
            name: parameter.name,
            value,
            allowed: parameter.allowed.to_string(),
        }
    }
}

/// One workload as it was asked for.
#[derive(Clone, Debug)]
pub struct WorkloadSpec {
    text: String,
    /// The kind of the workload.
    pub kind: &'static Kind,
    /// The file or directory that the workload reads, if its kind has one.
    pub path: Option<PathBuf>,
    /// How many pages it works on, if a size was asked for.
    pub pages: Option<u32>,
    /// How many threads it has.
    pub threads: u32,
    /// The most bytes per second that all threads together read and write.
    pub rate: Option<u64>,
    /// How long each thread waits between two operations.
    pub pause: Duration,
    /// How long it runs; `None` for ever, or until it ends by itself.
    pub lasts: Option<Duration>,
    /// The content that it writes.
    pub content: Mix,
    /// The parameters that were given. All of them are known, and have values that are allowed.
    given: Vec<(&'static str, String)>,
}

impl fmt::Display for WorkloadSpec {
    /// Writes the text that the specification was made from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for WorkloadSpec {
    type Err = SpecError;

    /// Reads `KIND[:PATH][,PARAMETER=VALUE]...`. A path ends at the first comma; in a [`Sequence`](super::Sequence), also
    /// at the first semicolon.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let text = text.trim();
        let mut parts = text.split(',');
        let (kind, path) = parse_kind(parts.next().unwrap_or_default())?;
        let mut spec = Self {
            text: text.to_owned(),
            kind,
            path,
            pages: None,
            threads: 1,
            rate: None,
            pause: Duration::ZERO,
            lasts: None,
            content: Mix::default(),
            given: Vec::new(),
        };
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            spec.give(name, value)?;
        }
        spec.pages = spec.find(&SIZE, parse_pages);
        spec.threads = spec.get(&THREADS, parse);
        spec.rate = spec.find(&RATE, kind::parse_rate);
        spec.pause = spec.get(&PAUSE, kind::parse_time);
        spec.lasts = spec.find(&FOR, kind::parse_lasts);
        spec.content = spec.get(&CONTENT, parse);
        (kind.check)(&spec)?;
        Ok(spec)
    }
}

fn parse_kind(text: &str) -> Result<(&'static Kind, Option<PathBuf>), SpecError> {
    let (name, path) = match text.split_once(':') {
        Some((name, path)) => (name, Some(path)),
        None => (text, None),
    };
    let kind = KINDS.iter().find(|kind| kind.name() == name);
    let kind = kind.ok_or_else(|| SpecError::Kind(name.to_owned()))?;
    match (kind.name() != kind.usage, path) {
        (true, None | Some("")) => Err(SpecError::NoPath(name.to_owned())),
        (false, Some(_)) => Err(SpecError::Path(text.to_owned())),
        (_, path) => Ok((kind, path.map(PathBuf::from))),
    }
}

/// Reads a value that is a number or a name.
pub(super) fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

impl WorkloadSpec {
    /// Whether the workload makes no operations.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.kind.usage == super::idle::KIND.usage
    }

    /// Whether there is an end to it before that of the guest.
    #[must_use]
    pub const fn ends(&self) -> bool {
        self.lasts.is_some() || self.kind.ends
    }

    /// The memory of the guest that it cannot do without.
    #[must_use]
    pub fn need(&self) -> Need {
        (self.kind.need)(self)
    }

    /// The path of a workload whose kind takes one.
    pub(super) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Takes a parameter and its value.
    fn give(&mut self, name: &str, value: &str) -> Result<(), SpecError> {
        let known = || self.kind.parameters.iter().chain([&FOR]);
        let Some(known) = known().find(|known| known.name == name) else {
            return Err(SpecError::Parameter {
                kind: self.kind.name(),
                name: name.to_owned(),
                allowed: kind::list(known().map(|known| known.name)),
            });
        };
        let is_list = matches!(known.allowed, Allowed::List(..));
        if !is_list && self.given.iter().any(|(given, _)| *given == name) {
            return Err(SpecError::Twice(known.name));
        }
        if !known.allowed.has(value) {
            return Err(SpecError::value(known, value.to_owned()));
        }
        self.given.push((known.name, value.to_owned()));
        Ok(())
    }

    /// Reads the values of a parameter, in the order in which they were given, or its default.
    pub(super) fn all<T>(&self, parameter: &Parameter, read: fn(&str) -> Option<T>) -> Vec<T> {
        let given = self
            .given
            .iter()
            .filter(|(name, _)| *name == parameter.name);
        let mut texts: Vec<&str> = given.map(|(_, value)| value.as_str()).collect();
        if texts.is_empty() {
            // A kind can have a default of its own for a common parameter.
            let mut own = self.kind.parameters.iter();
            let own = own.find(|own| own.name == parameter.name);
            texts.extend(own.unwrap_or(parameter).default);
        }
        let value = |text| read(text).expect("the value is one that is allowed");
        texts.into_iter().map(value).collect()
    }

    /// Reads the value of a parameter; `None` if it was not given and has no default.
    pub(super) fn find<T>(&self, parameter: &Parameter, read: fn(&str) -> Option<T>) -> Option<T> {
        self.all(parameter, read).pop()
    }

    /// Reads the value of a parameter that has a default.
    pub(super) fn get<T>(&self, parameter: &Parameter, read: fn(&str) -> Option<T>) -> T {
        self.find(parameter, read)
            .expect("the parameter has a default")
    }
}

#[cfg(test)]
mod tests {
    use super::super::kind::{WRITE, ZIPF};
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
        assert_eq!(kv.get(&WRITE, parse::<u8>), 20);
        assert_eq!(kv.get(&ZIPF, parse::<f64>), 1.2);

        let toucher = spec("toucher,size=200M,content=text");
        assert_eq!(toucher.content, Mix::Text);
        assert_eq!(toucher.get(&WRITE, parse::<u8>), 50);
        assert_eq!(spec("image:x").rate, Some(4 << 20));
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
            "dbench,size=1G,file=4K,latency=200us,threads=8",
            "compile,size=64M,threads=2,inputs=8M",
            "boot,check=0,for=5s",
        ] {
            assert_eq!(spec(text).to_string(), text);
        }
    }

    #[test]
    fn spec_that_is_wrong_is_refused_by_name_with_what_is_allowed() {
        for (text, wrong, allowed) in [
            ("", "``", "toucher, kv, dbench"),
            ("kvs", "`kvs`", "toucher, kv, dbench"),
            ("files", "`files`", "needs a path: files:PATH"),
            ("files:", "`files`", "needs a path: files:PATH"),
            ("kv:/tmp", "`kv:/tmp`", "takes none"),
            ("kv:", "`kv:`", "takes none"),
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
            ("dbench,file=65M", "`65M`", "to 64M"),
            ("dbench,latency=2s", "`2s`", "up to 1s"),
            ("compile,rate=1M", "`rate`", "inputs, zipf, pause"),
            ("boot,check=101", "`101`", "0 to 100"),
            ("boot,content=zero", "`content`", "check, rate"),
            ("kv,value=4097", "`4097`", "8 to 4096"),
            ("kv,pause=5d", "`5d`", "10s"),
            ("kv,pause=1001h", "`1001h`", "1000h"),
            ("kv,content=noise", "`noise`", "random, text, zero, mixed"),
            ("kv,size=1M,size=2M", "`size`", "twice"),
            ("stream,rate=0", "`0`", "200M"),
            ("toucher,then=1M", "`1M`", "120M@10s"),
            ("toucher,then=1M@9s,then=1M@9s", "`1M@9s`", "in order"),
            ("stream,threads=1.5", "`1.5`", "1 to 64"),
            ("idle,content=text,content=zero", "`content`", "twice"),
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
