//! Memory moves to where a page saves most stall time.
//!
//! Sampling tells which pages a VM uses, but it tells late. A guest that begins to work without its memory touches few
//! pages, because it waits for each: as long as it is kept short it looks idle. And a page that is read once a minute
//! counts as much as one that is read all the time. What evicted pages cost is known at once. A thread that touches one
//! stands still until the page is back, and the daemon adds up for how long ([`VmSnapshot::stall_us_per_s`]). Divided by
//! the pages that are out, that is what one more page of memory would save: the *saving*, in microseconds a second.
//!
//! That is so if all pages that are out are wanted alike, and stay wanted when they are back. Two kinds of guests are
//! different. Of one that once wrote much and works on a part of it, most pages that are out never come back. So a second
//! quotient is taken: the time for pages that come back early, divided by the pages that left lately
//! ([`VmSnapshot::early_us_per_s`], [`Refaults`](crate::vm::Refaults)). It tells what the next pages would save; half of it
//! counts, because a part comes from errors in the choice of victims, whatever memory there is. But of a guest that has
//! just begun to work, everything left long ago, and only the first quotient shows it. The saving is the larger one.
//!
//! The other kind goes through its memory once in a long time. It waits for each page that is out, and then leaves the
//! page alone. Sampling shows that: the guest uses next to nothing of what it holds. So the first quotient counts in full
//! only if sampling finds an eighth of the held pages in use.
//!
//! What a page would save where it saves most is the measure. A mean over all pages that are out would be low where many
//! of them are dead, and every guest would seem to save much. Of the VM that saves most, four fifths count as waiting; of
//! one that saves a quarter of it, a fifth.
//!
//! ```text
//! all     = resident + shared + compressed + swapped
//! out     = max(compressed + swapped, all / 8)
//! left    = max(pages that left lately, (resident + shared) / 8)
//! again   = 8 * active / (resident + shared), from 1/4 to 1
//! saving  = max(stall / out * again, early / left / 2), where early is the stall for early refaults
//! best    = max(the saving of any VM, 2 us/s)
//! waiting = all * saving^2 / (saving^2 + (best / 2)^2)
//! in use  = max(waiting, active)
//! ```
//!
//! A VM that has all its pages waits for none. So the pages that sampling finds count too: without them a guest that
//! works would count as idle until it had lost what it works with. The rest is taxed as idle memory is by ESX. So shares
//! are a floor: whatever the others' pages would save, with a tax of 75 % a VM keeps a quarter of what shares alone would
//! give it.
//!
//! Why that comes to rest: three things bound how much the loop amplifies. The part that waits is a smooth function of
//! the saving, which goes from a tenth to four fifths, the most, while the saving grows sixfold. While few pages are out or
//! have left, the least divisors keep the wait for a single one from counting as if a whole VM waited. And where nobody
//! waits for long, the least best saving keeps small differences small.

use super::super::total;
use super::{Config, HostSnapshot, Pages, Policy, VmSnapshot, Worth};

/// The least that savings are compared with, in microseconds a second for each page. A page that comes from the cache
/// or a fast disk in 50 us saves that much when it is wanted every 25 seconds.
const LEAST_BEST: u128 = 2;
/// The least part of its pages, one in so many, by which a stall time of a VM is divided.
const LEAST_PART: u64 = 8;
/// Early refaults count one part in so many: some pages come back early because the choice of victims erred, which it
/// would do with more memory too.
const EARLY: u64 = 2;
/// Pages that come back count in full if one for so many that the VM holds is in use.
const USED_AGAIN: u128 = 8;
/// They count at least one part in so many: of a guest that has just begun to work, sampling tells late.
const LEAST_AGAIN: u128 = 4;
/// So many units of a saving are 1 us/s for each page.
const UNIT: u128 = 1024;
/// The most that a page can save: a thread that waits for it all the time.
const MOST_SAVED: u128 = 1_000_000 * UNIT;
/// More than any VM's threads can wait, in microseconds a second. It keeps sums of numbers from a file in bounds.
const MOST: u64 = 1 << 40;

/// See the module text.
#[derive(Clone, Copy, Debug)]
pub struct Stall;

/// The pages that a VM has, wherever they are.
fn all(vm: &VmSnapshot) -> Pages {
    total([vm.resident, vm.shared, vm.compressed, vm.swapped])
}

/// The pages by which the stall time of a VM is divided.
fn out(vm: &VmSnapshot) -> u64 {
    let out = vm.compressed.0.saturating_add(vm.swapped.0);
    out.max(all(vm).0 / LEAST_PART).max(1)
}

/// The pages by which the time of its refaults is divided.
fn left(vm: &VmSnapshot) -> u64 {
    let least = total([vm.resident, vm.shared]).0 / LEAST_PART;
    vm.left_lately.0.max(least).max(1)
}

/// What part of the time for pages that come back counts, in units of [`UNIT`].
fn again(vm: &VmSnapshot) -> u128 {
    let held = total([vm.resident, vm.shared]).0.max(1);
    // Where nothing is sampled, nothing speaks against it.
    let used = vm.active.map_or(held, |active| active.0.min(held));
    let part = u128::from(used) * USED_AGAIN * UNIT / u128::from(held);
    part.clamp(UNIT / LEAST_AGAIN, UNIT)
}

/// What one more page of memory would save a VM, in units of [`UNIT`].
fn saving(vm: &VmSnapshot) -> u128 {
    let each = |us_per_s: u64, pages| u128::from(us_per_s.min(MOST)) * UNIT / u128::from(pages);
    let late = each(vm.stall_us_per_s, out(vm)) * again(vm) / UNIT;
    let early = each(vm.early_us_per_s / EARLY, left(vm));
    late.max(early).min(MOST_SAVED)
}

