//! Pages that nobody has asked for: whether there is room for them, and reading them with those that were asked for.

use memvisor_wire::streams::MAX_AHEAD;

use super::Vm;
use crate::page::{Home, PageGuard};
use crate::swap::SlotRun;
use crate::units::{PageBuf, SlotId};

/// The part of the budget, one page in so many, that must be free beside the reserve for pages to be given ahead.
/// Reclaim keeps more than that free as long as it keeps up with the guests.
const FREE_PART: u64 = 256;

impl Vm {
    /// Whether there is room for pages that nobody has asked for.
    #[must_use]
    pub fn has_room(&self) -> bool {
        // They must not bring the VM to its ceiling, where its next fault would have to wait.
        let is_below_ceiling =
            self.held().0.saturating_add(MAX_AHEAD.into()) < self.orders.ceiling().0;
        let is_free = self.budget.spare().0 >= self.budget.total().0 / FREE_PART;
        is_free && is_below_ceiling
    }

    /// Reads a swapped page that was asked for together with those behind it that follow it in the swap file: reading eight
    /// pages takes hardly longer than reading one. Returns nothing where each page is to be read in its turn.
    pub fn read_together(
        &self,
        requested: &PageGuard<'_>,
        behind: &[PageGuard<'_>],
    ) -> Vec<PageBuf> {
        let Home::Swapped(start) = requested.home() else {
            return Vec::new();
        };
        let slots = (1..).map_while(|step| start.0.checked_add(step));
        let follows =
            |(page, slot): &(&PageGuard<'_>, u32)| page.home() == Home::Swapped(SlotId(*slot));
        let more = behind.iter().zip(slots).take_while(follows).count();
        if more == 0 {
            return Vec::new();
        }
        let mut pages = vec![PageBuf::zeroed(); more + 1];
        let len = u32::try_from(more + 1).unwrap_or(u32::MAX);
        // One of them may be damaged. Then each is read alone, so that the others are not lost with it.
        match self.swap.read_run(SlotRun { start, len }, &mut pages) {
            Ok(()) => pages,
            Err(_) => Vec::new(),
        }
    }
}
