//! What a user has chosen to see, and the file in which it is kept.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memvisor_wire::units::parse_duration;
use serde::{Deserialize, Serialize};
use strsim::jaro_winkler;
use thiserror::Error;
use toml::Spanned;

use super::fields::{SHOWN_AT_FIRST, VM, place};
use crate::units::DURATIONS;

/// The name of the bar that shows where a VM's pages are, among the names of fields.
pub(super) const HOMES: &str = "HOMES";

/// How alike a name must be to be suggested.
const ALIKE: f64 = 0.7;

/// What is shown, and in which order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Config {
    /// The fields in their order, as places in [`VM`].
    pub(super) fields: Vec<usize>,
    /// Whether the bar of homes is shown.
    pub(super) homes: bool,
    /// The field by which VMs are sorted, the greatest first; `None` for the order of their numbers.
    pub(super) sort: Option<usize>,
    /// Whether the order is turned round.
    pub(super) reverse: bool,
    /// Whether VMs are below the resource pools that they are in.
    pub(super) pools: bool,
    /// Time between two screens; `None` for the default.
    pub(super) interval: Option<Duration>,
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read or written.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A line of the file is wrong.
    #[error("`{path}`, line {line}: {wrong}; allowed: {allowed}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// What is wrong.
        wrong: String,
        /// What would be right.
        allowed: String,
    },
    /// Neither `XDG_CONFIG_HOME` nor `HOME` says where it would be.
    #[error(
        "there is no place for a configuration: set HOME or XDG_CONFIG_HOME, or use --config FILE"
    )]
    NoPlace,
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    fields: Option<Vec<Spanned<String>>>,
    sort: Option<Spanned<String>>,
    reverse: Option<bool>,
    pools: Option<bool>,
    interval: Option<Spanned<String>>,
}

/// The keys of the file, for messages.
const KEYS: &str = "`fields = [\"MEMSZ\", ...]`, `sort = \"MEMSZ\"`, `reverse = true`, `pools = true`, `interval = \"5s\"`";

impl Default for Config {
    fn default() -> Self {
        Self {
            fields: (0..SHOWN_AT_FIRST).collect(),
            homes: true,
            sort: None,
            reverse: false,
            pools: false,
            interval: None,
        }
    }
}