/// The most that one more page would save any VM, in units of [`UNIT`].
#[derive(Clone, Copy)]
struct Best(u128);

impl Best {
    fn of(host: &HostSnapshot) -> Self {
        let best = host.vms.iter().map(saving).max().unwrap_or_default();
        Self(best.max(LEAST_BEST * UNIT))
    }

    /// What the pages of one of the VMs are worth.
    fn worth(self, vm: &VmSnapshot, config: &Config) -> Worth {
        let saving = saving(vm);
        let (mine, best) = (4 * saving * saving, self.0 * self.0);
        let waiting = u128::from(all(vm).0) * mine / (mine + best);
        let waiting = Pages(u64::try_from(waiting).unwrap_or(u64::MAX));
        Worth {
            shares: vm.shares,
            in_use: waiting.max(vm.active.unwrap_or_default()),
            tax_percent: config.idle_tax_percent,
        }
    }
}

impl Policy for Stall {
    fn name(&self) -> &'static str {
        "stall"
    }

    fn about(&self) -> &'static str {
        "to where a page saves most time that threads wait for evicted pages"
    }

    fn worth(&self, vm: &VmSnapshot, host: &HostSnapshot, config: &Config) -> Worth {
        Best::of(host).worth(vm, config)
    }

    fn worths(&self, host: &HostSnapshot, config: &Config) -> Vec<Worth> {
        let best = Best::of(host);
        let worth = |vm| best.worth(vm, config);
        host.vms.iter().map(worth).collect()
    }

    fn because(&self, vm: &VmSnapshot) -> String {
        format!(
            "its threads wait {} us/s for evicted pages, of which one more would save {} us/s; by sampling it uses {}",
            vm.stall_us_per_s,
            saving(vm) / UNIT,
            vm.active.unwrap_or_default().bytes(),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::FreeState;
    use super::super::super::fair;
    use super::super::super::properties::{config, host};
    use super::super::Equal;
    use super::*;

    fn host_of(vms: Vec<VmSnapshot>) -> HostSnapshot {
        HostSnapshot {
            budget: Pages(1000),
            used: Pages(600),
            least_free: None,
            resource_pools: Vec::new(),
            state: FreeState::High,
            vms,
            seed: 0,
        }
    }

    fn in_use(vms: Vec<VmSnapshot>) -> Vec<u64> {
        let worths = Stall.worths(&host_of(vms), &Config::default());
        worths.into_iter().map(|worth| worth.in_use.0).collect()
    }

    /// A VM that holds 600 pages, of which `active` are in use, and waits for 400 that are out.
    fn waits(active: Option<u64>, us_per_s: u64) -> VmSnapshot {
        VmSnapshot {
            active: active.map(Pages),
            swapped: Pages(400),
            stall_us_per_s: us_per_s,
            ..VmSnapshot::sample(1000, 600)
        }
    }

    #[test]
    fn pages_in_use_count_where_nobody_waits_and_waiting_where_nothing_is_sampled() {
        assert_eq!(in_use(vec![waits(Some(300), 0)]), [300]);
        // 1 us/s for each page, half of the least that savings are compared with; and as much as that.
        assert_eq!(in_use(vec![waits(Some(300), 400)]), [500]);
        assert_eq!(in_use(vec![waits(Some(300), 800)]), [800]);
        assert_eq!(in_use(vec![waits(None, 400)]), [500]);
    }

    #[test]
    fn guest_that_uses_next_to_nothing_of_what_it_holds_saves_little() {
        // An eighth of 600 pages is enough.
        let each = |active| saving(&waits(active, 4000)) / UNIT;
        let savings = [None, Some(600), Some(75), Some(50), Some(1), Some(0)].map(each);
        assert_eq!(savings, [10, 10, 10, 6, 2, 2]);
    }

    #[test]
    fn pages_that_are_dead_do_not_make_all_others_seem_wanted() {
        let dead = VmSnapshot {
            swapped: Pages(1_000_000),
            ..waits(Some(0), 1000)
        };
        // Two of a saving of 20 us/s, one of 5.
        let (much, little) = (waits(Some(300), 8000), waits(Some(75), 2000));
        let with_dead = in_use(vec![much.clone(), much.clone(), little.clone(), dead]);
        let without = in_use(vec![much.clone(), much, little]);
        assert_eq!(without, [800, 800, 200]);
        assert_eq!(with_dead[..3], without);
    }

    proptest! {
        /// Also where nobody else's pages would save anything.
        #[test]
        fn shares_are_a_floor(host in host(), config in config()) {
            let stall = Stall.plan(&host, &config);
            let equal = Equal.plan(&host, &config);
            for ((vm, stall), equal) in host.vms.iter().zip(&stall.vms).zip(&equal.vms) {
                let part = equal.target.min(fair::demand(vm, &config)).0;
                let kept = part * u64::from(100 - config.idle_tax_percent) / 100;
                prop_assert!(stall.target.0 + 1 >= kept, "{} of {part}", stall.target.0);
            }
        }

        #[test]
        fn more_waiting_never_means_a_smaller_target(
            host in host(),
            config in config(),
            which: prop::sample::Index,
            more in 1_u64..1_000_000,
            is_early: bool,
        ) {
            if host.vms.is_empty() {
                return Ok(());
            }
            let at = which.index(host.vms.len());
            let mut waits = host.clone();
            let vm = &mut waits.vms[at];
            if is_early {
                vm.early_us_per_s += more;
            } else {
                vm.stall_us_per_s += more;
            }
            let before = Stall.plan(&host, &config).vms[at].target;
            let after = Stall.plan(&waits, &config).vms[at].target;
            prop_assert!(after.0 + 1 >= before.0, "from {before:?} to {after:?}");
        }
    }
}
