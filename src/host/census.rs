//! Counts where the pages of all VMs stand with sharing.
//!
//! The counts walk the page tables of all VMs, some nanoseconds for each page. That is nothing for one look and
//! much for a host with many pages whose status is asked for all the time. So a count is used again until two hundred
//! times what it took has passed: it never takes more than half a percent of a processor, and on small hosts each look
//! counts anew.
//!
//! *Other salts.* A page that is unique in its sharing domain may equal pages of other domains. No table knows that, on
//! purpose. Here the halves of digests that scanners have noted are compared: all of them while there are few, else
//! the smallest, which are those of the same contents in each domain (as in `src/share/sketch.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::member::Member;
use crate::digest::low_half;
use crate::page::{Home, Standing};
use crate::pool::Pool;
use crate::telemetry::SharingStatus;
use crate::units::{FrameId, Pages, VmId};
use crate::vm::Vm;

/// A count is used for so many times what it took.
const USED_FOR: u32 = 200;
/// Pages whose contents are compared across domains, before these become a sample.
const COMPARED: usize = 1 << 17;

/// What was counted of each VM.
pub(super) type Counts = HashMap<VmId, Counted>;

/// What was counted of a VM.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    /// Where its pages stand.
    pub(super) sharing: SharingStatus,
    /// The host pages that it would take if it wrote all its shared pages.
    pub(super) break_cost: Pages,
}

/// The latest count.
#[derive(Debug, Default)]
pub(super) struct Census(Mutex<Option<(Instant, Arc<Counts>)>>);

impl Census {
    /// Where the pages of each of `members` stand.
    pub(super) fn of(&self, members: &[Arc<Member>]) -> Arc<Counts> {
        // Held while pages are counted: who asks at the same time gets the same count.
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((until, counts)) = &*latest
            && now < *until
            && members.iter().all(|it| counts.contains_key(&it.vm.id))
        {
            return Arc::clone(counts);
        }
        let counts = Arc::new(count(members));
        *latest = Some((now + now.elapsed() * USED_FOR, Arc::clone(&counts)));
        counts
    }
}

fn count(members: &[Arc<Member>]) -> Counts {
    let vms: Vec<&Vm> = members.iter().map(|member| &*member.vm).collect();
    let mut counts = standings(&vms);
    for member in members {
        if member.worker.routine().scan_rate == 0 {
            counts
                .entry(member.vm.id)
                .and_modify(|it| switch_off(&mut it.sharing));
        }
    }
    counts
}

/// The same while all VMs are scanned.
fn standings(vms: &[&Vm]) -> Counts {
    let mut contents = Contents::new(vms);
    let mut counts: Counts = (vms.iter().map(|vm| (vm.id, of_vm(vm, &mut contents)))).collect();
    for (vm, part) in contents.elsewhere() {
        counts.entry(vm).and_modify(|vm| {
            let vm = &mut vm.sharing;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a part of a number of pages"
            )]
            let pages = (vm.unique_pages.0 as f64 * part).round() as u64;
            vm.other_salt_pages = Pages(pages);
            vm.unique_pages.0 -= pages;
        });
    }
    counts
}

fn of_vm(vm: &Vm, contents: &mut Contents) -> Counted {
    let (mut sum, mut frames) = (SharingStatus::default(), Vec::new());
    let pool = vm.pool();
    let mut note = |half: u32, unique: bool| {
        contents.note(Noted {
            half,
            vm: vm.id,
            unique,
        });
    };
    vm.table.visit_standings(|gfn, entry, standing| {
        let count = match (standing, entry.home()) {
            (_, Home::Resident) if vm.large.holds(gfn) => &mut sum.large_pages,
            (Standing::Moving, _) => &mut sum.moving_pages,
            (Standing::Unscanned, _) => &mut sum.unscanned_pages,
            (Standing::Volatile, _) => &mut sum.volatile_pages,
            (Standing::NoVma, _) => &mut sum.vma_budget_pages,
            (Standing::NoMemory, _) => &mut sum.no_memory_pages,
            (Standing::Unique, _) | (_, Home::Resident) => {
                note(entry.last_hash(), true);
                &mut sum.unique_pages
            }
            (_, Home::Shared(frame)) => {
                frames.push(frame);
                note(low_half(pool.digest(frame)).max(1), false);
                &mut sum.shared_pages
            }
            (_, Home::Untouched) => &mut sum.untouched_pages,
            (_, Home::Zero) => &mut sum.zero_pages,
            (_, Home::Compressed(_)) => &mut sum.compressed_pages,
            (_, Home::Swapped(_)) => &mut sum.swapped_pages,
            (_, Home::Ballooned) => &mut sum.ballooned_pages,
        };
        count.0 += 1;
    });
    if !vm.is_sharing() {
        switch_off(&mut sum);
    }
    Counted {
        sharing: sum,
        break_cost: break_cost(&pool, frames),
    }
}

