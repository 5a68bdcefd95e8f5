//! A map of free pages that guest and host share: the host takes and gives back pages, and says nothing.
//!
//! The agent maps it, and then looks now and then what the host has done. Where the host cannot reach its target for
//! want of free pages, the agent has the kernel make some free.

use std::io;
use std::os::fd::OwnedFd;

use super::super::PageSource;
use super::super::link::LinkError;
use super::{Variant, Work};

/// See the module text.
#[derive(Debug)]
pub(super) struct Bitmap;

impl Bitmap {
    pub(super) fn begin(shared: Vec<OwnedFd>, source: &dyn PageSource) -> io::Result<Self> {
        let free = source.free_pages();
        match (shared.into_iter().next(), free) {
            (Some(map), Some(free)) => free.show(map).map(|()| Self),
            _ => Err(io::Error::other("the host sent no map of free pages")),
        }
    }
}

impl Variant for Bitmap {
    fn is_held_by_agent(&self) -> bool {
        false
    }

    fn follow(&mut self, work: &mut Work<'_>) -> Result<(), LinkError> {
        let Some(free) = work.source.free_pages() else {
            return Ok(());
        };
        let settled = free.settle();
        let soon = u64::from(settled.taken) + u64::from(settled.shown);
        let want = u32::try_from(work.link.target().saturating_sub(soon)).unwrap_or(u32::MAX);
        let want = want.min(work.pace.inflate_left());
        if want > 0 {
            let freed = if work.pace.may_reclaim() {
                free.reclaim(want)
            } else {
                0
            };
            work.pace.inflated(want, freed);
        }
        Ok(())
    }

    fn pages(&mut self, source: &dyn PageSource) -> u64 {
        let settled = source.free_pages().map(|free| free.settle());
        settled.map_or(0, |settled| settled.taken.into())
    }

    fn end(&mut self, source: &dyn PageSource) {
        if let Some(free) = source.free_pages() {
            free.hide();
        }
    }
}
