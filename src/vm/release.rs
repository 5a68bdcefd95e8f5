//! Frees what pages have left behind that live elsewhere now: frames, slots, and the memory that comes free with them.

use std::sync::PoisonError;

use super::Vm;
use crate::page::Home;
use crate::pool::{Pool, Unref};
use crate::units::{FrameId, Gfn, Pages, SlotId};

/// The most emptied arena pages that a compression cache keeps: a MiB.
const MAX_EMPTIED: u32 = 256;

impl Vm {
    /// Gives the VM's reference to a frame back, and the frame's memory if it was the last.
    pub fn release_frame(&self, frame: FrameId) {
        self.release_frame_of(&self.pool(), frame);
    }

    /// As [`release_frame`](Self::release_frame), for callers that may have unshared the VM's last shared page, and so
    /// cannot be sure that the VM still uses the pool.
    pub fn release_frame_of(&self, pool: &Pool, frame: FrameId) {
        if pool.unref(frame) == Unref::Freed {
            self.budget.give(1);
        }
        // Even if others keep the frame: this VM holds one page less, and may be below its ceiling now.
        self.wake_barred();
    }

    /// Keeps a reference to a frame that no page names any more until the VM is torn down. Its session ended in
    /// the middle of a command, so the guest may still see the frame until it is dead.
    pub fn abandon_frame(&self, frame: FrameId) {
        let mut abandoned = self
            .abandoned
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        abandoned.push(frame);
    }

    /// Frees a slot of the compression cache. Pages that this empties are given back at once where memory is short,
    /// else when there are many of them or the worker comes by.
    pub fn release_zip(&self, slot: SlotId) {
        self.free_zip(slot, false);
    }

    fn free_zip(&self, slot: SlotId, wanted: bool) {
        let mut zip = self.zip.lock();
        // Before the slot is freed, because afterwards it does not tell which page it held.
        if wanted {
            zip.note_wanted(slot);
        }
        zip.free(slot);
        let is_short = self.budget.spare() == Pages(0);
        let is_much = zip.emptied() >= MAX_EMPTIED;
        drop(zip);
        if is_short || is_much {
            self.give_back_emptied();
        }
    }

    /// Gives the emptied pages of the compression cache back.
    pub fn give_back_emptied(&self) {
        let pages = self.zip.lock().give_back();
        self.budget.give(u64::from(pages));
    }

    /// Frees what is held by a home that a page has left. It does nothing for resident pages: their
    /// holes are punched in runs.
    pub fn release(&self, old: Home) {
        match old {
            Home::Shared(frame) => self.release_frame(frame),
            Home::Compressed(slot) => self.release_zip(slot),
            Home::Swapped(slot) => self.swap.free(slot),
            Home::Untouched | Home::Zero | Home::Resident | Home::Ballooned => {}
        }
    }

    /// As [`release`](Self::release), for a page that left its home because the guest wanted it.
    pub fn release_wanted(&self, gfn: Gfn, old: Home) {
        self.refaults.came_back(gfn, old);
        if let Home::Compressed(slot) = old {
            self.free_zip(slot, true);
            return;
        }
        if let Home::Swapped(_) = old {
            self.ghosts.came_back(gfn);
        }
        self.release(old);
    }
}
