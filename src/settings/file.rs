//! The configuration file.
//!
//! The file is read as a whole before anything of it is applied: a host must never run on half of a file,
//! and whoever wrote it wants to see all that is wrong with it at once. So parsing collects errors
//! with their lines, and only a file without errors becomes a [`ConfigFile`]. When a reload finds errors, the host
//! keeps the last good file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use memvisor_wire::vm_name::check_vm_name;
use thiserror::Error;

use super::layers::Layer;
use super::start::StartSettings;
use super::tree::{Entry, Invalid, Node, Problem, Reading, Table};
use super::vm::{VmPatch, VmSettings};
use super::vm_table::VmTable;
use crate::policy::policies;
use crate::units::{Bytes, Pages};

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
    /// Something in it is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
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
        // One byte more than is allowed, which tells a file that is too long from one that just fits.
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
        let mut reading = Reading::default();
        let mut file = Self {
            path: path.to_owned(),
            start: StartSettings::default(),
            settings: Layer::default(),
            vms: BTreeMap::new(),
        };
        for entry in &reading.toml(text) {
            match (entry.key.as_str(), &entry.value) {
                ("host", Node::Table(table)) => file.start = reading.start(table),
                ("settings", Node::Table(table)) => file.settings = reading.settings(table),
                ("vm", Node::Table(table)) => file.vms = reading.vms(table),
                _ => reading.astray(entry, "[host], [settings], [vm.NAME]"),
            }
        }
        if reading.problems.is_empty() {
            return Ok(file);
        }
        Err(file.invalid(reading.problems))
    }

    /// The error of a file with these problems.
    #[must_use]
    pub fn invalid(self, problems: Vec<Problem>) -> ConfigError {
        Invalid::new(self.path.display().to_string(), problems).into()
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

impl Reading {
    fn start(&mut self, table: &Table) -> StartSettings {
        const MEMORY: &str = "a size of whole pages, as 512M";
        let mut start = StartSettings::default();
        for leaf in self.leaves("[host]: ", table) {
            let text = leaf.text;
            match leaf.key.as_str() {
                "profile" => self.choice(&mut start.profile, &leaf),
                "policy" => {
                    let policy = policies::named(text).ok();
                    self.put(&mut start.policy, &leaf, policy, &policies::names());
                }
                "engine" => self.choice(&mut start.engine, &leaf),
                "memory" => self.put(&mut start.memory, &leaf, memory(text), MEMORY),
                "swap-dir" => {
                    let dir = (!text.is_empty()).then(|| PathBuf::from(text));
                    self.put(&mut start.swap_dir, &leaf, dir, "the path of a directory");
                }
                _ => self.unknown(&leaf, "profile, policy, memory, engine, swap-dir"),
            }
        }
        start
    }

    fn vms(&mut self, table: &Table) -> BTreeMap<String, VmTable> {
        let mut vms = BTreeMap::new();
        for Entry {
            key: name,
            line,
            value,
        } in table
        {
            match (check_vm_name(name), value) {
                (Err(error), _) => self.wrong(*line, error.to_string()),
                (_, Node::Table(table)) => {
                    vms.insert(name.clone(), self.vm(*line, table));
                }
                _ => self.wrong(*line, format!("`{name}` must be a table [vm.{name}]")),
            }
        }
        vms
    }

    fn vm(&mut self, line: Option<usize>, table: &Table) -> VmTable {
        let mut found = VmTable::at(line);
        for leaf in self.leaves("", table) {
            if let Err(error) = found.put(leaf.line, &leaf.key, leaf.text) {
                self.wrong(leaf.line, error.in_full());
            }
        }
        // Only the VM knows its size. Checked with the largest possible one, so that what can never fit is found.
        let largest = Bytes(u64::MAX).pages();
        if let Err(error) = found.patch.apply(&VmSettings::default(), largest) {
            self.wrong(
                found.line_of(error.key().unwrap_or_default()),
                error.in_full(),
            );
        }
        found
    }
}

fn memory(text: &str) -> Option<Bytes> {
    let bytes: Bytes = text.parse().ok()?;
    let pages = bytes.whole_pages()?;
    (pages > Pages(0)).then_some(bytes)
}

#[cfg(test)]
mod tests;
