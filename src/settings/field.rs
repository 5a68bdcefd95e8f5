//! Types of which the settings of a VM are, and how a patch writes them.

use std::path::PathBuf;

use memvisor_wire::memory::Shares;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use crate::units::Pages;

/// A type of which a setting of a VM can be.
pub(super) trait FieldValue {
    /// Whether it is a size.
    const IS_SIZE: bool = false;

    /// A value as clients write and read it; sizes are in bytes.
    fn json(&self) -> Json;
}

impl FieldValue for Shares {
    fn json(&self) -> Json {
        let names = ["low", "normal", "high"];
        match self {
            Self::Custom(count) => (*count).into(),
            named => names
                .into_iter()
                .find(|name| name.parse::<Self>() == Ok(*named))
                .into(),
        }
    }
}

impl FieldValue for Pages {
    const IS_SIZE: bool = true;

    fn json(&self) -> Json {
        self.bytes().0.into()
    }
}

impl FieldValue for bool {
    fn json(&self) -> Json {
        (*self).into()
    }
}

impl FieldValue for String {
    fn json(&self) -> Json {
        self.as_str().into()
    }
}

impl FieldValue for PathBuf {
    fn json(&self) -> Json {
        self.to_str().into()
    }
}

impl<T: FieldValue> FieldValue for Option<T> {
    const IS_SIZE: bool = T::IS_SIZE;

    fn json(&self) -> Json {
        self.as_ref().map_or(Json::Null, T::json)
    }
}

/// Writes a field of a patch. Serde passes it by reference, and skips one that is `None`.
pub(super) fn json<T: FieldValue, S: Serializer>(
    field: &Option<T>,
    to: S,
) -> Result<S::Ok, S::Error> {
    field.json().serialize(to)
}
