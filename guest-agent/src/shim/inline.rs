//! Faults that the faulting thread serves itself, as far as the daemon has offered and paid for it in
//! the claim table ([`claims`](crate::protocol::claims)).
//!
//! A signal costs more than to decompress a page. So where a guest walks its memory in order, the thread
//! brings some of the pages behind the one it faulted on too ([`Rows`]), until credits run low: there it leaves
//! them to pages that somebody has asked for.
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
        // Acquire pairs with the Release of the other process, as all three promise.
        self.word(at).load(Ordering::Acquire)
    }

    fn store(&self, at: u32, word: u32) {
        // Release: see `load`.
        self.word(at).store(word, Ordering::Release);
    }

    fn compare_exchange(&self, at: u32, from: u32, to: u32) -> Result<u32, u32> {
        // AcqRel, or Acquire alone when nothing is stored: see `load`.
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

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;
    use crate::protocol::claims::{CREDIT, MARK, TOLD, credit_word};
    use crate::protocol::filled::fill;

    const PAGES: u32 = 64;

    fn file(len: u64) -> OwnedFd {
        let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        file.into()
    }

    fn word(gfn: u32) -> u64 {
        u64::from(gfn) + 1
    }

    /// A guest all of whose pages are compressed to the words of their numbers, and which has `credits`.
    /// `None` without userfaultfd.
    fn guest(credits: u32) -> Option<(Inline, RamMap)> {
        let uffd = match uffd::open_for_signals() {
            Ok(uffd) => uffd,
            Err(error) => {
                let required = std::env::var_os("MEMVISOR_REQUIRE_UFFD");
                assert!(required.is_none_or(|set| set != "1"), "{error}");
                eprintln!("SKIPPED: no userfaultfd ({error})");
                return None;
            }
        };
        let ram = file(u64::from(PAGES) * PAGE_SIZE as u64);
        let map = RamMap::new(PAGES, 0, ram, file(0), Some(uffd)).unwrap();
        let (claims, arena) = (file(words(PAGES) * 4), file(PAGE_SIZE as u64));
        let inline = Inline::new(PAGES, &claims, &arena, 1).unwrap();
        for gfn in 0..PAGES {
            let mut page = [0; PAGE_SIZE];
            fill(word(gfn), &mut page);
            let at = gfn * 8;
            let bytes = word(gfn).to_le_bytes();
            inline.arena.write_all_at(&bytes, at.into()).unwrap();
            let place = Place {
                page: 0,
                at: u16::try_from(at).unwrap(),
                len: 8,
                sum: checksum(&page),
            };
            for (step, word) in (1..).zip(place.encode()) {
                inline.table.store(row(Gfn(gfn)) + step, word);
            }
            inline.table.store(row(Gfn(gfn)), State::Zip.encode());
        }
        inline.table.store(MARK, TOLD);
        for credit in 0..credits {
            inline.table.store(credit_word(credit), CREDIT);
        }
        Some((inline, map))
    }

    /// The pages that have come back, all of them with what they held.
    fn there(inline: &Inline, map: &RamMap) -> Vec<u32> {
        let claimer = Claimer::new(&inline.table);
        let is_done = |gfn: &u32| matches!(claimer.look(Gfn(*gfn)), State::Done { .. });
        let done: Vec<u32> = (0..PAGES).filter(is_done).collect();
        for gfn in &done {
            let mut bytes = [0; 8];
            map.read(Gfn(*gfn), PAGE_SIZE - 8, &mut bytes);
            assert_eq!(u64::from_le_bytes(bytes), word(*gfn));
        }
        done
    }

    #[test]
    fn row_of_refills_brings_pages_ahead_and_scattered_ones_do_not() {
        let Some((inline, map)) = guest(64) else {
            return;
        };
        let serve = |gfn| inline.serve(&map, Gfn(gfn), false);
        for (gfn, next) in [(0, 1), (1, 3), (3, 7), (7, 15), (15, 23)] {
            assert_eq!(serve(gfn), Served::Yes);
            assert_eq!(there(&inline, &map), Vec::from_iter(0..next));
        }
        assert_eq!(serve(50), Served::Yes);
        assert_eq!(serve(40), Served::Yes);
        let scattered = (0..23).chain([40, 50]);
        assert_eq!(there(&inline, &map), Vec::from_iter(scattered));
    }

    #[test]
    fn row_stops_at_what_is_not_offered_at_bytes_that_are_wrong_and_at_the_end_of_ram() {
        let Some((inline, map)) = guest(64) else {
            return;
        };
        let serve = |gfn| inline.serve(&map, Gfn(gfn), false);
        inline.table.store(row(Gfn(5)), State::None.encode());
        for gfn in [0, 1, 3] {
            assert_eq!(serve(gfn), Served::Yes);
        }
        assert_eq!(there(&inline, &map), Vec::from_iter(0..5));
        // The checksum of 34 is another one.
        inline.table.store(row(Gfn(34)) + 1, 0);
        for gfn in [30, 31, 33] {
            assert_eq!(serve(gfn), Served::Yes);
        }
        let second = (0..5).chain(30..34);
        assert_eq!(there(&inline, &map), Vec::from_iter(second.clone()));
        let offer = Claimer::new(&inline.table).look(Gfn(34));
        assert_eq!(offer, State::Zip, "the daemon shall look at it");
        for gfn in [60, 61] {
            assert_eq!(serve(gfn), Served::Yes);
        }
        assert_eq!(serve(63), Served::Yes);
        let all = second.chain(60..64);
        assert_eq!(there(&inline, &map), Vec::from_iter(all));
    }

    #[test]
    fn row_uses_no_more_credits_than_there_are_and_says_when_they_run_low() {
        let Some((inline, map)) = guest(12) else {
            return;
        };
        let serve = |gfn| inline.serve(&map, Gfn(gfn), false);
        inline.table.store(MARK, 5);
        assert_eq!([0, 1].map(serve), [Served::Yes; 2]);
        // Pages 3 to 5 take the credits up to the mark, and there the row ends.
        assert_eq!(serve(3), Served::Low);
        assert_eq!(there(&inline, &map), Vec::from_iter(0..6));
        assert_eq!(serve(6), Served::Yes);
        assert_eq!(there(&inline, &map), Vec::from_iter(0..12));
        assert_eq!(serve(12), Served::No, "no credit is left");
    }
}