/// What it takes to write all pages that are on these frames, each named once for each page: a page for each, but for
/// one of each frame that nobody else uses, which is free then.
fn break_cost(pool: &Pool, mut frames: Vec<FrameId>) -> Pages {
    frames.sort_unstable();
    let own = frames.chunk_by(|one, next| one == next);
    let freed = own.filter(|pages| pool.refs(pages[0]) as usize <= pages.len());
    Pages((frames.len() - freed.count()) as u64)
}

/// Nothing that is resident is going to be shared, whatever a scan has once said of it.
fn switch_off(vm: &mut SharingStatus) {
    let reasons = [
        &mut vm.large_pages,
        &mut vm.moving_pages,
        &mut vm.unscanned_pages,
        &mut vm.volatile_pages,
        &mut vm.vma_budget_pages,
        &mut vm.no_memory_pages,
        &mut vm.unique_pages,
        &mut vm.other_salt_pages,
    ];
    for pages in reasons {
        vm.off_pages.0 += std::mem::take(pages).0;
    }
}

/// Contents by the half of their digests that page tables keep, and the domains that have them.
#[derive(Debug)]
struct Contents {
    /// The sharing domain of each VM, as a number.
    domains: HashMap<VmId, usize>,
    /// Whether there are several: otherwise no page is noted.
    several: bool,
    /// Only smaller halves are here.
    below: u32,
    pages: Vec<Noted>,
}

/// A page that has a content, and whether it is unique in its domain.
#[derive(Clone, Copy, Debug)]
struct Noted {
    half: u32,
    vm: VmId,
    unique: bool,
}

impl Contents {
    fn new(vms: &[&Vm]) -> Self {
        let mut pools: Vec<Arc<Pool>> = Vec::new();
        let mut number = |pool: Arc<Pool>| {
            let known = pools.iter().position(|it| Arc::ptr_eq(it, &pool));
            known.unwrap_or_else(|| {
                pools.push(pool);
                pools.len() - 1
            })
        };
        let domains = vms.iter().map(|vm| (vm.id, number(vm.pool()))).collect();
        Self {
            domains,
            several: pools.len() > 1,
            below: u32::MAX,
            pages: Vec::new(),
        }
    }

    fn note(&mut self, noted: Noted) {
        if noted.half >= self.below || !self.several {
            return;
        }
        self.pages.push(noted);
        while self.pages.len() > COMPARED {
            self.below /= 2;
            let below = self.below;
            self.pages.retain(|page| page.half < below);
        }
    }