impl Config {
    /// Where it is kept unless a file is named; `None` without a home.
    pub(super) fn usual_path() -> Option<PathBuf> {
        let dir = |name: &str| {
            env::var_os(name)
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from)
        };
        let config = dir("XDG_CONFIG_HOME").or_else(|| Some(dir("HOME")?.join(".config")));
        config.map(|config| config.join("memvisor/toprc"))
    }

    /// Reads `named`, which must be there, or else the usual file, which need not.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(super) fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = named.map(Path::to_owned).or_else(Self::usual_path) else {
            return Ok(Self::default());
        };
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&path, &text),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Io {
                action: "read",
                path,
                source,
            }),
        }
    }

    /// Writes it to `named` or the usual file; returns the path. A file is replaced as a whole or not at all.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(super) fn save(&self, named: Option<&Path>) -> Result<PathBuf, ConfigError> {
        let path = named.map(Path::to_owned).or_else(Self::usual_path);
        let path = path.ok_or(ConfigError::NoPlace)?;
        let written = || {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            let dir = dir.unwrap_or(Path::new("."));
            fs::create_dir_all(dir)?;
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            io::Write::write_all(&mut file, self.text().as_bytes())?;
            file.persist(&path)?;
            Ok(())
        };
        match written() {
            Ok(()) => Ok(path),
            Err(source) => Err(ConfigError::Io {
                action: "write",
                path,
                source,
            }),
        }
    }

    pub(super) fn text(&self) -> String {
        let quoted = |name: &str| format!("\"{name}\"");
        let fields = self.fields.iter().map(|&field| quoted(VM[field].name));
        let homes = self.homes.then(|| quoted(HOMES));
        let fields: Vec<_> = fields.chain(homes).collect();
        let mut text = "# The screen of `memvisor top`, as the key W wrote it.\n".to_owned();
        text += &format!("fields = [{}]\n", fields.join(", "));
        if let Some(sort) = self.sort {
            text += &format!("sort = {}\n", quoted(VM[sort].name));
        }
        text += &format!("reverse = {}\npools = {}\n", self.reverse, self.pools);
        if let Some(interval) = self.interval {
            text += &format!("interval = \"{}ms\"\n", interval.as_millis());
        }
        text
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let wrong = |at: usize, wrong: String, allowed: String| ConfigError::Line {
            path: path.to_owned(),
            line: text.get(..at).unwrap_or(text).matches('\n').count() + 1,
            wrong,
            allowed,
        };
        let file: File = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            wrong(at, error.message().to_owned(), KEYS.to_owned())
        })?;
        let find = |name: &Spanned<String>| {
            let place = VM.iter().position(|field| field.name == name.as_ref());
            place.ok_or_else(|| {
                let text = format!("there is no field `{}`", name.as_ref());
                wrong(name.span().start, text, allowed(name.as_ref()))
            })
        };
        let mut config = Self::default();
        if let Some(names) = &file.fields {
            (config.fields, config.homes) = (Vec::new(), false);
            for name in names {
                if name.as_ref() == HOMES {
                    config.homes = true;
                    continue;
                }
                let field = find(name)?;
                if config.fields.contains(&field) {
                    let text = format!("the field `{}` is there twice", name.as_ref());
                    return Err(wrong(name.span().start, text, "each field once".to_owned()));
                }
                config.fields.push(field);
            }
        }
        config.sort = file.sort.as_ref().map(find).transpose()?;
        config.reverse = file.reverse.unwrap_or(false);
        config.pools = file.pools.unwrap_or(false);
        if let Some(interval) = &file.interval {
            let time = parse_duration(interval.as_ref()).filter(|time| !time.is_zero());
            let text = format!("interval cannot be `{}`", interval.as_ref());
            let allowed = format!("a time above 0, as {DURATIONS}");
            let at = interval.span().start;
            config.interval = Some(time.ok_or_else(|| wrong(at, text, allowed))?);
        }
        Ok(config)
    }

    /// Sorts by a field, or the other way round if it does so already.
    pub(super) fn sort_by(&mut self, field: Option<usize>) {
        self.reverse = self.sort == field && !self.reverse;
        self.sort = field;
    }

    /// Shows a field behind the others, or no more.
    pub(super) fn toggle(&mut self, field: usize) {
        match self.fields.iter().position(|shown| *shown == field) {
            Some(at) => drop(self.fields.remove(at)),
            None => self.fields.push(field),
        }
    }

    /// Moves a shown field one place towards the first, or the last.
    pub(super) fn shift(&mut self, field: usize, to_first: bool) {
        let Some(at) = self.fields.iter().position(|shown| *shown == field) else {
            return;
        };
        let other = if to_first {
            at.checked_sub(1)
        } else {
            Some(at + 1)
        };
        if let Some(other) = other.filter(|other| *other < self.fields.len()) {
            self.fields.swap(at, other);
        }
    }
}

/// The field by which the key of its first letter sorts, as in esxtop; `N` sorts by the numbers of the VMs.
pub(super) const SORT_KEYS: &[(char, Option<usize>)] = &[
    ('N', None),
    ('M', Some(place(VM, "MEMSZ"))),
    ('B', Some(place(VM, "MCTLSZ"))),
    ('C', Some(place(VM, "CNSM"))),
    ('A', Some(place(VM, "%ACTV"))),
    ('S', Some(place(VM, "SWCUR"))),
    ('Z', Some(place(VM, "ZIP"))),
    ('L', Some(place(VM, "%LAT"))),
    ('F', Some(place(VM, "FLT/s"))),
];

