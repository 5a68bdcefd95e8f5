//! Where pages of some content may be found: one table for the host, with 8 bytes for each hint.
//!
//! There are as many hints as pages, so each byte of a hint is a byte lost for every page of every guest. A map
//! from digests to pages takes 40 bytes and more for each entry. So an entry of the table keeps only a *tag*, 20
//! bits of the digest; most of the rest follows from where the entry is:
//!
//! ```text
//! bits  0..28   the page
//!      28..44   the seat of its VM; 0 in an empty entry
//!      44..64   the tag: the lowest bits of the digest
//! ```
//!
//! A hint belongs into one of two *buckets* of 8 hints, a cache line each, and goes into the emptier one. In a table
//! that is five sixths full, one hint of a thousand finds both full. The table never grows, and no hint is moved.
//!
//! *Tags collide*: a hint that is found may name a page of other content. The entry of that page in its page table
//! keeps 32 bits of its digest, so the finder can tell ([`Hinted::fits`]). But it must not drop a hint that is true for
//! other content: a page without a hint is never shared, and it may not be scanned again before it is written.
//!
//! *Seats* are short numbers of VMs. A seat that is given back is not given out again before all others have been;
//! then one sweep clears the hints that VMs have left behind.
//!
//! *Domains* share the table, so that a small domain costs nothing of its own. Each domain mixes the digests with its
//! own number, so that equal contents of several domains do not crowd into the same buckets, and finds only hints of
//! its own pages.
//!
//! Entries change by compare-and-exchange. Looking for a frame and for a hint of one content must be one step. The
//! index sees to that: it holds the lock of its shard around everything that is done here for one digest.

use std::io;

use super::seats::{DomainId, NOBODY, Seats};
use crate::sync::{AtomicU32, AtomicU64, Ordering, zeroes};
use crate::sys::prefetch;
use crate::units::{Bytes, Gfn, Pages, VmId};

/// Hints in a bucket: a cache line. Fewer in tests, so that buckets are full now and then.
const BUCKET: usize = if cfg!(any(test, loom)) { 2 } else { 8 };
/// Hints for each page of the host, in eighths. A host also keeps memory free, so the table is less full than that.
const EIGHTHS_PER_PAGE: u64 = 9;
/// The bits of a tag. Few in tests, so that tags collide all the time.
const TAG_BITS: u32 = if cfg!(any(test, loom)) { 2 } else { 20 };
const TAG: u32 = (1 << TAG_BITS) - 1;
const TAG_SHIFT: u32 = 44;
const SEAT_SHIFT: u32 = 28;
/// Bytes of a cache line.
const LINE: usize = 64;
const EMPTY: u64 = 0;

/// The table. See the module text.
#[derive(Debug)]
pub struct Hints {
    /// The buckets, one after the other, and some words more, so that the first bucket can begin at a cache line.
    words: Box<[AtomicU64]>,
    /// The first word of the first bucket.
    first: usize,
    buckets: u64,
    seats: Seats,
    domains: AtomicU32,
    /// Changes with each hint that has to make room for another, so that not always the same one has to go.
    turn: AtomicU32,
}

/// A page that a hint says has some content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hinted {
    /// Its VM.
    pub vm: VmId,
    /// The page.
    pub gfn: Gfn,
    word: u64,
    at: usize,
}

impl Hinted {
    /// Whether the hint may be true, if its page has a digest with this low half. A hint that does not fit is stale.
    /// A hint that fits and was found by another digest is true for another content, and must stay.
    #[must_use]
    pub const fn fits(&self, low_digest: u32) -> bool {
        (self.word >> TAG_SHIFT) as u32 == low_digest & TAG
    }
}

/// What a lookup of one digest has found out about hints so far.
#[derive(Debug, Default)]
pub struct Mismatches {
    others: Vec<Hinted>,
    crowded: bool,
}

impl Mismatches {
    /// Notes that the page of this hint has another content of the same tag.
    pub fn add(&mut self, claim: Hinted) {
        self.others.push(claim);
    }

    /// Notes that every hint that is in the way seems to be true.
    pub const fn set_crowded(&mut self) {
        self.crowded = true;
    }

    /// The hints whose pages have other contents.
    #[must_use]
    pub fn others(&self) -> &[Hinted] {
        &self.others
    }

    fn contain(&self, word: u64) -> bool {
        self.others.iter().any(|claim| claim.word == word)
    }
}

