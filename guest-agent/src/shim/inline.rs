//! Faults that the faulting thread serves itself, as far as the daemon has offered pages and granted
//! credits in the claim table ([`claims`](memvisor_wire::claims)).
//!
//! A signal costs more than decompressing a page. So where a guest walks its memory in order, the thread
//! also brings back some of the pages behind the one on which it faulted ([`Streams`]). It stops when credits
//! run low, and leaves the rest of them to pages on which a thread has really faulted.
//!
//! A swapped page costs a read of the disk, but one read of eight pages costs hardly more than a read of one.
//! Only the daemon reads several pages at once, so the thread asks it for swapped pages of a stream. The thread
//! reads all other swapped pages itself, which saves two wake-ups.
//!
//! All of this runs in a signal handler: it uses system calls, atomics, and buffers on the stack. A claim
//! whose work fails is given up, and then the thread asks the daemon, which can say what is wrong.
//!
//! The work is cut into [`Step`]s. No step waits; only the caller does, between two steps. In a guest the
//! caller is the signal handler. In the simulated machine it is a thread that may stop between any two steps.

use std::fs::File;
use std::os::unix::fs::FileExt;

use memvisor_wire::claims::{Attempt, Claim, Claimer, Place, StallCause, State, Words, row};
use memvisor_wire::payload::{checksum, decompress};
use memvisor_wire::streams::{MAX_AHEAD, Streams, Touched};
use memvisor_wire::{Gfn, GfnRun, PAGE_SIZE};

use super::mapping::Mapping;

/// The longest compressed page.
const MAX_PAYLOAD: usize = PAGE_SIZE / 2;
/// The content of a page that nobody has touched.
const ZEROES: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
/// The most pages that a thread brings back behind the one on which it faulted, because it stands still meanwhile.
const AHEAD: u32 = 7;
/// How often to try to claim an offer that changes before it is claimed. After that the daemon is asked.
const ATTEMPTS: u32 = 8;

/// The claim table, and the threads that sleep at its words.
pub trait Table: Words {
    /// Wakes the threads that sleep at a word.
    fn wake(&self, at: u32);
}

/// The swap file of the guest.
pub trait SwapSlots: std::fmt::Debug + Send + Sync {
    /// Reads a whole slot; `None` if that fails. Async-signal-safe.
    fn read(&self, slot: u32, into: &mut AlignedPage) -> Option<()>;
}

/// A page with the alignment that a read past the page cache (`O_DIRECT`) needs.
#[derive(Debug)]
#[repr(align(4096))]
pub struct AlignedPage(pub [u8; PAGE_SIZE]);

impl SwapSlots for File {
    fn read(&self, slot: u32, into: &mut AlignedPage) -> Option<()> {
        let offset = u64::from(slot) * PAGE_SIZE as u64;
        let read = self.read_at(&mut into.0, offset).ok()?;
        // A short read is a file that was cut: the page has moved on, and the daemon knows where to.
        (read == PAGE_SIZE).then_some(())
    }
}

/// What the threads of a guest may do by themselves. See the module text.
#[derive(Debug)]
pub struct Inline<T> {
    table: T,
    swap: Box<dyn SwapSlots>,
    /// Read by system calls, not mapped. The daemon frees each page of the arena after a few reads; it would have to
    /// interrupt the guest's processors each time to take the page out of a mapping.
    arena: File,
    arena_pages: u32,
    streams: Streams,
}

/// What a thread that faulted does next.
#[derive(PartialEq, Eq, Debug)]
#[must_use]
pub enum Step {
    /// [Go on](Inline::go_on) with the page that the thread has claimed.
    Claimed(Work),
    /// Another thread has claimed the page: sleep until this word of the table changes, then access the page again.
    Sleep {
        /// Which word.
        at: u32,
        /// Its value while the claim lasts.
        word: u32,
    },
    /// Access the page again.
    Access,
    /// Report to the daemon that credits run low, then access the page again.
    Report,
    /// Ask the daemon. When it has served the page and it belongs to a stream, call [`Inline::was_served`] with that.
    Ask(Option<Touched>),
}

