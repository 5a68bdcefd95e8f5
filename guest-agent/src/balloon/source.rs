//! What the agent needs of its guest's kernel.

use std::io;
use std::os::fd::OwnedFd;

use memvisor_wire::balloon::Stat;
use memvisor_wire::{Gfn, GfnRun};

/// The guest's kernel, as far as the agent sees it. Calls come from the agent's thread.
pub trait PageSource: Send + Sync {
    /// How many pages of RAM the guest has, the balloon included.
    fn total_pages(&self) -> u64;

    /// Allocates and pins up to `max` pages: the guest will not touch them until they are
    /// [released](Self::release). Never takes from emergency reserves and never kills a process.
    /// With `may_reclaim` the kernel may reclaim pages for this, which can take time. Fewer pages than
    /// `max` mean that no more can be had in this way now.
    fn allocate(&self, max: u32, may_reclaim: bool) -> Vec<GfnRun>;

    /// Lets the guest use these pages again. They come from [`allocate`](Self::allocate); their
    /// content is lost.
    fn release(&self, runs: &[GfnRun]);

    /// Statistics of the guest, at most [`MAX_STATS`](memvisor_wire::balloon::MAX_STATS) of them.
    fn stats(&self) -> Vec<Stat>;

    /// The kernel's free pages, if it can show them. Without them the agent speaks only protocols that need none.
    fn free_pages(&self) -> Option<&dyn FreePages> {
        None
    }
}

/// A kernel's free pages, for protocols in which the host takes the memory of pages that stay the guest's.
pub trait FreePages {
    /// At most `max` free pages from `from` on, and where to go on; `None` at the end of RAM. With `fresh`, it lists only
    /// pages that the host has not [dropped](Self::dropped) since they came free. A moment later some may be in use.
    fn list(&self, from: Gfn, max: u32, fresh: bool) -> (Vec<GfnRun>, Option<Gfn>);

    /// Pins those of the pages that are free at this moment and can be spared, as if they came from
    /// [`PageSource::allocate`].
    fn pin(&self, runs: &[GfnRun]) -> Vec<GfnRun>;

    /// Notes that the host has dropped these pages, which have been released: each costs the guest a fault when it uses
    /// the page, so it should use others first.
    fn dropped(&self, runs: &[GfnRun]);

    /// Makes up to `max` pages free, which can take time; how many.
    fn reclaim(&self, max: u32) -> u32;

    /// Shows free pages to the host from now on, in the map that it has sent.
    ///
    /// # Errors
    /// The map cannot be mapped; nothing is shown.
    fn show(&self, map: OwnedFd) -> io::Result<()>;

    /// Looks which pages the host has taken and given back.
    fn settle(&self) -> Settled;

    /// Shows none any more and takes all back, because the host's books are void.
    fn hide(&self);
}

/// What a look at a shared map has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settled {
    /// Pages that the host has.
    pub taken: u32,
    /// Free pages that it may take.
    pub shown: u32,
}
