//! The configuration file.
//!
//! The file is read as a whole before anything of it is applied: a host must never run on half of a file,
//! and whoever wrote it wants to see all that is wrong with it at once. So parsing collects errors
//! with their lines, and only a file without errors becomes a [`ConfigFile`]. When a reload finds errors, the host
//! keeps the last good file.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use memvisor_wire::vm_name::check_vm_name;
use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use super::keyed::{PoolTable, VmTable};
use super::layers::Layer;
use super::resource_pool::PoolPatch;
use super::start::StartSettings;
use super::tree::{Invalid, Keys, Problem, Reading, text_of};
use super::vm::{VmPatch, VmSettings};
use crate::units::Bytes;

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
    /// The tables `[pool.NAME]` by name.
    pub pools: BTreeMap<String, PoolTable>,
}

/// The tables of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    host: StartSettings,
    settings: Keys,
    vm: BTreeMap<String, Spanned<Keys>>,
    pool: BTreeMap<String, Spanned<Keys>>,
}

/// Why a configuration file is not used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration file `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
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
        let text = text_of(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Checks the text of the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let (mut reading, written) = Reading::toml::<Written>(text, &["vm", "pool"]);
        let file = Self {
            path: path.to_owned(),
            start: written.host,
            settings: reading.settings(&written.settings),
            vms: reading.vms(&written.vm),
            pools: reading.pools(&written.pool),
        };
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

    /// What it says of all resource pools.
    #[must_use]
    pub fn pool_patches(&self) -> BTreeMap<String, PoolPatch> {
        let patch = |(name, table): (&String, &PoolTable)| (name.clone(), table.patch.clone());
        self.pools.iter().map(patch).collect()
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
            ("swap-cache", was.swap_cache == is.swap_cache),
            ("record-balloon", was.record_balloon == is.record_balloon),
            ("http", was.http == is.http),
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
    fn vms(&mut self, tables: &BTreeMap<String, Spanned<Keys>>) -> BTreeMap<String, VmTable> {
        let mut vms = BTreeMap::new();
        for (name, table) in tables {
            if let Err(error) = check_vm_name(name) {
                self.wrong(table.span(), &error.to_string());
            }
            vms.insert(name.clone(), self.vm(table));
        }
        vms
    }

    fn vm(&mut self, table: &Spanned<Keys>) -> VmTable {
        let mut found = VmTable::at(self.line(&table.span()));
        for (key, value) in table.get_ref() {
            let line = self.line(&value.span());
            match found.patch.put(key, &value.to_string()) {
                Ok(key) => found.note(key, line),
                Err(error) => self.wrong(value.span(), &error.in_full()),
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
}

#[cfg(test)]
mod tests;
