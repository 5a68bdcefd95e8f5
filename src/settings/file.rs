//! The configuration file.
//!
//! The file is read as a whole before anything of it is applied: a host must never run on half of a file,
//! and whoever wrote it wants to see all that is wrong with it at once. So parsing collects errors
//! with their lines, and only a file without errors becomes a [`ConfigFile`]. When a reload finds errors, the host
//! keeps the last good file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;
use toml::de::{DeTable, DeValue};

use super::host::Profile;
use super::layers::Layer;
use super::name::check_vm_name;
use super::patch::VmPatch;
use super::start::StartSettings;
use super::value::shown;
use super::vm::VmSettings;
use super::vm_table::VmTable;
use crate::policy::policies;
use crate::units::{Bytes, PAGE_SIZE, Pages};

/// The most bytes of a file: a thousand VMs with all settings take a quarter of it.
const FILE_MAX: u64 = 1 << 20;

/// A configuration file without a fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigFile {
    /// Where it is.
    pub path: PathBuf,
    /// The table `[host]`.
    pub start: StartSettings,
    /// The table `[settings]`.
    pub settings: Layer,
    /// The tables `[vm.NAME]` by name.
    pub vms: BTreeMap<String, VmTable>,
}

/// One thing that is wrong in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The line, from 1 on; `None` for a problem that comes from something missing.
    pub line: Option<usize>,
    /// What is wrong, and what would be right.
    pub text: String,
}

/// Why a configuration file is not used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration file `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is longer than any that makes sense.
    #[error("the configuration file `{}` is longer than {FILE_MAX} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Something in it is wrong; the text has a line for each problem.
    #[error("{}", Problems(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that is wrong, by line.
        problems: Vec<Problem>,
    },
    /// It changes what a running host cannot change.
    #[error(
        "`{}` changes {} in [host], which a host takes up only when it starts: restart it, or put \
         back what it was started with", path.display(), keys.join(" and ")
    )]
    StartOnly {
        /// The file.
        path: PathBuf,
        /// The keys of `[host]`.
        keys: Vec<&'static str>,
    },
}

struct Problems<'a>(&'a Path, &'a [Problem]);

impl fmt::Display for Problems<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.1.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{}", self.0.display())?;
            if let Some(line) = problem.line {
                write!(f, ":{line}")?;
            }
            write!(f, ": {}", problem.text)?;
        }
        Ok(())
    }
}

impl ConfigFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], with all that is wrong in the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        file.take(FILE_MAX + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > FILE_MAX {
            let path = path.to_owned();
            return Err(ConfigError::TooLong { path });
        }
        Self::parse(path, &text)
    }

    /// Checks the text of the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut reading = Reading {
            text,
            problems: Vec::new(),
            file: Self {
                path: path.to_owned(),
                start: StartSettings::default(),
                settings: Layer::default(),
                vms: BTreeMap::new(),
            },
        };
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            reading.wrong(at, error.message().to_owned());
        }
        reading.root(root.get_ref());
        let Reading { problems, file, .. } = reading;
        if problems.is_empty() {
            return Ok(file);
        }
        Err(file.invalid(problems))
    }

    /// The error of a file with these problems.
    #[must_use]
    pub fn invalid(self, mut problems: Vec<Problem>) -> ConfigError {
        problems.sort_by_key(|problem| problem.line);
        let path = self.path;
        ConfigError::Invalid { path, problems }
    }

    /// What it says of a VM.
    #[must_use]
    pub fn vm(&self, name: &str) -> VmPatch {
        let table = self.vms.get(name);
        table.map(|table| table.patch.clone()).unwrap_or_default()
    }

    /// Reads the file again, for a host that was started with this one.
    ///
    /// # Errors
    /// As [`ConfigFile::load`], and [`ConfigError::StartOnly`] if `[host]` is another.
    pub fn load_again(&self) -> Result<Self, ConfigError> {
        let new = Self::load(&self.path)?;
        let (was, is) = (&self.start, &new.start);
        let same = [
            ("profile", was.profile == is.profile),
            ("policy", was.policy == is.policy),
            ("memory", was.memory == is.memory),
            ("engine", was.engine == is.engine),
            ("swap-dir", was.swap_dir == is.swap_dir),
        ];
        let changed = same.iter().filter(|(_, same)| !same);
        let keys: Vec<_> = changed.map(|(key, _)| *key).collect();
        if keys.is_empty() {
            return Ok(new);
        }
        let path = new.path;
        Err(ConfigError::StartOnly { path, keys })
    }
}

/// A file on its way from text to [`ConfigFile`].
struct Reading<'a> {
    text: &'a str,
    problems: Vec<Problem>,
    file: ConfigFile,
}

/// A key with its dots, where it is, and its value.
type Leaf<'a, 'i> = (String, usize, &'a DeValue<'i>);

