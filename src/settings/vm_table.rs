//! What a configuration file says of one VM, and on which lines.

use std::collections::BTreeMap;

use super::patch::VmPatch;
use super::vm::VmSettingsError;

/// A table `[vm.NAME]`. What a host cannot do is found out when it tries; by then only the lines tell
/// where that was asked for.
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

    /// The line of a setting by its short name, or where the table begins if it does not have it.
    #[must_use]
    pub fn line_of(&self, key: &str) -> usize {
        self.keys.get(key).copied().unwrap_or(self.line)
    }
}