/// What the table knows about a content, apart from the doubted hints.
#[derive(PartialEq, Eq, Debug)]
pub enum Hint {
    /// It knew nothing, and now knows this page. Another hint may have had to make room for it.
    Inserted,
    /// It knows this page already.
    Same,
    /// It knows another page, which may have this content. The table is unchanged.
    Other(Hinted),
    /// It knows nothing and has no room: the hints for these pages are in the way. A hint whose page has another
    /// content than it says can be dropped.
    Full(Vec<Hinted>),
}

/// The two buckets in which hints for one digest are, and their tag.
#[derive(Clone, Copy)]
struct BucketPair {
    starts: [usize; 2],
    tag: u64,
}

impl Hints {
    /// A table for a host of `resident` pages. It takes [`metadata`](Self::metadata) pages of memory.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(resident: Pages) -> io::Result<Self> {
        let buckets = buckets(resident);
        let words = zeroes::<AtomicU64>(words(buckets))?;
        // Buckets that do not begin at cache lines would be slower, not wrong.
        let first = words.as_ptr().align_offset(LINE).min(LINE / 8);
        Ok(Self {
            words,
            first,
            buckets,
            seats: Seats::new()?,
            domains: AtomicU32::new(0),
            turn: AtomicU32::new(0),
        })
    }

    /// The memory that the table for a host of `resident` pages takes.
    #[must_use]
    pub fn metadata(resident: Pages) -> Pages {
        Bytes(words(buckets(resident)) as u64 * 8 + 4095).pages()
    }

    pub(super) fn new_domain(&self) -> DomainId {
        // From 1 on: 0 is no domain.
        DomainId::new(self.domains.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Gives the VM a seat in a domain; [`NOBODY`] when all seats are taken. Hints of [`NOBODY`] are not kept.
    pub(super) fn take_seat(&self, domain: DomainId, vm: VmId) -> u16 {
        self.seats.take(domain, vm, || self.sweep())
    }

    /// Gives a seat back. The hints that its VM has left behind count for nothing from then on.
    pub(super) fn leave_seat(&self, seat: u16) {
        self.seats.give(seat);
    }

    fn sweep(&self) {
        for (at, word) in self.words.iter().enumerate() {
            let seen = word.load(Ordering::Relaxed);
            if seen != EMPTY && self.owner(seen).is_none() {
                self.exchange(at, seen, EMPTY);
            }
        }
    }

    /// The seats, which count hints, stale ones included.
    pub(super) const fn seats(&self) -> &Seats {
        &self.seats
    }

    /// Fetches into the processor's cache what [`offer`](Self::offer) will look at.
    pub(super) fn prefetch(&self, domain: DomainId, digest: u64) {
        let pair = self.pair(domain, digest);
        pair.starts
            .iter()
            .for_each(|start| prefetch(&self.words[*start]));
    }

    /// Says that page `gfn` of the VM in `seat` has this digest, and returns what the table knows about the digest.
    pub(super) fn offer(
        &self,
        domain: DomainId,
        digest: u64,
        (seat, gfn): (u16, Gfn),
        mismatches: &Mismatches,
    ) -> Hint {
        // An entry has no room for page numbers beyond a TiB. Others find such pages only once they are shared.
        let seat = if gfn.0 >> SEAT_SHIFT == 0 {
            seat
        } else {
            NOBODY
        };
        let pair = self.pair(domain, digest);
        let page = u64::from(gfn.0) & ((1 << SEAT_SHIFT) - 1);
        let ours = pair.tag << TAG_SHIFT | u64::from(seat) << SEAT_SHIFT | page;
        loop {
            let seen = self.read(pair);
            if may_have(pair, &seen) {
                if let Some(claim) = self.other(domain, pair, &seen, ours, mismatches) {
                    return Hint::Other(claim);
                }
                if seen.as_flattened().contains(&ours) {
                    return Hint::Same;
                }
            }
            if seat == NOBODY {
                return Hint::Inserted;
            }
            let (at, old) = match self.room(pair, &seen) {
                Some(room) => room,
                None if mismatches.crowded => self.victim(pair, &seen),
                None => return Hint::Full(self.claims(pair, &seen)),
            };
            if self.exchange(at, old, ours) {
                return Hint::Inserted;
            }
        }
    }

    /// Takes away all hints that may be for this digest, and returns the pages that they named.
    pub(super) fn take(&self, domain: DomainId, digest: u64) -> Vec<(VmId, Gfn)> {
        let pair = self.pair(domain, digest);
        let mut taken = Vec::new();
        let (nobody, none) = (EMPTY, Mismatches::default());
        while let Some(claim) = self.other(domain, pair, &self.read(pair), nobody, &none) {
            if self.drop_claim(&claim) {
                taken.push((claim.vm, claim.gfn));
            }
        }
        taken
    }

    /// Drops a hint; `false` if it is no longer there.
    pub(super) fn drop_claim(&self, claim: &Hinted) -> bool {
        self.exchange(claim.at, claim.word, EMPTY)
    }

    /// The two buckets and the tag for a digest. Digests are as good as random and nobody outside knows them (see
    /// [`crate::digest`]), so mixing them with the domain is enough. The tag comes from the low half: that is what the
    /// page table keeps of a digest, so it can tell whether a hint is true.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "numbers of buckets, which are in memory"
    )]
    fn pair(&self, domain: DomainId, digest: u64) -> BucketPair {
        let mixed = (digest >> TAG_BITS ^ domain.mix()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let start = |half: u64| self.first + ((half * self.buckets) >> 32) as usize * BUCKET;
        BucketPair {
            starts: [
                start(mixed >> 32),
                start(u64::from((mixed as u32).rotate_left(13))),
            ],
            tag: u64::from(low_tag(digest)),
        }
    }

    #[inline]
    fn read(&self, pair: BucketPair) -> [[u64; BUCKET]; 2] {
        let mut seen = [[0; BUCKET]; 2];
        for (start, seen) in pair.starts.into_iter().zip(&mut seen) {
            let words = &self.words[start..start + BUCKET];
            for (seen, word) in seen.iter_mut().zip(words) {
                // Acquire pairs with the Release of `exchange`: whoever sees a hint sees whose seat it names.
                *seen = word.load(Ordering::Acquire);
            }
        }
        seen
    }

    fn other(
        &self,
        domain: DomainId,
        pair: BucketPair,
        seen: &[[u64; BUCKET]; 2],
        ours: u64,
        mismatches: &Mismatches,
    ) -> Option<Hinted> {
        let mut words = entries(pair, seen);
        words.find_map(|(at, word)| {
            if word == EMPTY
                || word >> TAG_SHIFT != pair.tag
                || word == ours
                || mismatches.contain(word)
            {
                return None;
            }
            let (owner, claim) = self.claim(at, word)?;
            (owner == domain).then_some(claim)
        })
    }

    /// The domain of a hint, and what the hint says; `None` when its VM is gone.
    fn claim(&self, at: usize, word: u64) -> Option<(DomainId, Hinted)> {
        let (domain, vm) = self.owner(word)?;
        let gfn = Gfn((word & ((1 << SEAT_SHIFT) - 1)) as u32);
        Some((domain, Hinted { vm, gfn, word, at }))
    }

    fn claims(&self, pair: BucketPair, seen: &[[u64; BUCKET]; 2]) -> Vec<Hinted> {
        let claims = entries(pair, seen).filter_map(|(at, word)| self.claim(at, word));
        claims.map(|(_, claim)| claim).collect()
    }

    fn owner(&self, word: u64) -> Option<(DomainId, VmId)> {
        self.seats.owner(seat_of(word))
    }

    /// An empty entry of the emptier bucket, or an entry of a VM that is gone.
    fn room(&self, pair: BucketPair, seen: &[[u64; BUCKET]; 2]) -> Option<(usize, u64)> {
        let empty = |bucket: &[u64; BUCKET]| bucket.iter().filter(|word| **word == EMPTY).count();
        let emptier = usize::from(empty(&seen[1]) > empty(&seen[0]));
        let free = seen[emptier].iter().position(|word| *word == EMPTY);
        free.map(|at| (pair.starts[emptier] + at, EMPTY))
            .or_else(|| entries(pair, seen).find(|(_, word)| self.owner(*word).is_none()))
    }

    fn victim(&self, pair: BucketPair, seen: &[[u64; BUCKET]; 2]) -> (usize, u64) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize % (2 * BUCKET);
        let (bucket, at) = (turn / BUCKET, turn % BUCKET);
        (pair.starts[bucket] + at, seen[bucket][at])
    }

    fn exchange(&self, at: usize, old: u64, new: u64) -> bool {
        // Release pairs with the Acquire of `read`. Relaxed on failure: what a failed exchange has seen is not used.
        let done = self.words[at].compare_exchange(old, new, Ordering::Release, Ordering::Relaxed);
        if done.is_err() {
            return false;
        }
        if old != EMPTY {
            self.seats.lost(seat_of(old));
        }
        if new != EMPTY {
            self.seats.gained(seat_of(new));
        }
        true
    }
}

