//! What a simulated guest that serves some of its faults itself shares with the daemon.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use memvisor_guest_agent::protocol::claims::{Claim, Claimer, State, Words};
use memvisor_guest_agent::protocol::payload;

use crate::compress::ZipCache;
use crate::sync::{AtomicU32, Ordering};
use crate::units::{Gfn, PAGE_SIZE, PageBuf};

/// The claim table: each access is a point where a model may switch tasks.
#[derive(Debug)]
pub(super) struct SimWords(Vec<AtomicU32>);

impl Words for SimWords {
    fn load(&self, at: u32) -> u32 {
        self.0[at as usize].load(Ordering::SeqCst)
    }

    fn store(&self, at: u32, word: u32) {
        self.0[at as usize].store(word, Ordering::SeqCst);
    }

    fn compare_exchange(&self, at: u32, from: u32, to: u32) -> Result<u32, u32> {
        self.0[at as usize].compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
    }
}

/// The claim table and the arena, as the guest has them.
#[derive(Clone, Debug)]
pub(super) struct Claims {
    pub(super) words: Arc<SimWords>,
    arena: Arc<File>,
}

impl Claims {
    pub(super) fn new(pages: u32, zip: &ZipCache) -> Self {
        let count = memvisor_guest_agent::protocol::claims::words(pages);
        let arena = zip.read_only_fd().expect("/proc is there");
        Self {
            words: Arc::new(SimWords((0..count).map(|_| AtomicU32::new(0)).collect())),
            arena: Arc::new(File::from(arena)),
        }
    }

    pub(super) fn claimer(&self) -> Claimer<'_, SimWords> {
        Claimer::new(&*self.words)
    }

    /// Whether a thread of the guest has the page.
    pub(super) fn is_taken(&self, gfn: Gfn) -> bool {
        matches!(self.claimer().look(gfn), State::Taken { .. })
    }

    /// The content of a page that is claimed in the cache.
    pub(super) fn decompress(&self, claim: &Claim) -> PageBuf {
        let place = self.claimer().place(claim);
        let mut bytes = vec![0; usize::from(place.len)];
        let at = u64::from(place.page) * PAGE_SIZE as u64 + u64::from(place.at);
        let read = self.arena.read_exact_at(&mut bytes, at);
        read.expect("the arena is as long as it was told");
        let mut page = PageBuf::zeroed();
        let whole = payload::decompress(&bytes, &mut page.0);
        let gfn = claim.gfn();
        assert!(whole, "{gfn} is claimed and gone");
        let sum = payload::checksum(&page.0);
        assert_eq!(sum, place.sum, "{gfn} is claimed and has other bytes");
        page
    }
}
