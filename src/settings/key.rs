//! A host setting by its name, and its value as text.

use super::error::{SettingError, nearest};
use super::spec::Spec;
use super::table::{Key, TABLE};
use super::value::{Value, shown};

impl Key {
    /// What is known about this setting.
    #[must_use]
    pub const fn spec(self) -> &'static Spec {
        &TABLE[self as usize]
    }

    /// The setting called `name`, in upper or lower case.
    ///
    /// # Errors
    /// [`SettingError::Unknown`] with names that are like it.
    pub fn find(name: &str) -> Result<Self, SettingError> {
        let found = TABLE.iter().find(|s| s.name.eq_ignore_ascii_case(name));
        found
            .map(|spec| spec.key)
            .ok_or_else(|| SettingError::Unknown {
                name: shown(name),
                nearest: nearest(name, TABLE.iter().map(|spec| spec.name)),
            })
    }

    /// Reads a value of this setting.
    ///
    /// # Errors
    /// [`SettingError::Value`].
    pub fn read(self, text: &str) -> Result<Value, SettingError> {
        let spec = self.spec();
        spec.kind.read(text).ok_or_else(|| SettingError::Value {
            name: spec.name,
            value: shown(text),
            allowed: spec.kind.allowed(),
        })
    }
}