const fn buckets(resident: Pages) -> u64 {
    let hints = resident.0.saturating_mul(EIGHTHS_PER_PAGE) / 8;
    // 32 bits of the mixed digest choose a bucket, so there can be no more of them: enough for 100 TiB.
    let buckets = hints.div_ceil(BUCKET as u64);
    if buckets > u32::MAX as u64 {
        u32::MAX as u64
    } else {
        buckets + 1
    }
}

const fn words(buckets: u64) -> usize {
    buckets as usize * BUCKET + LINE / 8
}

/// The tag of a digest. It comes from the low half as the page table keeps it, which has 1 for 0, because there 0 means
/// that a page has no digest.
const fn low_tag(digest: u64) -> u32 {
    let low = (digest & u32::MAX as u64) as u32;
    (if low == 0 { 1 } else { low }) & TAG
}

const fn seat_of(word: u64) -> usize {
    (word >> SEAT_SHIFT & 0xffff) as usize
}

/// Whether any hint has the tag. Mostly none has, and then this is the whole lookup.
fn may_have(pair: BucketPair, seen: &[[u64; BUCKET]; 2]) -> bool {
    let has = |word: &u64| word >> TAG_SHIFT == pair.tag;
    // A fold over all words, not `any`: it needs no branch for each word.
    seen.as_flattened()
        .iter()
        .fold(false, |any, word| any | has(word))
}