impl Reading<'_> {
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().iter().take(at);
        1 + before.filter(|byte| **byte == b'\n').count()
    }

    fn wrong(&mut self, at: usize, text: String) {
        let line = Some(self.line(at));
        self.problems.push(Problem { line, text });
    }

    fn root(&mut self, root: &DeTable<'_>) {
        for (key, value) in root {
            let at = key.span().start;
            let Some(table) = value.get_ref().as_table() else {
                let key = shown(key.get_ref());
                self.wrong(at, format!("`{key}` must be in a table: {TABLES}"));
                continue;
            };
            match key.get_ref().as_ref() {
                "host" => self.host(table),
                "settings" => self.settings(table),
                "vm" => self.vms(table),
                other => {
                    let other = shown(other);
                    self.wrong(
                        at,
                        format!("there is no table [{other}]; allowed: {TABLES}"),
                    );
                }
            }
        }
    }

    fn host(&mut self, table: &DeTable<'_>) {
        for (key, at, value) in leaves(table) {
            let Some(text) = self.scalar(&key, at, value) else {
                continue;
            };
            let start = &mut self.file.start;
            let allowed = match key.as_str() {
                "profile" => read(&mut start.profile, text.parse().ok(), Profile::NAMES),
                "policy" => match policies::named(&text) {
                    Ok(policy) => read(&mut start.policy, Some(policy), ""),
                    Err(error) => {
                        self.wrong(at, error.to_string());
                        continue;
                    }
                },
                "memory" => read(
                    &mut start.memory,
                    memory(&text),
                    "a size of whole pages, as 512M",
                ),
                "engine" => read(&mut start.engine, text.parse().ok(), "auto, uffd, mprotect"),
                "swap-dir" => {
                    let dir = (!text.is_empty()).then(|| PathBuf::from(&text));
                    read(&mut start.swap_dir, dir, "the path of a directory")
                }
                _ => {
                    let key = shown(&key);
                    let text = format!(
                        "there is no `{key}` in [host]; allowed: profile, policy, memory, engine, swap-dir"
                    );
                    self.wrong(at, text);
                    continue;
                }
            };
            if let Err(allowed) = allowed {
                let text = shown(&text);
                self.wrong(at, format!("{key} cannot be `{text}`; allowed: {allowed}"));
            }
        }
    }

    fn settings(&mut self, table: &DeTable<'_>) {
        for (name, at, value) in leaves(table) {
            let Some(text) = self.scalar(&name, at, value) else {
                continue;
            };
            match self.file.settings.put(&name, &text) {
                Ok(None) => {}
                Ok(Some(_)) => self.wrong(at, format!("{name} is given twice")),
                Err(error) => self.wrong(at, error.to_string()),
            }
        }
    }

    fn vms(&mut self, table: &DeTable<'_>) {
        for (name, value) in table {
            let at = name.span().start;
            if let Err(error) = check_vm_name(name.get_ref()) {
                self.wrong(at, error.to_string());
                continue;
            }
            let Some(table) = value.get_ref().as_table() else {
                let name = name.get_ref();
                self.wrong(at, format!("`{name}` must be a table [vm.{name}]"));
                continue;
            };
            let table = self.vm(at, table);
            self.file.vms.insert(name.get_ref().to_string(), table);
        }
    }

    fn vm(&mut self, at: usize, table: &DeTable<'_>) -> VmTable {
        let mut found = VmTable::at(self.line(at));
        for (key, at, value) in leaves(table) {
            if let Some(text) = self.scalar(&key, at, value)
                && let Err(error) = found.put(self.line(at), &key, &text)
            {
                self.wrong(at, error.in_full());
            }
        }
        // Only the VM knows its size. Checked with the largest possible one, so that what can never fit is found.
        let largest = Bytes(u64::MAX).pages();
        if let Err(error) = found.patch.apply(&VmSettings::default(), largest) {
            let line = Some(found.line_of(error.key().unwrap_or_default()));
            let text = error.in_full();
            self.problems.push(Problem { line, text });
        }
        found
    }

    /// The text of a value that is neither table nor array nor time.
    fn scalar(&mut self, key: &str, at: usize, value: &DeValue<'_>) -> Option<String> {
        let text = match value {
            DeValue::String(text) => Some(text.to_string()),
            DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix())
                .ok()
                .map(|number| number.to_string()),
            DeValue::Float(number) => Some(number.as_str().to_owned()),
            DeValue::Boolean(value) => Some(value.to_string()),
            _ => None,
        };
        if text.is_none() {
            let (key, kind) = (shown(key), value.type_str());
            let text =
                format!("{key} cannot be this {kind}; allowed: a number, a text, true, false");
            self.wrong(at, text);
        }
        text
    }
}

const TABLES: &str = "[host], [settings], [vm.NAME]";

/// Notes a value that could be read; otherwise returns what is allowed.
fn read<T>(
    place: &mut Option<T>,
    value: Option<T>,
    allowed: &'static str,
) -> Result<(), &'static str> {
    *place = Some(value.ok_or(allowed)?);
    Ok(())
}

fn memory(text: &str) -> Option<Bytes> {
    let bytes: Bytes = text.parse().ok()?;
    let whole = bytes.0.is_multiple_of(PAGE_SIZE as u64) && bytes.pages() > Pages(0);
    whole.then_some(bytes)
}

/// The values of a table and of the tables in it. Tables in tables are read as names with dots:
/// `[settings.Mem] IdleTax = 50` is `[settings] "Mem.IdleTax" = 50`.
fn leaves<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Leaf<'a, 'i>> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), table)];
    while let Some((prefix, table)) = open.pop() {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) => open.push((format!("{name}."), inner)),
                value => found.push((name, key.span().start, value)),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
