//! What a simulated guest that serves some of its faults itself shares with the daemon.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use memvisor_guest_agent::shim::inline::{AlignedPage, Inline, SwapSlots, Table};
use memvisor_wire::claims::{self, Claimer, State, Words};

use crate::compress::ZipCache;
use crate::swap::Storage;
use crate::swap::faulty::FaultyStorage;
use crate::sync::{AtomicU32, Mutex, Ordering};
use crate::units::{Gfn, PAGE_SIZE, PageBuf};
use crate::vm::Counter;

/// What the threads of the guest share.
pub(super) type Claims = Arc<Inline<SimTable>>;

/// The claim table: each access is a point where a model may switch tasks.
#[derive(Clone, Debug)]
pub(super) struct SimTable(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    words: Vec<AtomicU32>,
    /// How often the sleepers at each word have been woken.
    wakes: Mutex<HashMap<u32, u32>>,
    /// How many claims were given up.
    given_up: Counter,
}

/// Shares with a guest of this many pages a claim table, its swap file and the arena of its cache.
pub(super) fn share(pages: u32, swap: &Arc<FaultyStorage>, zip: &ZipCache) -> Claims {
    let words = (0..claims::words(pages)).map(|_| AtomicU32::new(0));
    let table = SimTable(Arc::new(Shared {
        words: words.collect(),
        wakes: Mutex::default(),
        given_up: Counter::default(),
    }));
    let arena = zip.read_only_fd().expect("/proc is there");
    let swap = Box::new(SimSwap(Arc::clone(swap)));
    let arena = File::from(arena);
    Arc::new(Inline::new(table, swap, arena, zip.arena_pages()))
}

/// The swap file as a guest reads it.
#[derive(Debug)]
struct SimSwap(Arc<FaultyStorage>);

impl SwapSlots for SimSwap {
    fn read(&self, slot: u32, into: &mut AlignedPage) -> Option<()> {
        let mut page = [PageBuf::zeroed()];
        let read = self
            .0
            .read_at(&mut page, u64::from(slot) * PAGE_SIZE as u64)
            .ok()?;
        into.0 = page[0].0;
        (read == PAGE_SIZE).then_some(())
    }
}

impl SimTable {
    /// Whether a thread of the guest has the page.
    pub(super) fn is_taken(&self, gfn: Gfn) -> bool {
        matches!(Claimer::new(self).state(gfn), State::Taken { .. })
    }

    /// How many claims were given up.
    pub(super) fn given_up(&self) -> u64 {
        self.0.given_up.get()
    }

    /// How often the sleepers at a word have been woken.
    pub(super) fn wakes(&self, at: u32) -> u32 {
        self.0.wakes.lock().get(&at).copied().unwrap_or_default()
    }

    /// As `futex(2)` does: unless the word has changed by now, the thread sleeps at it until the number of
    /// wakes exceeds the result.
    pub(super) fn sleep(&self, at: u32, word: u32) -> Option<u32> {
        let wakes = self.0.wakes.lock();
        let is_same = self.load(at) == word;
        is_same.then(|| wakes.get(&at).copied().unwrap_or_default())
    }
}

impl Words for SimTable {
    fn load(&self, at: u32) -> u32 {
        self.0.words[at as usize].load(Ordering::SeqCst)
    }

    fn store(&self, at: u32, word: u32) {
        self.0.words[at as usize].store(word, Ordering::SeqCst);
    }

    fn compare_exchange(&self, at: u32, from: u32, to: u32) -> Result<u32, u32> {
        let word = &self.0.words[at as usize];
        let changed = word.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
        let is_taken = |word| matches!(State::decode(word), Some(State::Taken { .. }));
        let is_done = matches!(State::decode(to), Some(State::Done { .. }));
        let ends = at >= claims::HEADER_WORDS && is_taken(from) && !is_taken(to);
        if changed.is_ok() && ends && !is_done {
            self.0.given_up.one();
        }
        changed
    }
}

impl Table for SimTable {
    fn wake(&self, at: u32) {
        *self.0.wakes.lock().entry(at).or_default() += 1;
    }
}
