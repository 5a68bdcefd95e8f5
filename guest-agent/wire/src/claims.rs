//! The claim table: how a guest thread serves its own fault, and how the daemon learns of it.
//!
//! A faulting thread could serve many faults by itself: those that bring a page back from the
//! compression cache or the swap file, copy a shared frame, touch a page for the first time, or map a
//! frozen page. All it lacks is the daemon's leave to move the page and, except for a frozen page, to
//! use one more page of memory. Asking for that leave costs two wake-ups, which is more than the work
//! itself. So the daemon gives its leave beforehand, in memory that it shares with this one guest:
//!
//! - A *row* for each page says what the daemon *offers*. A thread *claims* the page by changing the
//!   row's state word, and the daemon *revokes* the offer by changing the same word, so one of them is
//!   first. The guest holds the lock of a claimed page until it says that it is done.
//! - A *credit* is one page of memory that is charged already. Each credit is a numbered word, and a
//!   row names the credit that its page used. Settling them therefore depends on no counter.
//!
//! Words have 32 bits in the machine's byte order. The table begins with a header of [`HEADER_WORDS`]
//! words: the [`MARK`], whether [`BREAKS`] are allowed, [`CREDITS`] credits, and the times for which
//! threads stood still, by [`StallCause`]. The rows follow, [`ROW_WORDS`] words for each page: the state, the checksum
//! of the page's content, the arena page in which the compressed page begins, and its offset and length
//! there. For a swapped page, the slot takes the place of the arena page.
//!
//! ```text
//!            daemon unlocks the page                daemon locks the page
//!   NONE ----------------> EMPTY, ZIP, SWAP, FRAME, FROZEN ---------------> NONE
//!     ^                                 |      ^
//!     | daemon locks the page    claims |      | gives up
//!     |                                 v      |
//!   DONE <----------------------------- TAKEN -+
//! ```
//!
//! A table of zeroes belongs to a guest that has touched no page yet and may touch all of them.
//!
//! This module is the guest's half. It runs in a signal handler, so it neither allocates, locks nor
//! waits. The daemon believes nothing that the guest writes into the table.

use std::time::Duration;

mod shared;
mod stall;

use crate::Gfn;

pub use stall::StallCause;

/// Words before the first row: they fill one page.
pub const HEADER_WORDS: u32 = 1024;
/// Words of a row.
pub const ROW_WORDS: u32 = 4;
/// The most credits that a guest can have: 1 MiB of memory.
pub const CREDITS: u32 = 256;
/// The word that holds the mark: a thread that takes this credit or a later one tells the daemon that credits run out.
pub const MARK: u32 = 0;
/// The word that says whether threads may break shared pages without asking: 1 for yes.
pub const BREAKS: u32 = 1;
/// The word of the first credit.
pub const FIRST_CREDIT: u32 = 2;
/// The first of the words, one for each [`StallCause`], in which guest threads add up how long they stood still. The
/// unit is the microsecond, modulo 2^32.
pub const FIRST_STALL: u32 = FIRST_CREDIT + CREDITS;
/// Value of [`MARK`] once a thread has reported that credits run low. No credit has so high a number, so nobody
/// reports it again.
pub const REPORTED: u32 = u32::MAX;

/// Value of a credit's word: the daemon has not granted this credit.
pub const NO_CREDIT: u32 = 0;
/// Value of a credit's word: any thread may take this credit.
pub const CREDIT: u32 = 1;
/// The word of a credit that was taken for page `gfn` is `gfn + USED`.
pub const USED: u32 = 2;
/// Stands in place of a credit's number where the page needed no credit.
pub const FREE: u32 = CREDITS;

/// Memory in which several processes read and write single words at once.
///
/// The protocol relies on the order that these three operations keep. An offer becomes visible after the place that
/// it offers. A page becomes DONE after its bytes are in place and the word of its credit names it. A credit is
/// granted again after it was taken away.
pub trait Words: Send + Sync + std::fmt::Debug {
    /// Reads a word. The reader also sees everything that the writer of this word had stored before it (acquire).
    fn load(&self, at: u32) -> u32;

    /// Writes a word, after everything that this thread has stored before (release).
    fn store(&self, at: u32, word: u32);

    /// Atomically changes a word from `from` to `to`, or returns what the word is instead. Orders memory as both
    /// [`load`](Self::load) and [`store`](Self::store) do.
    ///
    /// # Errors
    /// The word, if it is not `from`.
    fn compare_exchange(&self, at: u32, from: u32, to: u32) -> Result<u32, u32>;
}

/// How many words the table of a guest of `pages` pages has.
#[must_use]
pub const fn words(pages: u32) -> u64 {
    HEADER_WORDS as u64 + ROW_WORDS as u64 * pages as u64
}

