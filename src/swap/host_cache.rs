//! The bound of the host cache: how many pages all VMs together may keep in its directory.

use std::path::{Path, PathBuf};

use crate::sync::Mutex;
use crate::units::Pages;

/// A directory on a fast disk, and how much of it the VMs may take.
///
/// Each VM has a file there, and takes pages of the bound before its file grows. So the files together are never longer
/// than the bound, unless it has just been lowered.
#[derive(Debug)]
pub struct HostCache {
    dir: PathBuf,
    bound: Mutex<Bound>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bound {
    size: u64,
    taken: u64,
}

impl HostCache {
    /// A host cache in `dir` that may not be used before it is given a [size](Self::set_size).
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            bound: Mutex::default(),
        }
    }

    /// Where the files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How long all files together may be.
    #[must_use]
    pub fn size(&self) -> Pages {
        Pages(self.bound.lock().size)
    }

    /// Changes how long all files together may be. When they are longer, VMs have to be told to give some back.
    pub fn set_size(&self, size: Pages) {
        self.bound.lock().size = size.0;
    }

    /// How long all files together are.
    #[must_use]
    pub fn taken(&self) -> Pages {
        Pages(self.bound.lock().taken)
    }

    /// What the files may still grow by.
    #[must_use]
    pub fn free(&self) -> Pages {
        let Bound { size, taken } = *self.bound.lock();
        Pages(size.saturating_sub(taken))
    }

    /// Takes up to `most` pages of what is free, and returns how many.
    pub(super) fn take(&self, most: u32) -> u32 {
        let mut bound = self.bound.lock();
        let free = u32::try_from(bound.size.saturating_sub(bound.taken)).unwrap_or(u32::MAX);
        let got = most.min(free);
        bound.taken += u64::from(got);
        got
    }

    /// Gives pages back.
    ///
    /// # Panics
    /// When they are more than are taken.
    pub(super) fn give(&self, pages: u32) {
        let mut bound = self.bound.lock();
        let left = bound.taken.checked_sub(pages.into());
        bound.taken = left.unwrap_or_else(|| panic!("{pages} of {} pages", bound.taken));
    }
}
