//! What a configuration file says of one pool, and on which lines.

use std::collections::BTreeMap;

use super::{PoolPatch, PoolSettingsError};

/// A table `[pool.NAME]`, with its lines for what only a host can find wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolTable {
    /// The settings.
    pub patch: PoolPatch,
    line: usize,
    keys: BTreeMap<&'static str, usize>,
}

impl PoolTable {
    /// An empty table that begins on a line.
    pub(crate) fn at(line: usize) -> Self {
        Self {
            patch: PoolPatch::default(),
            line,
            keys: BTreeMap::new(),
        }
    }

    /// Adds the setting on a line.
    pub(crate) fn put(
        &mut self,
        line: usize,
        key: &str,
        text: &str,
    ) -> Result<(), PoolSettingsError> {
        let name = self.patch.put(key, text)?;
        self.keys.insert(name, line);
        Ok(())
    }

    /// The line of a setting; for one that the table does not have, the line where the table begins.
    #[must_use]
    pub fn line_of(&self, key: &str) -> usize {
        self.keys.get(key).copied().unwrap_or(self.line)
    }
}
