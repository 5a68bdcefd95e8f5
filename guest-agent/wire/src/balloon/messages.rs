//! The messages, and the groups of fields that they contain. A message is declared here and nowhere else.

#[cfg(test)]
use proptest::prelude::*;

use super::declare::{ANY, Field, Kind, Of, open};
#[cfg(test)]
use super::document::{Table, batch, result};
use super::{
    Capabilities, ErrorCode, HANDSHAKE_VERSION, ListedPage, MAX_BATCH_PAGES, MAX_ERROR_BYTES,
    MAX_LISTED, MAX_NAME_BYTES, MAX_PFNS, MAX_RANGES, MAX_STATS, PageStatus, RangeBatch, StatTag,
    VERSION,
};
use crate::{DecodeError, Gfn, GfnRun, Reader, Writer};

group! {
    /// The first message of an agent, and the first after a reset.
    pub struct Start checked by Start::check_versions {
        /// lowest version the agent speaks
        min_version: u16 [1..=u64::MAX],
        /// highest version the agent speaks, at least min_version
        max_version: u16,
        /// what the agent can do, [see below](#capabilities); bits unknown to the host are ignored
        capabilities: Capabilities,
        /// the secret that the guest's virtual hardware handed to its agent
        /// ([where an agent of yours gets it](#the-token))
        token: u64,
        /// pages of RAM the guest sees, at most those the VM has
        total_pages: u64,
        /// what the guest calls itself, for people
        name: String [0..=MAX_NAME_BYTES as u64],
    }
}

impl Start {
    /// The version both sides will speak: the highest common one. So far there is only one version.
    #[must_use]
    pub fn agreed_version(&self) -> Option<u16> {
        (self.min_version..=self.max_version)
            .contains(&VERSION)
            .then_some(VERSION)
    }

    fn check_versions(&self) -> Result<(), DecodeError> {
        let allowed = self.min_version.into()..=u64::MAX;
        Of::part("max_version", "", allowed).check(self.max_version.into())
    }
}

group! {
    /// The host's consent.
    #[derive(Copy)]
    pub struct Started {
        /// those of the offered ones that are in use
        capabilities: Capabilities,
        /// number of the VM, as `memvisor top` shows it
        vm: u32,
        /// how often to send `GET_TARGET`
        poll_interval_ms: u32 [1..=u64::MAX],
        /// ranges the host takes in one batch
        max_ranges: u32 [1..=MAX_RANGES as u64],
        /// the most pages this balloon may hold as of now: 65 % of the VM unless configured otherwise
        balloon_max: u64,
    }
}

group! {
    /// The answer to a batch.
    pub struct BatchResult {
        /// the target now, as in `TARGET`
        target: u64,
        /// n
        runs "number of runs": Vec<StatusRun> [1..=MAX_BATCH_PAGES as u64],
    }
}

group! {
    /// The answer to a list of pages.
    pub struct Listed {
        /// the target now, as in `TARGET`
        target: u64,
        /// n
        pages "number of pages": Vec<ListedPage> [1..=MAX_LISTED as u64],
    }
}

group! {
    /// What the host wants of the pages of an offer.
    pub struct Wanted {
        /// the number of this offer, which `GIVE` repeats; never 0
        epoch: u32 [1..=u64::MAX],
        /// pages that the balloon lacks to its target
        missing: u64,
        /// n
        ranges "number of ranges": Vec<GfnRun> [0..=MAX_RANGES as u64],
    }
}

group! {
    /// Neighbouring pages with the same status.
    #[derive(Copy)]
    pub struct StatusRun {
        /// the pages
        run: GfnRun,
        /// what became of each of them, [see below](#statuses)
        status: PageStatus,
    }
}

group! {
    /// One statistic.
    #[derive(Copy)]
    pub struct Stat {
        /// as in virtio-balloon: 0 swap in, 1 swap out, 2 major faults, 3 minor faults, 4 free memory,
        /// 5 total memory, 6 available memory, 7 disk caches, 10 out-of-memory kills; not of virtio:
        /// 0x8000 time that threads waited for the swap device, each by itself
        tag: StatTag,
        /// bytes for memory and swap, microseconds for 0x8000, a count for the others; since boot for
        /// 0 to 3, 10 and 0x8000
        value: u64,
    }
}

