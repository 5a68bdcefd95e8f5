//! Memory moves to where a page saves most stall time.
//!
//! Sampling tells which pages a VM uses, but it tells late. A guest that begins to work without its memory touches few
//! pages, because it waits for each: as long as it is kept short it looks idle. And a page that is read once a minute
//! counts as much as one that is read all the time. What evicted pages cost is known at once. A thread that touches one
//! stands still until the page is back, and the daemon adds up for how long ([`VmSnapshot::stall_us_per_s`]). Divided by
//! the pages that are out, that is what one more page of memory would save: the *saving*, in microseconds a second.
//!
//! That is so if all pages that are out are wanted alike. Of a guest that once wrote much and works on a part of it, most
//! never come back. So a second quotient is taken: the time for pages that come back early, divided by the pages that
//! left lately ([`VmSnapshot::early_us_per_s`], [`Refaults`](crate::vm::Refaults)). It tells what the next pages would
//! save; half of it counts, because a part comes from errors in the choice of victims, whatever memory there is. But of a
//! guest that has just begun to work, everything left long ago, and only the first quotient shows it. The
//! saving is the larger one.
//!
//! What a page saves elsewhere is the measure: of a VM that saves as much as all of them on average, half counts as
//! waiting.
//!
//! ```text
//! all     = resident + shared + compressed + swapped
//! out     = max(compressed + swapped, all / 8)
//! left    = max(pages that left lately, (resident + shared) / 8)
//! saving  = max(stall / out, early / left / 2), where early is the stall for early refaults
//! average = max(sum of saving * out / sum of out, 2 us/s)
//! waiting = all * saving / (saving + average)
//! in use  = max(waiting, active)
//! ```
//!
//! A VM that has all its pages waits for none. So the pages that sampling finds count too: without them a guest that
//! works would count as idle until it had lost what it works with. The rest is taxed as idle memory is by ESX. So shares
//! are a floor: whatever the others' pages would save, with a tax of 75 % a VM keeps a quarter of what shares alone would
//! give it.
//!
//! Why that comes to rest: three things bound how much the loop amplifies. The part that waits is a smooth function of
//! the saving, which goes from 1 to 9 tenths over two orders of magnitude. While few pages are out or have left, the
//! least divisors keep the wait for a single one from counting as if a whole VM waited. And where nobody waits for long,
//! the least average keeps small differences small.

use super::super::total;
use super::{Config, HostSnapshot, Pages, Policy, VmSnapshot, Worth};

/// The least average saving, in microseconds a second for each page. A page that comes from the cache or a fast disk in
/// 50 us saves that much when it is wanted every 25 seconds.
const LEAST_AVERAGE: u128 = 2;
/// The least part of its pages, one in so many, by which a stall time of a VM is divided.
const LEAST_PART: u64 = 8;
/// Early refaults count one part in so many: some pages come back early because the choice of victims erred, which it
/// would do with more memory too.
const EARLY: u64 = 2;
/// So many units of a saving are 1 us/s for each page.
const UNIT: u128 = 1024;
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

/// What one more page of memory would save a VM, in units of [`UNIT`].
fn saving(vm: &VmSnapshot) -> u128 {
    let each = |us_per_s: u64, pages| u128::from(us_per_s.min(MOST)) * UNIT / u128::from(pages);
    each(vm.stall_us_per_s, out(vm)).max(each(vm.early_us_per_s / EARLY, left(vm)))
}

/// What one more page would save each VM, times its pages that are out, and these pages.
#[derive(Clone, Copy)]
struct Sums {
    saving: u128,
    out: u128,
}

impl Sums {
    fn of(host: &HostSnapshot) -> Self {
        let pages = |vm: &VmSnapshot| u128::from(out(vm));
        Self {
            saving: host.vms.iter().map(|vm| saving(vm) * pages(vm)).sum(),
            out: host.vms.iter().map(pages).sum(),
        }
    }

    /// What the pages of one of the VMs are worth.
    fn worth(self, vm: &VmSnapshot, config: &Config) -> Worth {
        let saving = saving(vm);
        let average = (self.saving / self.out.max(1)).max(LEAST_AVERAGE * UNIT);
        let waiting = u128::from(all(vm).0) * saving / (saving + average);
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
        Sums::of(host).worth(vm, config)
    }

    fn worths(&self, host: &HostSnapshot, config: &Config) -> Vec<Worth> {
        let sums = Sums::of(host);
        let worth = |vm| sums.worth(vm, config);
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

    #[test]
    fn pages_in_use_count_where_nobody_waits_and_waiting_where_nothing_is_sampled() {
        let mut vm = VmSnapshot::sample(1000, 600);
        let host = HostSnapshot {
            budget: Pages(1000),
            used: Pages(600),
            least_free: None,
            resource_pools: Vec::new(),
            state: FreeState::High,
            vms: Vec::new(),
            seed: 0,
        };
        let in_use = |vm: &VmSnapshot| Stall.worth(vm, &host, &Config::default()).in_use;
        vm.active = Some(Pages(300));
        assert_eq!(in_use(&vm), Pages(300));
        // Of 600 that it holds and 400 that are out.
        (vm.swapped, vm.stall_us_per_s) = (Pages(400), 800);
        assert_eq!(in_use(&vm), Pages(500));
        vm.active = None;
        assert_eq!(in_use(&vm), Pages(500));
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