/// A page that is claimed.
#[derive(PartialEq, Eq, Debug)]
pub struct Work {
    claim: Claim,
    /// How far the stream of the page goes on, if that is known already.
    touched: Option<Touched>,
    /// Set for a page that is brought ahead: the page on which the thread faulted, and how many pages behind that one
    /// have been brought so far.
    behind: Option<(Touched, u32)>,
}

impl Work {
    /// What the thread stands still for.
    pub(super) fn stall_cause(&self) -> StallCause {
        match self.claim.offer() {
            State::Frame => StallCause::Break,
            State::Empty => StallCause::Touch,
            State::Frozen => StallCause::Open,
            State::Swap => StallCause::SwapIn,
            _ => StallCause::Refill,
        }
    }
}

impl<T: Table> Inline<T> {
    /// Serves faults from a claim table, the swap file, and an arena of `arena_pages` pages, holes included.
    #[must_use]
    pub const fn new(table: T, swap: Box<dyn SwapSlots>, arena: File, arena_pages: u32) -> Self {
        Self {
            table,
            swap,
            arena,
            arena_pages,
            streams: Streams::new(AHEAD),
        }
    }

    /// The claim table.
    pub const fn table(&self) -> &T {
        &self.table
    }

    pub(super) const fn claimer(&self) -> Claimer<'_, T> {
        Claimer::new(&self.table)
    }

    /// Begins to serve a fault on a page of RAM.
    pub fn begin(&self, gfn: Gfn, write: bool) -> Step {
        let claimer = self.claimer();
        let mut touched = None;
        for _ in 0..ATTEMPTS {
            let offer = claimer.state(gfn);
            match offer {
                State::Zip | State::Empty | State::Frozen => {}
                State::Swap => {
                    // In a stream, the daemon brings several pages by one read.
                    let stream = touched.get_or_insert_with(|| self.streams.touched(gfn));
                    if stream.ahead > 0 {
                        return Step::Ask(touched);
                    }
                }
                // Readable as it is: the offer came after the fault.
                State::Frame if !write => return Step::Access,
                State::Frame if claimer.may_break() => {}
                State::Taken { .. } => {
                    let sleep = |word| Step::Sleep { at: row(gfn), word };
                    return claimer.wait_word(gfn).map_or(Step::Access, sleep);
                }
                State::Frame | State::None | State::Done { .. } => return Step::Ask(touched),
            }
            match claimer.claim(gfn, offer) {
                Attempt::Claimed(claim) => {
                    return Step::Claimed(Work {
                        claim,
                        touched,
                        behind: None,
                    });
                }
                Attempt::NoCredit => return Step::Ask(touched),
                Attempt::Changed => {}
            }
        }
        Step::Ask(touched)
    }

    /// Notes that the daemon has served a page that was asked for. The stream goes on behind the pages that came with
    /// it.
    pub fn was_served(&self, touched: Touched, pages: u32) {
        // A page that came is resident and open, so it is no longer offered.
        let came = |next: &u32| {
            let gfn = touched.gfn.checked_add(next + 1);
            gfn.is_some_and(|gfn| gfn.0 < pages && self.claimer().state(gfn) == State::None)
        };
        let came = (0..MAX_AHEAD).take_while(came).count();
        self.streams.gave(touched, came as u32);
    }

    /// Does what a page was claimed for, and claims the next page of its stream. A page ahead that cannot be brought
    /// only ends the stream; the daemon is not asked for it.
    pub fn go_on(&self, map: &impl Mapping, work: Work) -> Step {
        let Work {
            claim,
            touched,
            behind,
        } = work;
        let (gfn, offer) = (claim.gfn(), claim.offer());
        // Found out before the claim ends, because the claim names the credit; reported when the page is in place.
        let is_low = self.claimer().should_report(&claim);
        let access = if is_low { Step::Report } else { Step::Access };
        let is_done = self.carry_out(map, claim);
        let (touched, brought) = match behind {
            Some((touched, brought)) => (touched, brought + u32::from(is_done)),
            None if !is_done => return Step::Ask(touched),
            None if matches!(offer, State::Frame | State::Frozen) => return access,
            None => (touched.unwrap_or_else(|| self.streams.touched(gfn)), 0),
        };
        if is_done
            && !is_low
            && let Some(next) = touched.behind(brought)
            && next.0 < map.pages()
            && self.claimer().state(next) == offer
            && let Attempt::Claimed(claim) = self.claimer().claim(next, offer)
        {
            return Step::Claimed(Work {
                claim,
                touched: None,
                behind: Some((touched, brought)),
            });
        }
        self.streams.gave(touched, brought);
        access
    }

    /// Does what a page was claimed for, or gives the claim up. Returns whether the page is in place.
    fn carry_out(&self, map: &impl Mapping, claim: Claim) -> bool {
        let gfn = claim.gfn();
        let done = match claim.offer() {
            State::Zip => self.refill(map, &claim),
            State::Swap => self.swap_in(map, &claim),
            State::Empty => map.install(gfn, &ZEROES).ok(),
            State::Frozen => map.open(gfn).ok(),
            _ => break_shared(map, gfn),
        };
        let waited = match done {
            Some(()) => self.claimer().done(claim),
            None => self.claimer().give_up(claim),
        };
        if waited {
            self.table.wake(row(gfn));
        }
        done.is_some()
    }

    /// Brings a claimed page back from the arena; `None` when that fails, and then nothing has changed.
    fn refill(&self, map: &impl Mapping, claim: &Claim) -> Option<()> {
        let place = self.claimer().place(claim);
        let mut payload = [0; MAX_PAYLOAD];
        let payload = self.read(place, &mut payload)?;
        let mut page = [0; PAGE_SIZE];
        if !decompress(payload, &mut page) || checksum(&page) != place.sum {
            return None;
        }
        map.install(claim.gfn(), &page).ok()
    }

    /// Brings a claimed page back from the swap file; `None` as in [`refill`](Self::refill).
    fn swap_in(&self, map: &impl Mapping, claim: &Claim) -> Option<()> {
        let place = self.claimer().place(claim);
        let mut page = AlignedPage([0; PAGE_SIZE]);
        self.swap.read(place.page, &mut page)?;
        // The daemon may have replaced the swap file, and then this one is out of date.
        if checksum(&page.0) != place.sum {
            return None;
        }
        map.install(claim.gfn(), &page.0).ok()
    }

    /// Copies compressed bytes out of the arena; `None` when the place is not inside it.
    fn read<'a>(&self, place: Place, into: &'a mut [u8; MAX_PAYLOAD]) -> Option<&'a [u8]> {
        let len = usize::from(place.len);
        let into = into.get_mut(..len)?;
        let offset = u64::from(place.page) * PAGE_SIZE as u64 + u64::from(place.at);
        if offset + len as u64 > u64::from(self.arena_pages) * PAGE_SIZE as u64 {
            return None;
        }
        // Nobody writes these bytes while the page is claimed. If the daemon did, the checksum would tell.
        let read = self.arena.read_at(into, offset).ok()?;
        (read == len).then_some(into)
    }
}

/// Gives a claimed shared page a copy of its own; `None` as in [`Inline::refill`].
fn break_shared(map: &impl Mapping, gfn: Gfn) -> Option<()> {
    let run = GfnRun::single(gfn);
    map.copy_to_ram(gfn).ok()?;
    if map.map_present(run).is_err() {
        // The page still reads its frame, and the credit goes back: the copy must not stay in RAM unpaid.
        let _ = map.punch(run);
        return None;
    }
    Some(())
}
