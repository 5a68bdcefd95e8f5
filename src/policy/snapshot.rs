//! What the policy knows of a host: counts, taken at one instant.
//!
//! Two ways of counting meet here and must not be mixed. Fairness counts a shared page in full,
//! as ESX does: a VM is not entitled to more because its neighbours run the same operating system. The
//! budget counts host pages: a page with n sharers is one page, and each sharer bears 1/n of it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::law::Memory;
use super::resource_pool::{ROOT, ResourcePool};
use super::states::{Thresholds, next_state};
use super::{FreeState, Means, total};
use crate::units::{Pages, VmId};

/// A host at one instant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSnapshot {
    /// All the host pages the daemon may use.
    pub budget: Pages,
    /// The host pages in use, metadata included. More than the budget means that nothing is free and
    /// that more is wanted than there is.
    pub used: Pages,
    /// The least that was free since the last plan. A state is left only when enough was free all the time, not just in
    /// the moment between an eviction and the faults that waited for it. None: what is free now.
    #[serde(default)]
    pub least_free: Option<Pages>,
    /// The state that the last plan or allocation left.
    #[serde(default)]
    pub state: FreeState,
    /// Every VM, in any order.
    pub vms: Vec<VmSnapshot>,
    /// The resource pools, the root first and each after its parent. None: only the root.
    #[serde(default)]
    pub resource_pools: Vec<ResourcePool>,
    /// Picks the VM with which the remainder of a division begins. The caller changes it with each
    /// round, so that no VM always bears the odd page.
    #[serde(default)]
    pub seed: u64,
}

/// A VM at one instant. `resident + shared + zero + compressed + swapped + ballooned + untouched`
/// is its size. The planner corrects numbers that contradict each other before it uses them.
///
/// The daemon fills all of it in one place (`src/host/snapshot.rs`). Everybody else writes the fields that matter and
/// takes the rest from [`VmSnapshot::new`], and a file may leave out any field: a new field is added here, and there.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmSnapshot {
    /// Its number.
    pub id: VmId,
    /// The pool that it is in, by its place in the list.
    pub resource_pool: usize,
    /// Its configured memory, in guest pages.
    pub size: Pages,
    /// Guest pages that are never taken from it once it holds them. At most its size and limit;
    /// what is above them is ignored.
    pub reservation: Pages,
    /// The most guest pages that are ever backed. None: its size.
    pub limit: Option<Pages>,
    /// Its weight against the other VMs. A VM without shares is held to its reservation, even when
    /// memory is free, as in ESX.
    pub shares: u32,
    /// Guest pages in its own RAM: one host page each.
    pub resident: Pages,
    /// Guest pages that are mapped to shared frames, each counted in full.
    pub shared: Pages,
    /// Its part of the host pages that sharing saves: `shared` less its 1/refs of each frame.
    pub sharing_saved: Pages,
    /// Guest pages in its compression cache.
    pub compressed: Pages,
    /// Host pages that its compression cache takes. They are charged to the VM.
    pub zip_pages: Pages,
    /// Host pages by which its compression cache may still grow. Also zero when the pages that
    /// were tried last did not compress.
    pub zip_room: Pages,
    /// Guest pages in its swap file.
    pub swapped: Pages,
    /// Guest pages that its balloon holds now.
    pub ballooned: Pages,
    /// Guest pages that were written but hold only zeroes; they cost nothing.
    pub zero: Pages,
    /// Guest pages that were never written; they cost nothing.
    pub untouched: Pages,
    /// Whether a balloon agent is connected. Without one its balloon stays as it is, and has no target.
    pub agent: bool,
    /// Whether its agent has come closer to its target within the last few polls, or has reached it. False: the
    /// balloon is not waited for.
    pub agent_alive: bool,
    /// Guest pages that its balloon can be expected to bring in time, at the pace it has shown; what it owes
    /// beyond that is not waited for. None: the pace is not known, so all that the balloon owes is expected.
    pub balloon_brings: Option<Pages>,
    /// The most guest pages its balloon may hold; the host-wide maximum holds as well.
    pub balloon_max: Pages,
    /// The target of its balloon, if set by hand, as far as the maxima and its reservation allow. None: the
    /// policy decides.
    pub balloon_by_hand: Option<Pages>,
    /// The most that its balloon is to hold because its guest, short of memory itself, has asked for relief.
    /// None: it has not. Ignored in hard and low.
    pub relief: Option<Pages>,
    /// The size up to which its balloon takes only pages that its guest has free, as the guest says. None: not known.
    pub balloon_free: Option<Pages>,
    /// Guest pages it is estimated to be using; more than its size counts as its size. None: not known yet.
    pub active: Option<Pages>,
    /// Microseconds in each second for which its threads stand still until evicted pages are back, each thread by
    /// itself, on average over about the latest second.
    pub stall_us_per_s: u64,
    /// The same for early refaults alone: for pages that had left RAM lately.
    pub early_us_per_s: u64,
    /// How many pages count as having left lately, whether they have come back or not.
    pub left_lately: Pages,
    /// Microseconds in each second for which its threads waited for the guest's own swap device, as the guest says.
    pub guest_stall_us_per_s: u64,
    /// What the control law of its balloon remembers: [`law`](super::VmPlan::law) of the latest plan.
    pub law: Memory,
    /// Milliseconds since that plan. 0: there was none.
    pub law_since_ms: u64,
    /// Guest pages that its swap file can still take.
    pub swap_room: Pages,
    /// Whether the last writes to its swap file failed: then nothing is written to it.
    pub swap_failing: bool,
    /// Whether its guest does not answer the host, because its process is stopped or gets no processor.
    /// Nothing can be taken from it then: eviction needs its help as much as the balloon does.
    pub mute: bool,
    /// Whether its faults wait because it may not become larger than its
    /// [ceiling](super::VmPlan::ceiling), and its balloon does not move.
    pub pressing: bool,
}