impl Stat {
    /// The statistic `tag` with this value.
    #[must_use]
    pub const fn new(tag: StatTag, value: u64) -> Self {
        Self { tag, value }
    }
}

messages! {
    /// What an agent says.
    pub enum ToHost (seq 1..=u64::MAX) {
        /// First on a connection, and again after `RESET`. The balloon is empty.
        START = 1, version HANDSHAKE_VERSION, reply STARTED: Start(start: Start),
            example 1
                "versions 1 to 1, BATCHED to RELIEF, token 0x0123456789abcdef, 262144 pages, \"web-1\""
                Self::Start(Start {
                    min_version: 1,
                    max_version: 1,
                    capabilities: Capabilities::COMMON,
                    token: 0x0123_4567_89ab_cdef,
                    total_pages: 262_144,
                    name: "web-1".into(),
                });

        /// How large shall the balloon be? Ask once per `poll_interval_ms`, doorbell or not.
        GET_TARGET = 2, reply TARGET: GetTarget {
            /// pages of RAM the guest sees now
            total_pages: u64,
            /// pages the agent believes to be in the balloon; the host counts a difference and uses
            /// its own number
            balloon_pages: u64,
        },
            example 2 "262144 pages, none in the balloon"
                Self::GetTarget { total_pages: 262_144, balloon_pages: 0 };

        /// Puts pages into the balloon, which the guest has pinned and will not touch; their content is
        /// lost. A batch has at most `max_ranges` ranges, as `STARTED` said. Ranges ascend and do not overlap,
        /// because the host locks pages in that order. None runs past the last gfn. All ranges together
        /// hold at most 4096 pages.
        LOCK = 3, reply LOCK_RESULT: Lock(ranges "number of ranges": RangeBatch),
            example 3 "6 pages from gfn 0x100 on, 1 page at 0x40000"
                Self::Lock(batch(&[(0x100, 6), (0x40000, 1)]));

        /// Takes pages out of the balloon; each reads as zeroes afterwards. The ranges are as in `LOCK`.
        UNLOCK = 4, reply UNLOCK_RESULT: Unlock(ranges "number of ranges": RangeBatch),
            example 4 "4 pages from 0x100 on" Self::Unlock(batch(&[(0x100, 4)]));

        /// How the guest is doing. Tags the host does not know are skipped; of a tag given twice the
        /// last one counts.
        STATS = 5, needs STATS: Stats(stats "number of statistics": Vec<Stat> [0..=MAX_STATS as u64]),
            example 5 "free memory 512 MiB, total memory 1 GiB" Self::Stats(vec![
                Stat::new(StatTag::FREE_MEMORY, 512 << 20),
                Stat::new(StatTag::TOTAL_MEMORY, 1 << 30),
            ]);

        /// The guest is short of memory and cannot help itself. The target in the reply is lower than
        /// what the balloon holds if the host can afford it ([how long](#relief)). The agent should
        /// deflate to it at once.
        RELIEF = 6, needs RELIEF, reply TARGET: Relief {
            /// how many pages would help
            pages: u64,
        },
            example 6 "256 pages" Self::Relief { pages: 256 };

        /// The agent leaves. The host empties the balloon and replies; then the connection ends and the
        /// pages are the guest's again.
        STOP = 7, reply STOPPED: Stop, example 7 "" Self::Stop;

        /// As `LOCK`, of single pages in any order ([page lists](#page-lists)).
        LOCK_PAGES = 0x10, needs PAGE_LISTS, reply PAGES_LOCKED:
            LockPages(pages "number of pages": Vec<ListedPage> [1..=MAX_LISTED as u64]),
            example 8 "gfn 0x100 and gfn 0x40000"
                Self::LockPages([0x100, 0x40000].map(ListedPage::asked).to_vec());

        /// As `UNLOCK`, of single pages in any order.
        UNLOCK_PAGES = 0x11, needs PAGE_LISTS, reply PAGES_UNLOCKED:
            UnlockPages(pages "number of pages": Vec<ListedPage> [1..=MAX_LISTED as u64]),
            example 9 "gfn 0x100" Self::UnlockPages(vec![ListedPage::asked(0x100)]);

        /// Pages that the guest has put into the balloon, in any order ([arrays](#arrays-of-page-numbers)).
        INFLATE = 0x20, needs PFN_ARRAYS, reply USED:
            Inflate(pfns "number of pages": Vec<Gfn> [1..=MAX_PFNS as u64]),
            example 10 "gfns 0x100 and 0x101" Self::Inflate(vec![Gfn(0x100), Gfn(0x101)]);

        /// Pages that the guest takes out of the balloon, in any order.
        DEFLATE = 0x21, needs PFN_ARRAYS, reply USED:
            Deflate(pfns "number of pages": Vec<Gfn> [1..=MAX_PFNS as u64]),
            example 11 "gfn 0x101" Self::Deflate(vec![Gfn(0x101)]);

        /// Pages that the guest does not use, and will not until the reply has come. The host may drop
        /// their content ([reporting](#free-page-reporting)). The ranges are as in `LOCK`.
        REPORT = 0x30, needs REPORTING, reply REPORTED: Report(ranges "number of ranges": RangeBatch),
            example 12 "512 pages from gfn 0x200 on" Self::Report(batch(&[(0x200, 512)]));

        /// Pages that the guest does not use just now, and may use at any time ([hints](#hints-with-epochs)).
        /// Each offer begins a new epoch. The ranges are as in `LOCK`.
        OFFER = 0x40, needs HINTS, reply WANTED: Offer(ranges "number of ranges": RangeBatch),
            example 13 "512 pages from gfn 0x200 on" Self::Offer(batch(&[(0x200, 512)]));

        /// Those of the wanted pages that the guest still did not use, and will not until the reply has come.
        GIVE = 0x41, needs HINTS, reply GIVEN: Give {
            /// that of `WANTED`
            epoch: u32,
            /// n
            ranges: RangeBatch,
        },
            example 14 "epoch 1, 6 pages from gfn 0x200 on"
                Self::Give { epoch: 1, ranges: batch(&[(0x200, 6)]) };
    }
}

