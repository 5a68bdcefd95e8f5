//! Where a swap file is: its storage, and its directory, for messages.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{SwapError, is_full};
use super::storage::Storage;
use crate::sys::{DirectFile, Filesystem};
use crate::units::{Bytes, Pages};

/// A storage and the directory it is in.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) storage: Arc<dyn Storage>,
}

/// The length of a file of `slots` slots.
pub(super) fn bytes(slots: u32) -> Bytes {
    Pages(u64::from(slots)).bytes()
}

impl Place {
    /// A new file without a name, whose whole length is reserved.
    ///
    /// # Errors
    /// [`SwapError::NoSpace`] when the file does not fit, else [`SwapError::Create`].
    pub(super) fn create(dir: &Path, vm: &str, slots: u32) -> Result<Self, SwapError> {
        let len = bytes(slots);
        let failed = |source| SwapError::Create {
            vm: vm.to_owned(),
            dir: dir.to_owned(),
            source,
        };
        let no_space = |available| SwapError::NoSpace {
            vm: vm.to_owned(),
            dir: dir.to_owned(),
            len,
            wanted: len,
            available,
        };
        // Asked before reserving, because a reservation that fails has filled the disk for a moment.
        let available = Filesystem::of(dir).map_err(failed)?.available;
        if len > available {
            return Err(no_space(available));
        }
        // Others use the disk too, so it can be full although it was asked just now.
        let file = DirectFile::create(dir, len).map_err(|error| {
            if is_full(&error) {
                no_space(available)
            } else {
                failed(error)
            }
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            storage: Arc::new(file),
        })
    }

    /// Makes the file longer, with its space reserved as by [`create`](Self::create). After an error the file is
    /// as it was.
    ///
    /// # Errors
    /// [`SwapError::NoSpace`] when the new part does not fit, else [`SwapError::Resize`].
    pub(super) fn extend(&self, vm: &str, from: u32, to: u32) -> Result<(), SwapError> {
        let (from, to) = (bytes(from), bytes(to));
        let wanted = Bytes(to.0 - from.0);
        let failed = |source| self.resize_error(vm, to, source);
        let no_space = |available| SwapError::NoSpace {
            vm: vm.to_owned(),
            dir: self.dir.clone(),
            len: to,
            wanted,
            available,
        };
        let available = self.storage.available().map_err(failed)?;
        if wanted > available {
            return Err(no_space(available));
        }
        self.storage.extend(from, to).map_err(|error| {
            if is_full(&error) {
                no_space(available)
            } else {
                failed(error)
            }
        })
    }

    /// Cuts the file.
    ///
    /// # Errors
    /// [`SwapError::Resize`].
    pub(super) fn truncate(&self, vm: &str, slots: u32) -> Result<(), SwapError> {
        let len = bytes(slots);
        let truncated = self.storage.truncate(len);
        truncated.map_err(|source| self.resize_error(vm, len, source))
    }

    fn resize_error(&self, vm: &str, len: Bytes, source: io::Error) -> SwapError {
        SwapError::Resize {
            vm: vm.to_owned(),
            dir: self.dir.clone(),
            len,
            source,
        }
    }
}