    /// Of each VM, the part of its unique pages that are equal to pages of other domains.
    fn elsewhere(&self) -> HashMap<VmId, f64> {
        // The domain that has a content, or that several have it.
        let mut owners: HashMap<u32, Option<usize>> = HashMap::new();
        for page in &self.pages {
            let domain = self.domains.get(&page.vm).copied();
            let owner = owners.entry(page.half).or_insert(domain);
            *owner = owner.filter(|owner| Some(*owner) == domain);
        }
        let mut found: HashMap<VmId, (u32, u32)> = HashMap::new();
        for page in self.pages.iter().filter(|page| page.unique) {
            let (elsewhere, all) = found.entry(page.vm).or_default();
            *elsewhere += u32::from(owners[&page.half].is_none());
            *all += 1;
        }
        let part = |(elsewhere, all): (u32, u32)| f64::from(elsewhere) / f64::from(all);
        found
            .into_iter()
            .map(|(vm, pages)| (vm, part(pages)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::rig::{Rig, hello};
    use super::*;
    use crate::units::Gfn;

    /// Makes pages of the VM resident; what a scan found in each is in `halves`, 0 where there was none.
    fn scanned(vm: &Vm, halves: &[u32]) {
        for (gfn, half) in (0..).map(Gfn).zip(halves) {
            vm.table
                .try_lock(gfn)
                .expect("free")
                .set_home(Home::Resident);
            assert!(vm.budget.take(1, crate::page::Urgency::Reclaim));
            if *half > 0 {
                vm.table.mark_seen(gfn);
                vm.table.note_hash(gfn, *half);
            }
        }
    }

    #[test]
    fn page_that_only_other_domains_have_is_kept_from_sharing_by_its_salt() {
        let rig = Rig::new(None);
        let salted = |name: &str, salt: &str| {
            let mut hello = hello(name, 1024);
            hello.salt = Some(salt.to_owned());
            rig.run(&hello)
        };
        let [a, b, c] = [("a", "red"), ("b", "red"), ("c", "blue")].map(|(n, s)| salted(n, s));
        scanned(&a.vm, &[11, 12, 13, 0]);
        scanned(&b.vm, &[12, 21]);
        scanned(&c.vm, &[13, 12, 31, 11]);
        let counts = standings(&[&a.vm, &b.vm, &c.vm]);
        let row = |vm: &Member| {
            let it = counts[&vm.vm.id].sharing;
            assert_eq!(it.total(), Pages(1024));
            [it.unique_pages, it.other_salt_pages, it.unscanned_pages].map(|pages| pages.0)
        };
        assert_eq!(row(&a), [0, 3, 1]);
        assert_eq!(row(&b), [1, 1, 0]);
        assert_eq!(row(&c), [1, 3, 0]);
        a.vm.set_sharing(false);
        let off = standings(&[&a.vm])[&a.vm.id].sharing;
        assert_eq!((off.off_pages, off.unique_pages), (Pages(4), Pages(0)));
        assert_eq!(off.total(), Pages(1024));
    }

    #[test]
    fn writing_all_shared_pages_takes_a_page_for_each_but_one_of_frames_that_are_freed() {
        let rig = Rig::new(None);
        let [a, b] = ["a", "b"].map(|name| rig.run(&hello(name, 1024)));
        let pool = a.vm.pool();
        assert!(Arc::ptr_eq(&pool, &b.vm.pool()), "one domain");
        let frame = |digest: u64| {
            let mut new = pool.allocate_near(None).expect("an empty pool");
            new.fill(&crate::units::PageBuf::zeroed());
            assert!(rig.budget.take(1, crate::page::Urgency::Reclaim));
            new.publish(digest).expect("the first").0.keep()
        };
        let share = |vm: &Vm, gfn: u32, digest: u64| {
            let found = pool.lookup_frame(digest).map(crate::pool::FrameRef::keep);
            let frame = found.unwrap_or_else(|| frame(digest));
            vm.table
                .try_lock(Gfn(gfn))
                .expect("free")
                .set_home(Home::Shared(frame));
        };
        // Two pages of one frame for itself, one page of another, and one that it shares with the other VM.
        for (gfn, digest) in [(0, 1), (1, 1), (2, 2), (3, 3)] {
            share(&a.vm, gfn, digest);
        }
        for (gfn, digest) in [(0, 3), (1, 3)] {
            share(&b.vm, gfn, digest);
        }
        let counts = standings(&[&a.vm, &b.vm]);
        assert_eq!(counts[&a.vm.id].break_cost, Pages(2));
        assert_eq!(counts[&b.vm.id].break_cost, Pages(2));
        // If all of them write, it takes what is saved.
        assert_eq!(pool.counts().saved(), Pages(3));
    }

    #[test]
    fn sample_of_contents_is_the_same_in_each_domain() {
        let domains = HashMap::from([(VmId(1), 0), (VmId(2), 1)]);
        let mut contents = Contents {
            domains,
            several: true,
            below: u32::MAX,
            pages: Vec::new(),
        };
        // Every third content of one domain is in the other too; numbers spread as digests are.
        let half = |content: u32| content.wrapping_mul(0x9e37_79b9);
        for content in 1..=3 * u32::try_from(COMPARED).expect("small") {
            let mut note = |vm| {
                contents.note(Noted {
                    half: half(content),
                    vm: VmId(vm),
                    unique: true,
                });
            };
            note(1);
            if content % 3 == 0 {
                note(2);
            }
        }
        assert!(contents.below < u32::MAX && contents.pages.len() <= COMPARED);
        let elsewhere = contents.elsewhere();
        assert!(
            (elsewhere[&VmId(1)] - 1.0 / 3.0).abs() < 0.01,
            "{elsewhere:?}"
        );
        assert_eq!(elsewhere[&VmId(2)], 1.0);
    }
}
