//! Changing the length of a swap file while its VM runs.

use super::error::{SwapError, is_full};
use super::file::SwapFile;
use super::kept;
use super::moving::Moving;
use crate::sync::Ordering;

impl SwapFile {
    /// Changes how many slots may be in use: configured memory - reservation. It waits for a write that
    /// is under way, so fault threads must not call it, nor anything else that changes the file.
    ///
    /// A larger number makes the file longer, on disk space that is reserved as at creation. A smaller
    /// number takes effect at once for allocations. Pages behind the new end stay where they are, and
    /// the file is cut as far as it can be, now and by each [`trim`](Self::trim).
    ///
    /// # Errors
    /// [`SwapError::NoSpace`] when the new part does not fit; nothing has changed. [`SwapError::Resize`]
    /// when the disk fails; then a smaller number is in force, a larger one is not.
    ///
    /// # Panics
    /// When `slots` is more than the file was made for.
    pub fn resize(&self, slots: u32) -> Result<(), SwapError> {
        let most = self.digests.len();
        assert!(slots as usize <= most, "{slots} swap slots, at most {most}");
        let moving = self.writer.lock();
        // The writer's lock is held, so nobody else changes the length from here on.
        let len = self.slots.lock().len();
        if slots > len {
            // The file before its slots: no slot may be given out that has no room on the disk.
            self.extend(&moving, len, slots)?;
            self.slots.lock().extend(slots);
        }
        self.slots.lock().set_limit(slots);
        // `trim` takes this lock itself.
        drop(moving);
        self.trim()
    }

    /// Makes the file longer; during a move, both files or neither.
    fn extend(&self, moving: &Moving, len: u32, slots: u32) -> Result<(), SwapError> {
        let place = self.place.lock().clone();
        place.extend(&self.vm, len, slots)?;
        let Some(to) = moving.target() else {
            return Ok(());
        };
        to.extend(&self.vm, len, slots).inspect_err(|_| {
            // Space that cannot be given back now is not used, and a later cut gives it back.
            let _ = place.truncate(&self.vm, len);
        })
    }

    /// Gives back the disk space behind the last slot that is in use or may be used. To be called now and
    /// then, because the guest frees slots at any time. It costs nothing when there is no such space.
    ///
    /// # Errors
    /// [`SwapError::Resize`]: the space is still taken.
    pub fn trim(&self) -> Result<(), SwapError> {
        let mut moving = self.writer.lock();
        let (len, needed) = {
            let slots = self.slots.lock();
            (slots.len(), slots.needed())
        };
        if needed == len {
            return Ok(());
        }
        let place = self.place.lock().clone();
        place.truncate(&self.vm, needed)?;
        moving.cut(&self.vm, needed);
        // Nobody has taken a slot behind `needed` meanwhile: these are above the limit, which only the holder of the
        // writer's lock raises.
        self.slots.lock().cut(needed);
        Ok(())
    }

    /// Gives all of the disk space back, or keeps it for the next power-on if it was told to. Whoever still holds the
    /// file must neither write nor read it any more.
    ///
    /// # Errors
    /// [`SwapError::Keep`]: the space was given back. [`SwapError::Resize`]: it comes free when the last holder
    /// closes the file.
    pub fn give_back(&self) -> Result<(), SwapError> {
        let mut moving = self.writer.lock();
        moving.cancel();
        let place = self.place.lock().clone();
        let slots = self.slots.lock().len();
        let keep = || kept::keep(&place.dir, &self.vm, slots);
        let is_kept = self.is_kept.load(Ordering::Relaxed) && slots > 0;
        // Where there is room for both, nobody can take the space in between.
        let kept = is_kept.then(keep);
        // The file is cut and not just closed, because a guest may hold it open as long as it likes.
        place.truncate(&self.vm, 0)?;
        match kept {
            Some(Err(SwapError::Keep { source, .. })) if is_full(&source) => keep(),
            Some(kept) => kept,
            None => Ok(()),
        }
    }
}