/// The word of the state of a page.
#[must_use]
pub const fn row(gfn: Gfn) -> u32 {
    HEADER_WORDS + ROW_WORDS * gfn.0
}

/// The word of a credit.
#[must_use]
pub const fn credit_word(credit: u32) -> u32 {
    FIRST_CREDIT + credit
}

const KIND: u32 = 0b111;
const WAITED: u32 = 1 << 3;
const CREDIT_SHIFT: u32 = 8;

/// The state of a page's row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Nothing is offered.
    None,
    /// The page may be brought back from the compression cache.
    Zip,
    /// The page may be brought back from the swap file.
    Swap,
    /// The shared page may be given a copy of its own.
    Frame,
    /// The page holds nothing, and may be given a page of zeroes.
    Empty,
    /// The page is in RAM, not mapped, and may be mapped. That needs no credit.
    Frozen,
    /// A thread of the guest has claimed the page and works on it.
    Taken {
        /// The credit that the thread uses.
        credit: u32,
        /// Whether other threads wait for the page.
        waited: bool,
    },
    /// A thread has finished its work on the page, and the daemon has not looked since.
    Done {
        /// The credit that the thread used.
        credit: u32,
    },
}

impl State {
    /// The word that stands for this state.
    #[must_use]
    pub const fn encode(self) -> u32 {
        match self {
            // 0, because a new table is all zeroes and offers every page.
            Self::Empty => 0,
            Self::None => 5,
            Self::Frozen => 6,
            Self::Zip => 1,
            Self::Frame => 2,
            Self::Swap => 7,
            Self::Taken { credit, waited } => {
                3 | if waited { WAITED } else { 0 } | credit << CREDIT_SHIFT
            }
            Self::Done { credit } => 4 | credit << CREDIT_SHIFT,
        }
    }

    /// The state that a word stands for; `None` for a word that stands for no state.
    #[must_use]
    pub const fn decode(word: u32) -> Option<Self> {
        let credit = word >> CREDIT_SHIFT;
        let state = match word & KIND {
            0 => Self::Empty,
            5 => Self::None,
            6 => Self::Frozen,
            1 => Self::Zip,
            2 => Self::Frame,
            3 => Self::Taken {
                credit,
                waited: word & WAITED != 0,
            },
            4 => Self::Done { credit },
            _ => Self::Swap,
        };
        // Each state has one word only: stray bits make no state.
        if state.encode() == word && credit <= FREE {
            Some(state)
        } else {
            None
        }
    }
}

/// Where a page is that has left RAM: in the arena of its VM if it is compressed, else in the swap file. A compressed
/// page may continue in the next arena page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The arena page in which the compressed page begins, or the slot of the swap file.
    pub page: u32,
    /// The offset in that arena page.
    pub at: u16,
    /// The length in bytes.
    pub len: u16,
    /// The low half of the XXH3-64 of the page's content.
    pub sum: u32,
}

impl Place {
    /// The words that follow the state in a row.
    #[must_use]
    pub const fn encode(self) -> [u32; 3] {
        [
            self.sum,
            self.page,
            (self.at as u32) << 16 | self.len as u32,
        ]
    }

    const fn decode([sum, page, part]: [u32; 3]) -> Self {
        Self {
            page,
            at: (part >> 16) as u16,
            len: part as u16,
            sum,
        }
    }
}

/// The table as the guest uses it.
#[derive(Debug)]
pub struct Claimer<'a, W: ?Sized>(&'a W);

/// A page that this thread has claimed. The thread must end the claim by [`Claimer::done`] or [`Claimer::give_up`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a page that is claimed and forgotten is locked for ever"]
pub struct Claim {
    gfn: Gfn,
    credit: u32,
    offer: State,
}

impl Claim {
    /// Which page.
    #[must_use]
    pub const fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// What was offered.
    #[must_use]
    pub const fn offer(&self) -> State {
        self.offer
    }
}

/// How an attempt to claim a page ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The page is ours.
    Claimed(Claim),
    /// No credit is left: ask the daemon.
    NoCredit,
    /// The offer has changed since it was seen: try again.
    Changed,
}

impl<'a, W: Words + ?Sized> Claimer<'a, W> {
    /// The guest's half of the table in `words`, which the daemon made for a guest of its size.
    pub const fn new(words: &'a W) -> Self {
        Self(words)
    }

    /// What is offered for a page. A word that stands for no state is no offer.
    #[must_use]
    pub fn state(&self, gfn: Gfn) -> State {
        State::decode(self.0.load(row(gfn))).unwrap_or(State::None)
    }

    /// Whether threads may break shared pages without asking.
    #[must_use]
    pub fn may_break(&self) -> bool {
        self.0.load(BREAKS) == 1
    }

