//! The agent's half of the seam: how one protocol names pages. The host's half (`src/balloon/variant` of the daemon)
//! says what the protocols differ in.
//!
//! The agent keeps what is common: the connection, the target, the pace, relief. Most protocols move pages that the
//! agent chooses: it [locks](Variant::lock) and [unlocks](Variant::unlock) them, and holds them meanwhile. In the
//! others the host chooses, and the agent only [follows](Variant::follow): it sees to it that there are free pages.

mod bitmap;
mod hints;
mod lists;
mod ranges;

use std::io;
use std::os::fd::OwnedFd;

use memvisor_wire::GfnRun;
use memvisor_wire::balloon::{
    MAX_RANGES, Protocol, RangeBatch, Started, StatusRun, ToAgent, ToHost,
};

use self::bitmap::Bitmap;
use self::hints::Hints;
use self::lists::{PageLists, PfnArrays};
use self::ranges::{Ranges, Reporting};
use super::PageSource;
use super::link::{Link, LinkError};
use super::pace::Pace;

/// What became of pages that were sent to the host.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) statuses: Vec<StatusRun>,
    /// Pages for which the host gave no answer, because of `error`.
    pub(super) unanswered: Vec<GfnRun>,
    pub(super) error: Option<LinkError>,
}

impl Answers {
    /// No answer: the pages stay where they are. A protocol that holds no pages is not asked to move any.
    pub(super) fn none(runs: Vec<GfnRun>) -> Self {
        Self {
            unanswered: runs,
            ..Self::default()
        }
    }
}

/// What a protocol works with.
pub(super) struct Work<'w> {
    pub(super) link: &'w mut Link,
    pub(super) source: &'w dyn PageSource,
    pub(super) pace: &'w mut Pace,
    /// Pages that stay pinned, because a host did not answer the question about them in time.
    pub(super) in_doubt: &'w mut Vec<GfnRun>,
}

impl Work<'_> {
    /// Asks the host about pinned pages, a batch after the other, and tells `answered` of each. All are unpinned: those
    /// of a batch when it is answered, those that are not asked about any more after a failure, at once.
    fn ask_about(
        &mut self,
        pinned: Vec<GfnRun>,
        question: impl Fn(RangeBatch) -> ToHost,
        mut answered: impl FnMut(&RangeBatch, ToAgent) -> Result<(), LinkError>,
    ) -> Result<(), LinkError> {
        let mut failed = None;
        for batch in RangeBatch::split(pinned, MAX_RANGES as u32) {
            if failed.is_some() {
                self.source.release(batch.runs());
                continue;
            }
            let answer = self.link.ask(&question(batch.clone()));
            match &answer {
                // The host may still drop these pages.
                Err(error) if error.leaves_doubt() => self.in_doubt.extend_from_slice(batch.runs()),
                _ => self.source.release(batch.runs()),
            }
            failed = answer.and_then(|answer| answered(&batch, answer)).err();
        }
        failed.map_or(Ok(()), Err)
    }
}

/// How one protocol names pages, from `STARTED` to the end of that balloon.
pub(super) trait Variant: Send {
    /// Offers pinned pages to the host.
    fn lock(&mut self, _link: &mut Link, runs: Vec<GfnRun>) -> Answers {
        Answers::none(runs)
    }

    /// Asks for pages of the balloon.
    fn unlock(&mut self, _link: &mut Link, runs: Vec<GfnRun>) -> Answers {
        Answers::none(runs)
    }

    /// Whether the agent chooses pages and holds them, by [`lock`](Self::lock) and [`unlock`](Self::unlock).
    fn is_held_by_agent(&self) -> bool {
        true
    }

    /// Whether a guest that is out of memory deflates without asking, and by how much.
    fn deflates_on_oom(&self) -> Option<u32> {
        None
    }

    /// Does what the protocol does beside locking and unlocking, as far as the pace allows: after each poll, and
    /// whenever the host has said something.
    fn follow(&mut self, _work: &mut Work<'_>) -> Result<(), LinkError> {
        Ok(())
    }

    /// Pages that the host has, where the agent does not hold them.
    fn pages(&mut self, _source: &dyn PageSource) -> u64 {
        0
    }

    /// Ends the balloon: the host's books are void.
    fn end(&mut self, _source: &dyn PageSource) {}
}

/// Whether a kernel can be ballooned by a protocol.
pub(super) fn suits(protocol: Protocol, source: &dyn PageSource) -> bool {
    match protocol {
        Protocol::Ranges | Protocol::PageLists | Protocol::PfnArrays => true,
        Protocol::Reporting | Protocol::Hints | Protocol::Bitmap => source.free_pages().is_some(),
    }
}

/// The protocol that was agreed on. `shared` is what came with `STARTED`.
///
/// # Errors
/// The host has agreed to share a map, and none came that can be mapped.
pub(super) fn begin(
    started: &Started,
    shared: Vec<OwnedFd>,
    source: &dyn PageSource,
) -> io::Result<Box<dyn Variant>> {
    Ok(match Protocol::of(started.capabilities) {
        Protocol::Ranges => Box::new(Ranges),
        Protocol::PageLists => Box::new(PageLists),
        Protocol::PfnArrays => Box::new(PfnArrays),
        Protocol::Reporting => Box::new(Reporting::default()),
        Protocol::Hints => Box::new(Hints),
        Protocol::Bitmap => Box::new(Bitmap::begin(shared, source)?),
    })
}
