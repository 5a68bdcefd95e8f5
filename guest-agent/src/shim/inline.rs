//! Faults that the faulting thread serves itself, as far as the daemon has offered and paid for it in
//! the claim table ([`claims`](crate::protocol::claims)).
//!
//! All of it runs in a signal handler: system calls, atomics, and buffers on the stack. What was begun
//! and cannot be ended is given up, and then the daemon is asked, which knows what to say about it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::protocol::claims::{Attempt, Claim, Claimer, Place, State, Words, row, words};
use crate::protocol::payload::{checksum, decompress};
use crate::protocol::{Gfn, GfnRun, PAGE_SIZE};
use crate::rows::Rows;

use super::channels::{futex_wait, futex_wake};
use super::ram::{RamMap, map_file};
use super::uffd;

/// The longest compressed page.
const MAX_PAYLOAD: usize = PAGE_SIZE / 2;
/// The most pages brought back behind one that is asked for: the thread waits for them.
const AHEAD: u32 = 7;
/// How often an offer that changes while it is claimed is looked at again before the daemon is asked.
const LOOKS: u32 = 8;

/// The claim table as this process maps it.
#[derive(Debug)]
struct Table {
    base: usize,
    count: u64,
}

impl Table {
    fn word(&self, at: u32) -> &AtomicU32 {
        assert!(u64::from(at) < self.count, "word {at} of {}", self.count);
        let word = (self.base as *mut u32).wrapping_add(at as usize);
        // SAFETY: the word lies inside the mapping (checked above), which is never unmapped and page
        // aligned, so the word is aligned. All who use it, here and in the daemon, do so by atomics.
        unsafe { AtomicU32::from_ptr(word) }
    }
}

impl Words for Table {
    fn load(&self, at: u32) -> u32 {
        self.word(at).load(Ordering::Acquire)
    }

    fn store(&self, at: u32, word: u32) {
        self.word(at).store(word, Ordering::Release);
    }

    fn compare_exchange(&self, at: u32, from: u32, to: u32) -> Result<u32, u32> {
        self.word(at)
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }
}

/// What a thread may do by itself. See the module text.
#[derive(Debug)]
pub(super) struct Inline {
    table: Table,
    arena: File,
    arena_pages: u32,
    rows: Rows,
}

/// What a page is claimed for; `None` when that does not succeed, and nothing has changed.
type Work = fn(&Inline, &RamMap, &Claim) -> Option<()>;

/// How an attempt to serve a fault without the daemon ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Served {
    /// Access the page again.
    Yes,
    /// The same, and the daemon must be told that credits run out.
    Low,
    /// Ask the daemon.
    No,
}

impl Inline {
    /// Maps the claim table that the daemon has passed on, and keeps the arena to read it.
    pub(super) fn new(
        pages: u32,
        claims: &OwnedFd,
        arena: &OwnedFd,
        arena_pages: u32,
    ) -> io::Result<Self> {
        let count = words(pages);
        let len = usize::try_from(count * 4).map_err(io::Error::other)?;
        let table = Table {
            base: map_file(claims.as_fd(), len, libc::PROT_READ | libc::PROT_WRITE)?,
            count,
        };
        // Not mapped: the daemon gives each of its pages back after a few reads, and would then interrupt our
        // processors to take it out of the mapping.
        let arena = File::from(arena.try_clone()?);
        Ok(Self {
            table,
            arena,
            arena_pages,
            rows: Rows::new(AHEAD),
        })
    }

    /// Serves a fault on a page of RAM if that is offered; waits while another thread does.
    pub(super) fn serve(&self, map: &RamMap, gfn: Gfn, write: bool) -> Served {
        let claimer = Claimer::new(&self.table);
        for _ in 0..LOOKS {
            let offer = claimer.look(gfn);
            let work: Work = match offer {
                State::Zip => Self::refill,
                State::Frame if !write => return Served::Yes,
                State::Frame if claimer.may_break() => Self::break_shared,
                State::Taken { .. } => {
                    self.wait(gfn);
                    return Served::Yes;
                }
                State::Frame | State::None | State::Done { .. } => return Served::No,
            };
            let claim = match claimer.claim(gfn, offer) {
                Attempt::Claimed(claim) => claim,
                Attempt::NoCredit => return Served::No,
                Attempt::Changed => continue,
            };
            let served = self.carry_out(map, claim, work);
            return match (offer, served) {
                (State::Zip, Served::Yes) => self.refill_behind(map, gfn),
                _ => served,
            };
        }
        Served::No
    }