    /// Claims a page for which this `offer` was seen.
    pub fn claim(&self, gfn: Gfn, offer: State) -> Attempt {
        // The credit is taken before the offer. Either could be put back, but in this order a guest
        // without credits leaves its offers alone.
        let credit = match offer {
            State::Frozen => Some(FREE),
            _ => self.take_credit(gfn),
        };
        let Some(credit) = credit else {
            return Attempt::NoCredit;
        };
        let taken = State::Taken {
            credit,
            waited: false,
        };
        let claimed = self
            .0
            .compare_exchange(row(gfn), offer.encode(), taken.encode());
        if claimed.is_err() {
            self.give_credit_back(credit);
            return Attempt::Changed;
        }
        Attempt::Claimed(Claim { gfn, credit, offer })
    }

    fn give_credit_back(&self, credit: u32) {
        if credit != FREE {
            // A plain store: while a thread holds a credit, nobody else changes its word.
            self.0.store(credit_word(credit), CREDIT);
        }
    }

    /// Takes the free credit with the lowest number: [`should_report`](Self::should_report) concludes from the number
    /// of a credit how many are taken.
    fn take_credit(&self, gfn: Gfn) -> Option<u32> {
        // The lowest one first, because the number of a credit tells how many are left (`MARK`).
        (0..CREDITS).find(|credit| {
            let at = credit_word(*credit);
            // A load first: an exchange that fails would take the word's cache line from the other threads for nothing.
            self.0.load(at) == CREDIT && self.0.compare_exchange(at, CREDIT, gfn.0 + USED).is_ok()
        })
    }

    /// Where the claimed page is, which must be compressed or swapped.
    #[must_use]
    pub fn place(&self, claim: &Claim) -> Place {
        let at = row(claim.gfn) + 1;
        Place::decode([0, 1, 2].map(|word| self.0.load(at + word)))
    }

    /// Ends a claim whose page is in place. Returns whether other threads must be woken.
    #[expect(clippy::needless_pass_by_value, reason = "the claim ends here")]
    pub fn done(&self, claim: Claim) -> bool {
        let credit = claim.credit;
        self.end(claim.gfn, State::Done { credit })
    }

    /// Ends a claim whose page is as it was before: puts the credit and the offer back. Returns whether other threads
    /// must be woken.
    #[expect(clippy::needless_pass_by_value, reason = "the claim ends here")]
    pub fn give_up(&self, claim: Claim) -> bool {
        self.give_credit_back(claim.credit);
        self.end(claim.gfn, claim.offer)
    }

    fn end(&self, gfn: Gfn, state: State) -> bool {
        let at = row(gfn);
        let mut word = self.0.load(at);
        // While the page is TAKEN, the word changes only when a thread marks that it waits.
        while let Err(now) = self.0.compare_exchange(at, word, state.encode()) {
            word = now;
        }
        word & WAITED != 0
    }

    /// Adds the time for which a thread stood still.
    pub fn add_stall(&self, cause: StallCause, took: Duration) {
        // Rounded to the nearest microsecond: cutting off would lose half of one each time, and most waits are short.
        let micros = (took + Duration::from_nanos(500)).as_micros() as u32;
        let at = cause.word();
        let mut word = self.0.load(at);
        while let Err(now) = self.0.compare_exchange(at, word, word.wrapping_add(micros)) {
            word = now;
        }
    }

    /// Whether the thread that has just made this `claim` should tell the daemon that credits run out. Only one thread
    /// gets `true`.
    #[must_use]
    pub fn should_report(&self, claim: &Claim) -> bool {
        let mark = self.0.load(MARK);
        claim.credit != FREE
            && claim.credit >= mark
            // Exchanged, so that one of several threads reports, and not all.
            && self.0.compare_exchange(MARK, mark, REPORTED).is_ok()
    }