/// The most pages of any address space: one page less than 16 EiB. The sum of two such numbers does not
/// overflow.
const MOST: Pages = Pages((1 << 52) - 1);

impl HostSnapshot {
    /// The same host with numbers that can be true. Snapshots are also read from files, and guests and
    /// stores move while they are counted.
    ///
    /// Numbers that contradict each other are lowered until they do not. The budget, what is used and the size
    /// of a VM are at most an address space. The homes of its pages, in the order resident, shared, compressed,
    /// swapped, ballooned, zero, untouched, are each at most what the earlier ones leave of its size. What sharing
    /// saves it is at most what it shares, the host pages of its compression cache at most the pages in it, and its
    /// active pages and the most of its balloon at most its size. Reservation and limit are settings: see
    /// [`VmSnapshot::min`] and [`VmSnapshot::max`]. A VM or a pool whose pool cannot be is at the root.
    ///
    /// Nearly all snapshots need no correction, and one of many VMs is too large to be copied for nothing.
    pub(super) fn believable(&self) -> Cow<'_, Self> {
        let is_true = |vm: &VmSnapshot| vm.believable() == *vm;
        let may_be = self.budget <= MOST && self.used <= MOST && self.is_tree();
        if may_be && self.vms.iter().all(is_true) {
            // Nearly always: what the daemon counts is true, and only written scenarios may not be.
            return Cow::Borrowed(self);
        }
        let in_a_pool = |vm: &VmSnapshot| VmSnapshot {
            resource_pool: Some(vm.resource_pool)
                .filter(|pool| *pool < self.pools())
                .unwrap_or(ROOT),
            ..vm.believable()
        };
        Cow::Owned(Self {
            budget: self.budget.min(MOST),
            used: self.used.min(MOST),
            vms: self.vms.iter().map(in_a_pool).collect(),
            resource_pools: self.believable_pools(),
            ..*self
        })
    }

    /// The state from now on.
    pub(super) fn next_state(&self, thresholds: &Thresholds) -> FreeState {
        let next = next_state(self.state, self.free(), thresholds);
        // Free memory of this instant may be a moment's luck: the host gets better only if it was so since the last
        // look.
        let least = self.least_free.unwrap_or(MOST).min(self.free());
        if next < self.state && next_state(self.state, least, thresholds) >= self.state {
            return self.state;
        }
        next
    }

    /// Host pages not in use.
    #[must_use]
    pub fn free(&self) -> Pages {
        self.budget.saturating_sub(self.used)
    }

    /// Host pages that no VM is charged with: metadata.
    #[must_use]
    pub fn overhead(&self) -> Pages {
        self.used
            .saturating_sub(total(self.vms.iter().map(VmSnapshot::backing)))
    }

    /// Host pages that sharing saves.
    #[must_use]
    pub fn sharing_saved(&self) -> Pages {
        total(self.vms.iter().map(|vm| vm.sharing_saved))
    }
}

impl VmSnapshot {
    /// A VM that has touched none of its `size` pages. It has no shares, no agent, and no store that takes its pages.
    #[must_use]
    pub fn new(id: VmId, size: Pages) -> Self {
        Self {
            id,
            size,
            untouched: size,
            ..Self::default()
        }
    }