/// The names that a field can have, with those first that are like `name`.
fn allowed(name: &str) -> String {
    let asked = name.to_ascii_uppercase();
    let mut names: Vec<_> = VM.iter().map(|field| field.name).chain([HOMES]).collect();
    let alike = |name: &str| jaro_winkler(&asked, &name.to_ascii_uppercase());
    names.sort_by(|a, b| alike(b).total_cmp(&alike(a)));
    let near = names.iter().take_while(|name| alike(name) >= ALIKE).take(3);
    let near: Vec<_> = near.copied().collect();
    let list = "the names that `f` lists on the screen";
    if near.is_empty() {
        return list.to_owned();
    }
    format!("near: {}; {list}", near.join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("toprc"), text)
    }

    #[test]
    fn what_was_saved_is_loaded_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("new/dir/toprc");
        let mut config = Config::default();
        config.toggle(0);
        config.shift(3, true);
        config.sort_by(Some(4));
        config.sort_by(Some(4));
        config.homes = false;
        config.pools = true;
        config.interval = Some(Duration::from_millis(2500));
        assert!(config.reverse);
        assert_eq!(config.save(Some(&path)).expect("saved"), path);
        assert_eq!(Config::load(Some(&path)).expect("loaded"), config);
        let left = fs::read_dir(path.parent().expect("one")).expect("a directory");
        assert_eq!(left.count(), 1, "nothing but the file");
        let default = Config::default();
        default.save(Some(&path)).expect("replaced");
        assert_eq!(Config::load(Some(&path)).expect("loaded"), default);
    }

    #[test]
    fn damaged_file_is_refused_with_its_line_and_what_is_allowed() {
        for (text, parts) in [
            (
                "fields = [\n\"MEMSZ\",\n\"MCTLZS\"]",
                "line 3: `MCTLZS` near: MCTLSZ",
            ),
            ("fields = [\"ZIP\", \"ZIP\"]", "line 1: `ZIP` twice once"),
            ("\nsort = \"memsz\"", "line 2: `memsz` MEMSZ"),
            ("sort = 3", "line 1: string `sort = \"MEMSZ\"`"),
            ("colour = true", "line 1: colour `reverse = true`"),
            ("interval = \"0s\"", "line 1: `0s` above 0"),
            (
                "reverse = false\nfields = [",
                "line 2: allowed: `fields = [\"MEMSZ\", ...]`",
            ),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.starts_with("`toprc`, line "), "{error}");
            for part in parts.split(' ') {
                assert!(error.contains(part), "no {part} in: {error}");
            }
        }
    }

    proptest! {
        #[test]
        fn damaged_file_is_read_or_refused_with_a_line_that_it_has(
            at in any::<prop::sample::Index>(),
            text in "[ -~\n]{0,4}",
        ) {
            let mut file = Config::default().text();
            let at = at.index(file.len());
            file.replace_range(at..at + 1, &text);
            if let Err(error) = parse(&file) {
                let ConfigError::Line { line, .. } = error else {
                    panic!("{error}");
                };
                prop_assert!(line >= 1 && line <= file.lines().count() + 1, "{line} in {file}");
            }
        }
    }

    #[test]
    fn file_that_was_named_must_be_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = Config::load(Some(&dir.path().join("none"))).expect_err("not there");
        assert!(error.to_string().contains("cannot read"), "{error}");
    }

    #[test]
    fn fields_move_and_stay_at_the_ends() {
        let mut config = parse("fields = [\"MEMSZ\", \"ZIP\", \"HOMES\"]").expect("valid");
        let [memsz, zip] = config.fields[..] else {
            panic!("{config:?}");
        };
        assert!(config.homes);
        config.shift(memsz, true);
        assert_eq!(config.fields, [memsz, zip]);
        config.shift(memsz, false);
        config.shift(memsz, false);
        assert_eq!(config.fields, [zip, memsz]);
    }
}