    /// Marks that this thread waits until another thread's claim ends. Returns the value of the state word while it
    /// waits, or `None` when the claim has ended or the word has changed meanwhile.
    #[must_use]
    pub fn wait_word(&self, gfn: Gfn) -> Option<u32> {
        let word = self.0.load(row(gfn));
        let Some(State::Taken { credit, .. }) = State::decode(word) else {
            return None;
        };
        let waited = State::Taken {
            credit,
            waited: true,
        };
        // Marked before the sleep: the thread that ends the claim wakes others only if it finds the mark.
        let marked = word == waited.encode()
            || self
                .0
                .compare_exchange(row(gfn), word, waited.encode())
                .is_ok();
        marked.then(|| waited.encode())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Debug)]
    struct Table(Vec<AtomicU32>);

    impl Words for Table {
        fn load(&self, at: u32) -> u32 {
            self.0[at as usize].load(Ordering::Acquire)
        }

        fn store(&self, at: u32, word: u32) {
            self.0[at as usize].store(word, Ordering::Release);
        }

        fn compare_exchange(&self, at: u32, from: u32, to: u32) -> Result<u32, u32> {
            self.0[at as usize].compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
        }
    }

    const GFN: Gfn = Gfn(2);

    fn table() -> Table {
        let count = usize::try_from(words(4)).unwrap();
        Table((0..count).map(|_| AtomicU32::new(0)).collect())
    }

    fn claimed(attempt: Attempt) -> Claim {
        match attempt {
            Attempt::Claimed(claim) => claim,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_state_survives_its_word_and_no_other_word_is_one() {
        let mut states = vec![
            State::None,
            State::Zip,
            State::Swap,
            State::Frame,
            State::Empty,
            State::Frozen,
        ];
        for credit in [0, 1, CREDITS - 1, FREE] {
            let waited = [false, true];
            states.extend(waited.map(|waited| State::Taken { credit, waited }));
            states.push(State::Done { credit });
        }
        for state in states {
            assert_eq!(State::decode(state.encode()), Some(state));
        }
        let of_no_credit = State::Done { credit: FREE + 1 }.encode();
        for garbage in [15, 8, 9, 13, 1 << 8, 4 | 8, of_no_credit, u32::MAX] {
            assert_eq!(State::decode(garbage), None, "{garbage:#x}");
        }
    }

    #[test]
    fn place_survives_its_words() {
        let place = Place {
            page: 0x0fff_ffff,
            at: 2048,
            len: 2048,
            sum: 0xdead_beef,
        };
        assert_eq!(Place::decode(place.encode()), place);
    }

    #[test]
    fn claim_takes_one_credit_and_names_it_when_done() {
        let table = table();
        let claimer = Claimer::new(&table);
        table.store(row(GFN), State::Zip.encode());
        assert_eq!(claimer.claim(GFN, State::Zip), Attempt::NoCredit);
        assert_eq!(claimer.state(GFN), State::Zip);
        table.store(credit_word(7), CREDIT);
        let claim = claimed(claimer.claim(GFN, State::Zip));
        assert_eq!(table.load(credit_word(7)), GFN.0 + USED);
        assert_eq!(claimer.claim(GFN, State::Zip), Attempt::NoCredit);
        assert!(!claimer.done(claim));
        assert_eq!(claimer.state(GFN), State::Done { credit: 7 });
    }

    #[test]
    fn claim_of_what_is_not_offered_gives_the_credit_back() {
        let table = table();
        let claimer = Claimer::new(&table);
        table.store(credit_word(0), CREDIT);
        assert_eq!(claimer.claim(GFN, State::Frame), Attempt::Changed);
        assert_eq!(table.load(credit_word(0)), CREDIT);
    }

    #[test]
    fn claim_that_is_given_up_leaves_all_as_it_was_and_wakes_who_waits() {
        let table = table();
        let claimer = Claimer::new(&table);
        table.store(row(GFN), State::Frame.encode());
        table.store(credit_word(0), CREDIT);
        assert_eq!(claimer.wait_word(GFN), None);
        let claim = claimed(claimer.claim(GFN, State::Frame));
        let word = claimer.wait_word(GFN).expect("it is claimed");
        assert_eq!(table.load(row(GFN)), word);
        assert!(claimer.give_up(claim));
        assert_eq!(claimer.state(GFN), State::Frame);
        assert_eq!(table.load(credit_word(0)), CREDIT);
    }

    #[test]
    fn daemon_is_told_once_when_credits_pass_the_mark() {
        let table = table();
        let claimer = Claimer::new(&table);
        table.store(MARK, 1);
        let mut told = Vec::new();
        for gfn in (0..3).map(Gfn) {
            table.store(row(gfn), State::Zip.encode());
            table.store(credit_word(gfn.0), CREDIT);
            let claim = claimed(claimer.claim(gfn, State::Zip));
            told.push(claimer.should_report(&claim));
            claimer.done(claim);
        }
        assert_eq!(told, [false, true, false]);
    }

    #[test]
    fn time_adds_up_in_a_word_for_each_cause_and_wraps() {
        let table = table();
        let claimer = Claimer::new(&table);
        claimer.add_stall(StallCause::Refill, Duration::from_nanos(9_500));
        claimer.add_stall(StallCause::Refill, Duration::from_nanos(9_499));
        claimer.add_stall(
            StallCause::Asleep,
            Duration::from_micros(u64::from(u32::MAX)),
        );
        claimer.add_stall(StallCause::Asleep, Duration::from_micros(8));
        let words = StallCause::ALL.map(|cause| table.load(cause.word()));
        assert_eq!(words, [19, 0, 7, 0, 0, 0]);
        assert!(StallCause::Asleep.word() < HEADER_WORDS);
    }
}