    /// Does what a page was claimed for.
    fn carry_out(&self, map: &RamMap, claim: Claim, work: Work) -> Served {
        let claimer = Claimer::new(&self.table);
        let gfn = claim.gfn();
        let is_low = claimer.should_tell(&claim);
        let done = work(self, map, &claim).is_some();
        let waited = if done {
            claimer.done(claim)
        } else {
            claimer.give_up(claim)
        };
        if waited {
            futex_wake(self.table.word(row(gfn)));
        }
        match (done, is_low) {
            (true, false) => Served::Yes,
            (true, true) => Served::Low,
            (false, _) => Served::No,
        }
    }

    /// Brings the pages behind `gfn`, which has just come back, if that was one of a row: as many as are
    /// offered and there are credits for, until these run low.
    fn refill_behind(&self, map: &RamMap, gfn: Gfn) -> Served {
        let claimer = Claimer::new(&self.table);
        let touched = self.rows.touched(gfn);
        let (mut brought, mut served) = (0, Served::Yes);
        while brought < touched.ahead() && served == Served::Yes {
            let next = gfn.checked_add(brought + 1);
            let offered = |next: &Gfn| next.0 < map.pages() && claimer.look(*next) == State::Zip;
            let Some(next) = next.filter(offered) else {
                break;
            };
            let Attempt::Claimed(claim) = claimer.claim(next, State::Zip) else {
                break;
            };
            match self.carry_out(map, claim, Self::refill) {
                // Nobody has asked for it yet.
                Served::No => break,
                done => served = done,
            }
            brought += 1;
        }
        self.rows.gave(touched, brought);
        served
    }

    /// Waits until another thread has ended what it does with a page.
    fn wait(&self, gfn: Gfn) {
        let claimer = Claimer::new(&self.table);
        while let Some(word) = claimer.wait_word(gfn) {
            futex_wait(self.table.word(row(gfn)), word);
        }
    }

    /// Brings a claimed page back from the arena.
    fn refill(&self, map: &RamMap, claim: &Claim) -> Option<()> {
        let place = Claimer::new(&self.table).place(claim);
        let mut payload = [0; MAX_PAYLOAD];
        let payload = self.read(place, &mut payload)?;
        let mut page = [0; PAGE_SIZE];
        if !decompress(payload, &mut page) || checksum(&page) != place.sum {
            return None;
        }
        uffd::copy(map.uffd()?, map.address(claim.gfn()), &page).ok()
    }

    /// Copies compressed bytes out of the arena; `None` when the place is not inside it.
    fn read<'a>(&self, place: Place, into: &'a mut [u8; MAX_PAYLOAD]) -> Option<&'a [u8]> {
        let (at, len) = (usize::from(place.at), usize::from(place.len));
        if place.page >= self.arena_pages || at + len > PAGE_SIZE {
            return None;
        }
        let into = into.get_mut(..len)?;
        let offset = u64::from(place.page) * PAGE_SIZE as u64 + at as u64;
        // Nobody writes these bytes while the page is claimed, and if the daemon did, the checksum would tell.
        let read = self.arena.read_at(into, offset).ok()?;
        (read == len).then_some(into)
    }

    /// Gives a claimed page that is shared a copy of its own.
    fn break_shared(&self, map: &RamMap, claim: &Claim) -> Option<()> {
        let run = GfnRun::single(claim.gfn());
        map.copy_to_ram(claim.gfn()).ok()?;
        if map.map_present(run).is_err() {
            // It still reads its frame, and the daemon has not charged a page for it.
            let _ = map.punch(run);
            return None;
        }
        Some(())
    }
}