fn entries(pair: BucketPair, seen: &[[u64; BUCKET]; 2]) -> impl Iterator<Item = (usize, u64)> {
    let bucket = |(start, words): (usize, &[u64; BUCKET])| {
        let words = *words;
        (start..).zip(words)
    };
    pair.starts.into_iter().zip(seen).flat_map(bucket)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::seats::SEATS;
    use super::*;

    const NONE: Mismatches = Mismatches {
        others: Vec::new(),
        crowded: false,
    };

    fn place_of(hint: &Hint) -> Option<(VmId, Gfn)> {
        match hint {
            Hint::Other(claim) => Some((claim.vm, claim.gfn)),
            _ => None,
        }
    }

    /// A table with one domain and seats for VMs 1 and 2.
    fn table(resident: u64) -> (Hints, DomainId, [u16; 2]) {
        let hints = Hints::new(Pages(resident)).expect("memory");
        let domain = hints.new_domain();
        let seats = [1, 2].map(|vm| hints.take_seat(domain, VmId(vm)));
        (hints, domain, seats)
    }

    #[test]
    fn first_page_stays_known_and_a_doubted_one_is_passed_over() {
        let (hints, domain, [a, b]) = table(64);
        let first = (VmId(1), Gfn(1));
        assert_eq!(hints.offer(domain, 7, (a, Gfn(1)), &NONE), Hint::Inserted);
        assert_eq!(hints.offer(domain, 7, (a, Gfn(1)), &NONE), Hint::Same);
        let found = hints.offer(domain, 7, (b, Gfn(1)), &NONE);
        assert_eq!(place_of(&found), Some(first));
        let mut mismatches = Mismatches::default();
        if let Hint::Other(claim) = found {
            assert!(claim.fits(7) && claim.fits(3) && !claim.fits(6));
            mismatches.add(claim);
        }
        let beside = hints.offer(domain, 7, (b, Gfn(1)), &mismatches);
        assert_eq!(beside, Hint::Inserted, "and the other is not lost");
        assert_eq!(hints.seats().count(domain), 2);
        let mut taken = hints.take(domain, 7);
        taken.sort_by_key(|(vm, _)| vm.0);
        assert_eq!(taken, [first, (VmId(2), Gfn(1))]);
        assert_eq!(hints.seats().count(domain), 0);
    }

    #[test]
    fn full_buckets_name_what_is_in_the_way_and_give_up_one_when_told() {
        let (hints, domain, [a, b]) = table(0);
        // There is one place in all, and the contents have other tags than the one that is looked up.
        let page = |gfn| (a, Gfn(gfn));
        for gfn in 0..2 * BUCKET as u32 {
            let hint = hints.offer(
                domain,
                u64::from(4 * gfn + 2),
                page(gfn),
                &mismatches_of_all(),
            );
            assert!(matches!(hint, Hint::Inserted | Hint::Full(_)), "{hint:?}");
        }
        let Hint::Full(claims) = hints.offer(domain, 3, (b, Gfn(9)), &NONE) else {
            panic!("there is no room");
        };
        let known = hints.seats().count(domain);
        assert!(
            claims
                .iter()
                .all(|claim| claim.fits(2) && claim.vm == VmId(1))
        );
        let crowded = Mismatches {
            crowded: true,
            ..Mismatches::default()
        };
        assert_eq!(
            hints.offer(domain, 3, (b, Gfn(9)), &crowded),
            Hint::Inserted
        );
        assert_eq!(hints.seats().count(domain), known, "one went for it");
        assert_eq!(
            place_of(&hints.offer(domain, 3, page(0), &NONE)),
            Some((VmId(2), Gfn(9)))
        );
    }

    /// Mismatches as they are when every hint is known to be true for another content.
    fn mismatches_of_all() -> Mismatches {
        let vm = VmId(1);
        let claim = |gfn| Hinted {
            vm,
            gfn: Gfn(gfn),
            word: 2 << TAG_SHIFT | 1 << SEAT_SHIFT | u64::from(gfn),
            at: 0,
        };
        // The seats are given out from the lowest.
        Mismatches {
            others: (0..100).map(claim).collect(),
            crowded: false,
        }
    }

    #[test]
    fn domains_do_not_see_each_other() {
        let (hints, domain, [a, _]) = table(64);
        let other = hints.new_domain();
        let stranger = hints.take_seat(other, VmId(3));
        for digest in 0..20 {
            let gfn = Gfn(digest as u32);
            hints.offer(domain, digest, (a, gfn), &mismatches_of_all());
            let hint = hints.offer(other, digest, (stranger, gfn), &NONE);
            assert!(place_of(&hint).is_none_or(|(vm, _)| vm == VmId(3)));
        }
        let taken: Vec<_> = (0..20)
            .flat_map(|digest| hints.take(other, digest))
            .collect();
        assert!(!taken.is_empty() && taken.iter().all(|(vm, _)| *vm == VmId(3)));
        assert_eq!(hints.seats().count(other), 0);
        assert_ne!(hints.seats().count(domain), 0);
    }

    #[test]
    fn seats_of_vms_that_are_gone_are_given_out_again_and_their_hints_mean_nobody() {
        let (hints, domain, [a, b]) = table(64);
        hints.offer(domain, 5, (b, Gfn(5)), &NONE);
        hints.leave_seat(a);
        for vm in 10..1000 {
            let seat = hints.take_seat(domain, VmId(vm));
            assert_ne!(seat, NOBODY);
            let hint = hints.offer(domain, 6, (seat, Gfn(vm)), &NONE);
            assert_eq!(hint, Hint::Inserted, "whoever had it is gone");
            assert_eq!(hints.seats().count(domain), 2);
            hints.leave_seat(seat);
        }
        let taken = [(); SEATS].map(|()| hints.take_seat(domain, VmId(1)));
        assert_eq!(taken.iter().filter(|seat| **seat == NOBODY).count(), 2);
        let nobody = (NOBODY, Gfn(1));
        assert_eq!(hints.offer(domain, 77, nobody, &NONE), Hint::Inserted);
        assert_eq!(hints.take(domain, 77), [], "it was not kept");
        assert_eq!(
            hints.take(domain, 5),
            [(VmId(2), Gfn(5))],
            "the sweep left it"
        );
    }

    #[test]
    fn table_takes_a_quarter_of_a_percent_of_what_it_speaks_for() {
        for gib in [1, 16, 1024] {
            let host = Pages(gib << 18);
            let share = Hints::metadata(host).0 * 1000;
            // In tests its buckets are smaller, not its hints.
            assert!(share <= host.0 * 3, "{share} of {host:?}");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Scan(usize, u32, u64),
        Forget(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let digest = prop_oneof![3 => 4..12u64, 1 => (1..8u64).prop_map(|it| 4 * it + 1)];
        let scan = (0..3usize, 0..4u32, digest);
        let step = prop_oneof![
            30 => scan.prop_map(|(vm, gfn, digest)| Step::Scan(vm, gfn, digest)),
            1 => (0..3usize).prop_map(Step::Forget),
        ];
        prop::collection::vec(step, 0..200)
    }

    /// What a scanner does with one page. Returns the page that it finds, and whether a hint had to go.
    fn scan(
        hints: &Hints,
        domain: DomainId,
        pages: &HashMap<(u32, u32), u64>,
        digest: u64,
        page: (u16, Gfn),
    ) -> (Option<(u32, u32)>, bool) {
        let known = |claim: &Hinted| pages.get(&(claim.vm.0, claim.gfn.0)).copied();
        let fits = |claim: &Hinted| known(claim).is_some_and(|it| claim.fits(it as u32));
        let mut mismatches = Mismatches::default();
        loop {
            match hints.offer(domain, digest, page, &mismatches) {
                Hint::Other(claim) if known(&claim) == Some(digest) => {
                    return (Some((claim.vm.0, claim.gfn.0)), mismatches.crowded);
                }
                Hint::Other(claim) if fits(&claim) => mismatches.add(claim),
                Hint::Other(claim) => assert!(hints.drop_claim(&claim)),
                Hint::Full(claims) => {
                    let stale: Vec<_> = claims.iter().filter(|claim| !fits(claim)).collect();
                    for claim in &stale {
                        // Both buckets may be the same one, which then names a hint twice.
                        hints.drop_claim(claim);
                    }
                    mismatches.crowded = stale.is_empty();
                }
                Hint::Inserted | Hint::Same => return (None, mismatches.crowded),
            }
        }
    }

    proptest! {
        /// Pages of three VMs get one content after the other, with tags that collide all the time. Until
        /// buckets are full of true hints, a page of equal content is found whenever there is one. A page that is
        /// found always has equal content.
        #[test]
        fn hints_any_steps_agree_with_the_model(steps in steps(), resident in 6..60u64) {
            let hints = Hints::new(Pages(resident)).expect("memory");
            let domain = hints.new_domain();
            let mut vms = [1, 2, 3].map(|vm| (vm, hints.take_seat(domain, VmId(vm))));
            let mut pages: HashMap<(u32, u32), u64> = HashMap::new();
            let mut lost = false;
            for (step, next) in steps.into_iter().zip(4..) {
                match step {
                    Step::Scan(vm, gfn, digest) => {
                        let (vm, seat) = vms[vm];
                        pages.insert((vm, gfn), digest);
                        let equal = |page: &(u32, u32)| *page != (vm, gfn) && pages[page] == digest;
                        let there = pages.keys().copied().find(equal);
                        let (found, crowded) = scan(&hints, domain, &pages, digest, (seat, Gfn(gfn)));
                        lost |= crowded;
                        prop_assert!(found.is_none_or(|page| equal(&page)));
                        prop_assert!(lost || found.is_some() == there.is_some());
                        if found.is_some() {
                            // They are shared, and then have memory of their own again.
                            let taken = hints.take(domain, digest);
                            pages.retain(|_, content| *content != digest);
                            // Those of another content are told to scan again.
                            for (owner, gfn) in taken {
                                let seat = vms.iter().find(|(vm, _)| *vm == owner.0);
                                let (Some((_, seat)), Some(content)) =
                                    (seat, pages.get(&(owner.0, gfn.0)))
                                else {
                                    continue;
                                };
                                let again = scan(&hints, domain, &pages, *content, (*seat, gfn));
                                lost |= again.1;
                                prop_assert!(lost || again.0.is_none());
                            }
                        }
                    }
                    Step::Forget(vm) => {
                        let (old, seat) = std::mem::replace(
                            &mut vms[vm],
                            (next, hints.take_seat(domain, VmId(next))),
                        );
                        hints.leave_seat(seat);
                        pages.retain(|(owner, _), _| *owner != old);
                    }
                }
                let words = hints.words.iter().map(|word| word.load(Ordering::Relaxed));
                let live = words.filter(|word| *word != EMPTY && hints.owner(*word).is_some());
                prop_assert_eq!(live.count() as u64, hints.seats().count(domain));
            }
        }
    }
}
