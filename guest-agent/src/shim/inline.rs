//! Faults that the faulting thread serves itself, as far as the daemon has offered and paid for it in
//! the claim table ([`claims`](crate::protocol::claims)).
//!
//! A signal costs more than to decompress a page. So where a guest walks its memory in order, the thread
//! brings some of the pages behind the one it faulted on too ([`Rows`]), until credits run low: there it leaves
//! them to pages that somebody has asked for.
//!
//! A swapped page costs a read of the disk, and one read of eight pages costs hardly more. The daemon does that,
//! so pages of a row that are swapped are asked for; all others the thread reads itself, with two
//! wake-ups less.
//!
//! All of it runs in a signal handler: system calls, atomics, and buffers on the stack. What was begun
//! and cannot be ended is given up, and then the daemon is asked, which knows what to say about it.
//!
//! It goes by [`Step`]s, and none of them waits; who takes them does. In a guest that is the signal handler,
//! in the simulated machine a thread that stops between two steps as it likes.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::protocol::claims::{Attempt, Claim, Claimer, Place, State, Stood, Words, row};
use crate::protocol::payload::{checksum, decompress};
use crate::protocol::{Gfn, GfnRun, PAGE_SIZE};
use crate::rows::{Rows, Touched};

use super::mapping::Mapping;

/// The longest compressed page.
const MAX_PAYLOAD: usize = PAGE_SIZE / 2;
/// What a page holds that nobody has touched.
const ZEROES: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
/// The most pages brought back behind one that is asked for: the thread waits for them.
const AHEAD: u32 = 7;
/// How many pages behind one that the daemon has served are looked at to see how many came with it: as many as come.
const CAME: u32 = 15;
/// How often an offer that changes while it is claimed is looked at again before the daemon is asked.
const LOOKS: u32 = 8;

/// The claim table, and the threads that sleep at its words.
pub trait Table: Words {
    /// Wakes the threads that sleep at a word.
    fn wake(&self, at: u32);
}

/// The swap file of the guest.
pub trait SwapSlots: std::fmt::Debug + Send + Sync {
    /// Reads a slot as a whole, or says that it cannot be had. Async-signal-safe.
    fn read(&self, slot: u32, into: &mut AlignedPage) -> Option<()>;
}

/// A page as a read that goes past the page cache wants it.
#[derive(Debug)]
#[repr(align(4096))]
pub struct AlignedPage(pub [u8; PAGE_SIZE]);

impl SwapSlots for File {
    fn read(&self, slot: u32, into: &mut AlignedPage) -> Option<()> {
        let offset = u64::from(slot) * PAGE_SIZE as u64;
        let read = self.read_at(&mut into.0, offset).ok()?;
        (read == PAGE_SIZE).then_some(())
    }
}

/// What the threads of a guest may do by themselves. See the module text.
#[derive(Debug)]
pub struct Inline<T> {
    table: T,
    swap: Box<dyn SwapSlots>,
    /// Not mapped: the daemon gives each of its pages back after a few reads, and would then interrupt our
    /// processors to take it out of the mapping.
    arena: File,
    arena_pages: u32,
    rows: Rows,
}

/// What a thread that faulted does next.
#[derive(PartialEq, Eq, Debug)]
#[must_use]
pub enum Step {
    /// Go on with the page that it has claimed.
    Claimed(Work),
    /// Sleep while this word of the table is what it is while another thread is at the page, then access it
    /// again.
    Sleep {
        /// Which word.
        at: u32,
        /// What it is.
        word: u32,
    },
    /// Access the page again.
    Access,
    /// The same, when the daemon has been told that credits run out.
    Tell,
    /// Ask the daemon, and [say so](Inline::was_served) when it has served the page.
    Ask(Option<Touched>),
}

/// A page that is claimed.
#[derive(PartialEq, Eq, Debug)]
pub struct Work {
    claim: Claim,
    /// How far its row goes on, if that is known already.
    touched: Option<Touched>,
    /// It is asked for by nobody, but behind this page, with which so many have come.
    behind: Option<(Touched, u32)>,
}

