//! Giving up what pages have held that live elsewhere now: frames, slots, and the memory that comes free with them.

use std::sync::PoisonError;

use super::Vm;
use crate::page::Home;
use crate::pool::{Pool, Unref};
use crate::units::{FrameId, Gfn, Pages, SlotId};

/// The most arena pages that a compression cache keeps though they hold nothing: a MiB.
const MAX_EMPTIED: u32 = 256;

impl Vm {
    /// Gives the VM's reference to a frame back, and the frame's memory if it was the last.
    pub fn release_frame(&self, frame: FrameId) {
        self.release_frame_of(&self.pool(), frame);
    }

    /// As [`release_frame`](Self::release_frame), for who has taken the last shared page away and so
    /// cannot be sure that the VM still uses the pool.
    pub fn release_frame_of(&self, pool: &Pool, frame: FrameId) {
        if pool.unref(frame) == Unref::Freed {
            self.budget.give(1);
        }
        self.call_barred();
    }

    /// Keeps the reference to a frame that no page names any more until the VM is torn down: its
    /// session ended in the middle of a command, so its guest may see the frame until it is dead.
    pub fn abandon_frame(&self, frame: FrameId) {
        let mut abandoned = self
            .abandoned
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        abandoned.push(frame);
    }

    /// Frees a slot of the compression cache. Memory comes free with it where memory is short, and else
    /// when there is more of it or the worker looks.
    pub fn release_zip(&self, slot: SlotId) {
        self.free_zip(slot, false);
    }

    fn free_zip(&self, slot: SlotId, wanted: bool) {
        let mut zip = self.zip.lock();
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

    /// Gives back what the compression cache has emptied.
    pub fn give_back_emptied(&self) {
        let pages = self.zip.lock().give_back();
        self.budget.give(u64::from(pages));
    }

    /// Frees what a home that a page has left behind still holds. Not for resident pages: their
    /// hole is punched in runs.
    pub fn release(&self, old: Home) {
        match old {
            Home::Shared(frame) => self.release_frame(frame),
            Home::Compressed(slot) => self.release_zip(slot),
            Home::Swapped(slot) => self.swap.free(slot),
            Home::Untouched | Home::Zero | Home::Resident | Home::Ballooned => {}
        }
    }

    /// As [`release`](Self::release), of a page that its guest wanted.
    pub fn release_wanted(&self, gfn: Gfn, old: Home) {
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
