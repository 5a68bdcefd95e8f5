//! What a configuration file says of one VM, and on which lines.

use std::collections::BTreeMap;

use super::error::VmSettingsError;
use super::vm::VmPatch;

/// A table `[vm.NAME]`. Only when a host applies it can it find out what it cannot do; the lines are kept to
/// tell then where that was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmTable {
    /// The settings.
    pub patch: VmPatch,
    line: usize,
    keys: BTreeMap<&'static str, usize>,
}

impl VmTable {
    /// An empty table that begins on a line.
    pub(super) fn at(line: usize) -> Self {
        Self {
            patch: VmPatch::default(),
            line,
            keys: BTreeMap::new(),
        }
    }

    /// Adds the setting on a line.
    pub(super) fn put(
        &mut self,
        line: usize,
        key: &str,
        text: &str,
    ) -> Result<(), VmSettingsError> {
        let name = self.patch.put(key, text)?;
        self.keys.insert(name, line);
        Ok(())
    }

    /// The line of a setting, by its short name; for one that the table does not have, the line where the table
    /// begins.
    #[must_use]
    pub fn line_of(&self, key: &str) -> usize {
        self.keys.get(key).copied().unwrap_or(self.line)
    }
}