impl Work {
    /// What its thread stands still for.
    pub(super) fn stood(&self) -> Stood {
        match self.claim.offer() {
            State::Frame => Stood::Break,
            State::Empty => Stood::Touch,
            State::Frozen => Stood::Open,
            State::Swap => Stood::SwapIn,
            _ => Stood::Refill,
        }
    }
}

impl<T: Table> Inline<T> {
    /// By a claim table, the swap file, and an arena of so many pages, holes included.
    #[must_use]
    pub const fn new(table: T, swap: Box<dyn SwapSlots>, arena: File, arena_pages: u32) -> Self {
        Self {
            table,
            swap,
            arena,
            arena_pages,
            rows: Rows::new(AHEAD),
        }
    }

    /// The claim table.
    pub const fn table(&self) -> &T {
        &self.table
    }

    pub(super) const fn claimer(&self) -> Claimer<'_, T> {
        Claimer::new(&self.table)
    }

    /// Begins with a fault on a page of RAM.
    pub fn begin(&self, gfn: Gfn, write: bool) -> Step {
        let claimer = self.claimer();
        let mut touched = None;
        for _ in 0..LOOKS {
            let offer = claimer.look(gfn);
            match offer {
                State::Zip | State::Empty | State::Frozen => {}
                State::Swap => {
                    let row = touched.get_or_insert_with(|| self.rows.touched(gfn));
                    if row.ahead > 0 {
                        return Step::Ask(touched);
                    }
                }
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

    /// The daemon has served a page that was asked for: its row goes on behind those that came with it.
    pub fn was_served(&self, touched: Touched, pages: u32) {
        let came = |next: &u32| {
            let gfn = touched.gfn.checked_add(next + 1);
            gfn.is_some_and(|gfn| gfn.0 < pages && self.claimer().look(gfn) == State::None)
        };
        let came = (0..CAME).take_while(came).count();
        self.rows.gave(touched, came as u32);
    }

    /// Does what a page was claimed for, and claims the next one of its row. A page ahead that does not
    /// come ends the row and nothing else.
    pub fn go_on(&self, map: &impl Mapping, work: Work) -> Step {
        let Work {
            claim,
            touched,
            behind,
        } = work;
        let (gfn, offer) = (claim.gfn(), claim.offer());
        let is_low = self.claimer().should_tell(&claim);
        let access = if is_low { Step::Tell } else { Step::Access };
        let is_done = self.carry_out(map, claim);
        let (touched, brought) = match behind {
            Some((touched, brought)) => (touched, brought + u32::from(is_done)),
            None if !is_done => return Step::Ask(touched),
            None if matches!(offer, State::Frame | State::Frozen) => return access,
            None => (touched.unwrap_or_else(|| self.rows.touched(gfn)), 0),
        };
        if is_done
            && !is_low
            && let Some(next) = touched.behind(brought)
            && next.0 < map.pages()
            && self.claimer().look(next) == offer
            && let Attempt::Claimed(claim) = self.claimer().claim(next, offer)
        {
            return Step::Claimed(Work {
                claim,
                touched: None,
                behind: Some((touched, brought)),
            });
        }
        self.rows.gave(touched, brought);
        access
    }

    /// Does what a page was claimed for, or gives it up; whether it is there.
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

    /// Brings a claimed page back from the arena; `None` when that does not succeed, and nothing has changed.
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
        // The file may be one that is not in use any more.
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
        // Nobody writes these bytes while the page is claimed, and if the daemon did, the checksum would tell.
        let read = self.arena.read_at(into, offset).ok()?;
        (read == len).then_some(into)
    }
}

/// Gives a claimed page that is shared a copy of its own; `None` as in [`Inline::refill`].
fn break_shared(map: &impl Mapping, gfn: Gfn) -> Option<()> {
    let run = GfnRun::single(gfn);
    map.copy_to_ram(gfn).ok()?;
    if map.map_present(run).is_err() {
        // It still reads its frame, and the daemon has not charged a page for it.
        let _ = map.punch(run);
        return None;
    }
    Some(())
}
