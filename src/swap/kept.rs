//! Swap files that stay when their VM is off (ESX: `sched.swap.persist`).
//!
//! What is in the swap file of a VM that is off is worth nothing; what is kept is the disk space, so that the next
//! power-on cannot fail for lack of it. At power-off the VM's file gives its space back and an empty one takes it, which
//! has a name until the next power-on uses it. A file that had a name and lost it can have none again, so the empty one
//! is a new one each time. So [ADR 5](../../docs/adr/0005-nameless-swap-files.md) still holds: a daemon that is killed
//! leaves nothing, no memory of a guest has a name on the disk, and no two daemons use one file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::SwapError;
use super::file::SwapFile;
use super::place::{Place, bytes};
use crate::sync::Ordering;
use crate::sys::DirectFile;

impl SwapFile {
    /// As [`create`](Self::create), on the disk space that was [kept](Self::set_kept) for this VM in `dir`, if there is
    /// any.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn kept_or_new(
        dir: &Path,
        vm: &str,
        slots: u32,
        max_slots: u32,
    ) -> Result<Self, SwapError> {
        let place = Place::kept_or_new(dir, vm, slots)?;
        Self::at(place, vm, slots, max_slots)
    }

    /// Whether its disk space is kept when it is [given back](Self::give_back), for the next power-on.
    pub fn set_kept(&self, is_kept: bool) {
        self.is_kept.store(is_kept, Ordering::Relaxed);
    }
}

impl Place {
    /// The file that was [kept](keep) for this VM here, at this length, else a new one.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub(super) fn kept_or_new(dir: &Path, vm: &str, slots: u32) -> Result<Self, SwapError> {
        let path = kept_path(dir, vm);
        match DirectFile::take(&path) {
            Ok(Some((file, len))) => {
                let place = Self {
                    dir: dir.to_owned(),
                    storage: Arc::new(file),
                };
                let kept = u32::try_from(len.pages().0).unwrap_or(u32::MAX);
                // One that cannot be made so long is closed, and gives its space to the new one.
                if place.set_slots(vm, kept, slots).is_ok() {
                    return Ok(place);
                }
            }
            Ok(None) => {}
            Err(error) => {
                let path = path.display();
                tracing::warn!(vm, %path, %error, "no swap file that was kept; left as it is");
            }
        }
        Self::create(dir, vm, slots)
    }

    fn set_slots(&self, vm: &str, from: u32, to: u32) -> Result<(), SwapError> {
        match to > from {
            true => self.extend(vm, from, to),
            false => self.truncate(vm, to),
        }
    }
}

/// Makes an empty file of `slots` slots with the name that the next power-on looks for.
///
/// # Errors
/// What the kernel says.
pub(super) fn keep(dir: &Path, vm: &str, slots: u32) -> Result<(), SwapError> {
    let path = kept_path(dir, vm);
    let file = DirectFile::create(dir, bytes(slots));
    let kept = file.and_then(|file| file.keep(&path));
    kept.map_err(|source| SwapError::Keep {
        vm: vm.to_owned(),
        path,
        source,
    })
}

/// What the swap file of a VM that is off is called.
fn kept_path(dir: &Path, vm: &str) -> PathBuf {
    dir.join(format!("{vm}.vswp"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::swap::SlotRun;
    use crate::units::{PAGE_SIZE, PageBuf, Pages};

    fn used_and_given_back(dir: &Path, slots: u32, is_kept: bool) -> Result<(), SwapError> {
        let file = SwapFile::kept_or_new(dir, "a", slots, 64)?;
        file.set_kept(is_kept);
        let run = file.allocate(1)[0];
        let pages = [PageBuf([3; PAGE_SIZE])];
        file.write(run, &pages, &[5])?;
        file.give_back()
    }

    #[test]
    fn space_is_kept_at_whatever_length_the_vm_had_and_has_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.vswp");
        for slots in [16, 8, 40] {
            used_and_given_back(dir.path(), slots, true).unwrap();
            let kept = fs::metadata(&path).unwrap();
            assert_eq!(kept.len(), Pages(u64::from(slots)).bytes().0);
            assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
        }
        let file = SwapFile::kept_or_new(dir.path(), "a", 8, 64).unwrap();
        assert!(!path.exists(), "it has no name while it is used");
        let SlotRun { start, .. } = file.allocate(1)[0];
        file.read(start, &mut PageBuf::zeroed())
            .expect_err("a slot of an earlier life");
        drop(file);
        assert!(!path.exists());
        used_and_given_back(dir.path(), 8, false).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn file_of_that_name_is_left_alone_and_the_space_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.vswp");
        fs::write(&path, "mine").unwrap();
        let error = used_and_given_back(dir.path(), 8, true).expect_err("the name is taken");
        assert!(error.to_string().contains("a.vswp"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }
}
