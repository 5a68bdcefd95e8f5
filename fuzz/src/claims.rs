//! A claim table to which the guest writes whatever it likes: no step of the daemon may panic, and no page of
//! memory may be counted twice or forgotten.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arbitrary::{Result, Unstructured};
use memvisor::page::{Attempt, Claims, Home, PageTable, Parking};
use memvisor::units::{FrameId, Gfn, SlotId};
use memvisor_wire::claims::{
    Attempt as Claimed, CREDIT, CREDITS, Claimer, Place, ROW_WORDS, State, USED, Words,
    credit_word, row, words,
};

use super::EDGES;

const PAGES: u32 = 4;
const STEPS: usize = 64;

/// The table, used by one thread only. The guest's writes come between two steps of the daemon.
#[derive(Debug)]
struct Table(Box<[AtomicU32]>);

impl Words for Table {
    fn load(&self, at: u32) -> u32 {
        self.0[at as usize].load(Ordering::Relaxed)
    }

    fn store(&self, at: u32, word: u32) {
        self.0[at as usize].store(word, Ordering::Relaxed);
    }

    fn compare_exchange(&self, at: u32, from: u32, to: u32) -> std::result::Result<u32, u32> {
        self.0[at as usize].compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
    }
}

pub(crate) fn hostile_guest(u: &mut Unstructured<'_>) -> Result<()> {
    let shared: Arc<Table> = Arc::new(Table((0..words(PAGES)).map(|_| 0.into()).collect()));
    let parking = Arc::new(Parking::new().expect("an eventfd"));
    let table = PageTable::new(PAGES, parking)
        .expect("memory")
        .offering(Arc::clone(&shared) as _);
    let claims = table.claims().expect("it offers");
    let (mut paid, mut settled, mut taken) = (0, 0, 0);
    for _ in 0..u.int_in_range(0..=STEPS)? {
        let gfn = Gfn(u.int_in_range(0..=PAGES - 1)?);
        match u.int_in_range(0..=6)? {
            0 => write(u, &shared)?,
            1 => honest(u, &shared, gfn)?,
            2 => settled += u64::from(lock(u, &table, gfn)?),
            3 => claims.grant(u.int_in_range(0..=CREDITS)?, || {
                paid += 1;
                true
            }),
            4 => taken += claims.take_back(),
            5 => claims.find_forged(),
            _ => done(claims),
        }
        assert_eq!(
            claims.held() + settled + taken,
            paid,
            "{:?}",
            claims.violation()
        );
    }
    Ok(())
}

/// The guest writes a word: any word, or one that might be believed.
fn write(u: &mut Unstructured<'_>, shared: &Table) -> Result<()> {
    let gfn = u.int_in_range(0..=PAGES)?;
    let credit = u.int_in_range(0..=CREDITS)?;
    let last = shared.0.len() as u32 - 1;
    let at = match u.int_in_range(0..=2)? {
        0 => row(Gfn(gfn % PAGES)) + u.int_in_range(0..=ROW_WORDS - 1)?,
        1 => credit_word(credit % CREDITS),
        _ => u.int_in_range(0..=last)?,
    };
    let waited = u.arbitrary()?;
    let believable = [
        State::Zip.encode(),
        State::Swap.encode(),
        State::Frame.encode(),
        State::Empty.encode(),
        State::Frozen.encode(),
        State::Taken { credit, waited }.encode(),
        State::Done { credit }.encode(),
        CREDIT,
        gfn + USED,
        *u.choose(&EDGES)?,
        u.arbitrary()?,
    ];
    let word = *u.choose(&believable)?;
    assert!(State::decode(word).is_none_or(|state| state.encode() == word));
    shared.store(at, word);
    Ok(())
}

/// The guest does what its shim would.
fn honest(u: &mut Unstructured<'_>, shared: &Table, gfn: Gfn) -> Result<()> {
    let claimer = Claimer::new(shared);
    let offer = claimer.state(gfn);
    let _ = (claimer.may_break(), claimer.wait_word(gfn));
    if let State::Zip | State::Swap | State::Frame | State::Empty | State::Frozen = offer
        && let Claimed::Claimed(claim) = claimer.claim(gfn, offer)
    {
        let _ = (claimer.place(&claim), claimer.should_report(&claim));
        match u.arbitrary()? {
            true => claimer.done(claim),
            false => claimer.give_up(claim),
        };
    }
    Ok(())
}

/// The daemon locks a page, and moves it if it can; whether a credit was used up.
fn lock(u: &mut Unstructured<'_>, table: &PageTable, gfn: Gfn) -> Result<bool> {
    let (page, settled) = match table.attempt(gfn) {
        Attempt::Locked(page) => (page, false),
        Attempt::Busy => panic!("nobody else locks"),
        Attempt::Claimed => return Ok(false),
        Attempt::Done(page) => match page.settle() {
            // The page was frozen, and the guest has opened it, which takes no credit.
            Some(page) if page.home() == Home::Resident => {
                page.set_open();
                (page, false)
            }
            Some(page) => {
                page.set_home(Home::Resident);
                (page, true)
            }
            None => return Ok(false),
        },
    };
    let homes = [
        Home::Resident,
        Home::Zero,
        Home::Shared(FrameId(1)),
        Home::Compressed(SlotId(2)),
        Home::Swapped(SlotId(3)),
    ];
    let home = *u.choose(&homes)?;
    if page.home().may_become(home) {
        page.set_home(home);
        if let (Home::Compressed(_), Some(claims)) = (home, table.claims()) {
            let (at, len) = (u.arbitrary()?, u.arbitrary()?);
            let (page, sum) = (u.arbitrary()?, u.arbitrary()?);
            claims.describe(gfn, Place { page, at, len, sum });
        }
    }
    Ok(settled)
}

fn done(claims: &Claims) {
    assert!(claims.done().all(|gfn| gfn.0 < PAGES));
}