    fn believable(&self) -> Self {
        let size = self.size.min(MOST);
        let mut left = size;
        let mut home = |pages: Pages| {
            // The homes share what is left, so that together they are never more than the size.
            let pages = pages.min(left);
            left = left.saturating_sub(pages);
            pages
        };
        let resident = home(self.resident);
        let shared = home(self.shared);
        let compressed = home(self.compressed);
        Self {
            size,
            resident,
            shared,
            sharing_saved: self.sharing_saved.min(shared),
            compressed,
            zip_pages: self.zip_pages.min(compressed),
            swapped: home(self.swapped),
            ballooned: home(self.ballooned),
            zero: home(self.zero),
            untouched: home(self.untouched),
            balloon_max: self.balloon_max.min(size),
            active: self.active.map(|active| active.min(size)),
            ..*self
        }
    }

    /// The most it may ever hold: its size or its limit, whichever is less; without shares, its
    /// reservation.
    #[must_use]
    pub fn max(&self) -> Pages {
        if self.shares == 0 {
            return self.min();
        }
        self.limit.unwrap_or(self.size).min(self.size)
    }

    /// The least it must be able to hold: its reservation.
    #[must_use]
    pub fn min(&self) -> Pages {
        let limit = self.limit.unwrap_or(self.size);
        // A limit below the reservation wins: nobody is promised what it may not hold.
        self.reservation.min(limit).min(self.size)
    }

    /// What it holds, for fairness: shared pages count in full, as ESX counts them, and the
    /// compression cache counts as the host pages it takes.
    #[must_use]
    pub fn allocation(&self) -> Pages {
        total([self.resident, self.shared, self.zip_pages])
    }

    /// What it holds, for the budget: host pages.
    #[must_use]
    pub fn backing(&self) -> Pages {
        self.allocation().saturating_sub(self.sharing_saved)
    }

    /// The most pages that can be evicted from it now by these means. Pages that can be shared need
    /// neither, but are not counted: whether a page equals another is known only when it is tried.
    ///
    /// With swap the compression cache counts as well, as the host pages that come free when the guest pages
    /// in them have moved on to the swap file.
    #[must_use]
    pub fn evictable(&self, means: Means) -> Pages {
        // A page is taken only with the help of its guest, which does not answer.
        if self.mute {
            return Pages(0);
        }
        let swap_room = if means.swap && !self.swap_failing {
            self.swap_room
        } else {
            Pages(0)
        };
        // A host page of the cache holds at least two guest pages, so each page of room frees at least one.
        let zip_room = if means.compress {
            self.zip_room
        } else {
            Pages(0)
        };
        let mapped = total([swap_room, zip_room]).min(total([self.resident, self.shared]));
        let left = swap_room.saturating_sub(mapped).min(self.compressed);
        if left == Pages(0) {
            return mapped;
        }
        // Rounded up: the last guest page that finds room moves, even if its host page does not come free.
        let from_cache = (u128::from(self.zip_pages.0) * u128::from(left.0))
            .div_ceil(u128::from(self.compressed.0));
        total([mapped, Pages(u64::try_from(from_cache).unwrap_or(u64::MAX))])
    }
}

#[cfg(test)]
impl VmSnapshot {
    /// A VM that has touched `resident` of its pages, with a balloon and a swap file that work.
    pub(super) fn sample(size: u64, resident: u64) -> Self {
        Self {
            shares: 1000,
            resident: Pages(resident),
            untouched: Pages(size - resident),
            agent: true,
            agent_alive: true,
            balloon_max: Pages(size),
            swap_room: Pages(size),
            ..Self::new(VmId(0), Pages(size))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_of_few_fields_is_read_and_counts() {
        let text = r#"{
            "budget": 1000, "used": 380,
            "vms": [{
                "id": 1, "size": 500, "limit": 400, "reservation": 450, "shares": 1000,
                "resident": 200, "shared": 100, "sharing_saved": 50, "zip_pages": 20,
                "compressed": 60, "zip_room": 30, "swap_room": 40,
                "agent_alive": true, "balloon_max": 325
            }]
        }"#;
        let host: HostSnapshot = serde_json::from_str(text).expect("valid");
        let vm = &host.vms[0];
        assert_eq!(host.state, FreeState::High);
        assert_eq!((vm.max(), vm.min()), (Pages(400), Pages(400)));
        assert_eq!((vm.allocation(), vm.backing()), (Pages(320), Pages(270)));
        assert_eq!((host.free(), host.overhead()), (Pages(620), Pages(110)));
        let means = |compress, swap| Means { compress, swap };
        assert_eq!(vm.evictable(means(true, true)), Pages(70));
        assert_eq!(vm.evictable(means(true, false)), Pages(30));
        assert_eq!(vm.evictable(means(false, true)), Pages(40));
        assert_eq!(vm.evictable(means(false, false)), Pages(0));
        let failing = VmSnapshot {
            swap_failing: true,
            ..vm.clone()
        };
        assert_eq!(failing.evictable(means(true, true)), Pages(30));
    }
}