impl ToHost {
    /// The capabilities without which an agent must not say this.
    #[must_use]
    pub fn needs(&self) -> Capabilities {
        match self {
            Self::Lock(batch) | Self::Unlock(batch) if batch.runs().len() > 1 => {
                Capabilities::BATCHED
            }
            _ => self.kind().needs.unwrap_or_default(),
        }
    }

    /// Whether the host replies to this.
    #[must_use]
    pub const fn has_reply(&self) -> bool {
        self.kind().reply.is_some()
    }
}

messages! {
    /// What the host says.
    pub enum ToAgent (seq ANY) {
        /// The host's consent.
        ///
        /// `balloon_max` is information, and it ages: the maximum may be changed while the session runs,
        /// which is not announced. The host keeps every target within the maximum of the moment, so an
        /// agent follows targets and compares nothing. When the maximum falls to 0 the target does, and
        /// the session stays; only a new session is refused then.
        STARTED = 0x8001: Started(started: Started),
            example 1
                "BATCHED to RELIEF, VM 3, poll every 1000 ms, 512 ranges, at most 170393 pages"
                Self::Started(Started {
                    capabilities: Capabilities::COMMON,
                    vm: 3,
                    poll_interval_ms: 1000,
                    max_ranges: 512,
                    balloon_max: 262_144 * 65 / 100,
                });

        /// The size the balloon shall have. With seq 0 it is the doorbell: the target has changed.
        TARGET = 0x8002: Target {
            /// the size the balloon shall have
            pages: u64,
        },
            example 2 "7 pages" Self::Target { pages: 7 },
            example 0 "0 pages, as a doorbell" Self::Target { pages: 0 };

        /// What became of the pages of a `LOCK`. The runs speak of exactly the pages of the request, in
        /// its order. They need not be cut as its ranges are: a run can end inside a range, or join two
        /// ranges that touch.
        LOCK_RESULT = 0x8003: LockResult(result: BatchResult),
            example 3
                "target 7; 4 pages from 0x100 OK, 2 from 0x104 ALREADY_LOCKED, 1 at 0x40000 INVALID"
                Self::LockResult(result(7, &[
                    (0x100, 4, PageStatus::Ok),
                    (0x104, 2, PageStatus::AlreadyLocked),
                    (0x40000, 1, PageStatus::Invalid),
                ]));

        /// What became of the pages of an `UNLOCK`, as in `LOCK_RESULT`.
        UNLOCK_RESULT = 0x8004: UnlockResult(result: BatchResult),
            example 4 "target 0; 4 pages from 0x100 OK"
                Self::UnlockResult(result(0, &[(0x100, 4, PageStatus::Ok)]));

        /// The reply to `STOP`, and the end of the connection.
        STOPPED = 0x8007: Stopped, example 7 "" Self::Stopped;

        /// The guest has touched a page of the balloon (it has rebooted, or crashed, or the agent is wrong
        /// about what it holds), so the two sides disagree. For the host the balloon is empty already.
        /// The agent frees all its pages **without** `UNLOCK` and sends `START` again on this connection.
        /// Seq is 0, or that of the request whose reply it takes the place of. Requests that were under
        /// way get no reply.
        RESET = 0x8008: Reset, example 0 "unasked" Self::Reset;

        /// The pages of a `LOCK_PAGES`, in its order, each with its status.
        PAGES_LOCKED = 0x8010: PagesLocked(listed: Listed),
            example 8 "target 7; gfn 0x100 OK, gfn 0x40000 INVALID" Self::PagesLocked(Listed {
                target: 7,
                pages: vec![
                    ListedPage::asked(0x100).answered(PageStatus::Ok),
                    ListedPage::asked(0x40000).answered(PageStatus::Invalid),
                ],
            });

        /// The pages of an `UNLOCK_PAGES`, in its order, each with its status.
        PAGES_UNLOCKED = 0x8011: PagesUnlocked(listed: Listed),
            example 9 "target 7; gfn 0x100 OK" Self::PagesUnlocked(Listed {
                target: 7,
                pages: vec![ListedPage::asked(0x100).answered(PageStatus::Ok)],
            });

        /// The host has read an `INFLATE` or `DEFLATE` and done what it could. It does not say of which pages.
        USED = 0x8020: Used,
            example 10 "the INFLATE" Self::Used,
            example 11 "the DEFLATE" Self::Used;

        /// The host has read a `REPORT`. Whether it dropped the pages or not: the guest may use them again,
        /// and each reads as zeroes or as it was.
        REPORTED = 0x8030: Reported, example 12 "" Self::Reported;

        /// What the host wants of an `OFFER`, of whose pages it has touched none.
        WANTED = 0x8040: Wanted(wanted: Wanted),
            example 13 "epoch 1, 7 pages are missing: those from gfn 0x200 on"
                Self::Wanted(Wanted {
                    epoch: 1,
                    missing: 7,
                    ranges: vec![GfnRun::new(Gfn(0x200), 7)],
                });

        /// What became of the pages of a `GIVE`, as in `LOCK_RESULT`. All are the guest's again. Of a page
        /// with the status OK the content is lost: the balloon holds it until the guest touches it.
        GIVEN = 0x8041: Given(result: BatchResult),
            example 14 "target 7; 6 pages from gfn 0x200 OK"
                Self::Given(result(7, &[(0x200, 6, PageStatus::Ok)]));

        /// Why the host ends the connection, which happens right after it; seq is 0. The pages stay in
        /// the balloon until the next `START`; the guest may use them, each reads as zeroes.
        ERROR = 0x80ff, version HANDSHAKE_VERSION: Error {
            /// tells the agent whether to come back, [see below](#error-codes)
            code: ErrorCode,
            /// the reason, for people
            text: String [0..=MAX_ERROR_BYTES as u64],
        },
            example 0 "ORDER, \"LOCK came before START\"" Self::Error {
                code: ErrorCode::Order,
                text: "LOCK came before START".into(),
            };
    }
}

impl ToAgent {
    /// The target that a message carries, if it carries one.
    #[must_use]
    pub const fn target(&self) -> Option<u64> {
        match self {
            Self::Target { pages } => Some(*pages),
            Self::LockResult(result) | Self::UnlockResult(result) | Self::Given(result) => {
                Some(result.target)
            }
            Self::PagesLocked(listed) | Self::PagesUnlocked(listed) => Some(listed.target),
            _ => None,
        }
    }
}
