//! A simulated guest: what it uses, what its agent does, and for how long it waits.
//!
//! Pages are counted and not told apart. Of what a guest has allocated a part is hot: touched again and again, each page as
//! likely as any other. The rest is cold, and the guest, which knows that, pages it out first; the host does not know, and
//! takes hot and cold alike. A thread goes on when the page it waits for is there, so a guest that thrashes gets less done
//! and touches less: that bounds for how long it can wait.
//!
//! A balloon takes pages that the guest has free, of those first what was never touched, and so costs the host nothing:
//! the worst for the host. Then the guest pages for it, slowly.

use super::costs::{ACCESS_US, IN_VAIN_US, ON_OOM_PAGES, REFILL_US, SWAP_IN_US};
use crate::units::Pages;

/// Microseconds in a step of the simulation.
pub(super) const STEP_US: u64 = 250_000;
/// Steps in a second.
pub(super) const STEPS_PER_S: u64 = 1_000_000 / STEP_US;
/// The pages that a guest can allocate in a step: 256 MiB a second.
const ALLOCATES: u64 = 65_536 / STEPS_PER_S;
/// The steps for which a guest waits in vain before its kernel kills: a second.
const PATIENCE: u64 = STEPS_PER_S;
/// The seconds after which the killed process is started again.
const RESTART_S: u64 = 10;

/// What a guest does from some second on: the size that its content and its hot part then have.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The second.
    pub at_s: u64,
    /// What it has allocated.
    pub allocated: Pages,
    /// What it touches of that.
    pub hot: Pages,
}

/// How the agent of a guest works.
#[derive(Clone, Copy, Debug)]
pub struct Agent {
    /// The seconds between two looks at the target; 0: it is told at once.
    pub looks_every_s: u64,
    /// The most pages that it gives back in a second.
    pub deflates: u64,
    /// The seconds from which and until which it does nothing.
    pub stuck_s: (u64, u64),
    /// Whether it asks its host for relief. One that does not deflates on OOM, as that of virtio does.
    pub relief: bool,
}

/// The bundled agent: VMware's rates.
pub(super) const BUNDLED: Agent = Agent {
    looks_every_s: 0,
    deflates: 16_384,
    stuck_s: (0, 0),
    relief: true,
};

/// A guest as an incident describes it.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Its name.
    pub name: &'static str,
    /// Its memory.
    pub size: Pages,
    /// What its kernel always holds.
    pub kernel: Pages,
    /// The size of its own swap device.
    pub swap: Pages,
    /// What its balloon holds at first.
    pub ballooned: Pages,
    /// What it does, in the order of time; the first at second 0.
    pub loads: &'static [Load],
    /// Its agent.
    pub agent: Agent,
}

/// A guest at a moment.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) is: Described,
    allocated: u64,
    hot: u64,
    /// In its own swap.
    paged: u64,
    pub(super) ballooned: u64,
    /// Pages that have content as far as the host knows, there or in the host's swap file.
    resident: u64,
    pub(super) swapped: u64,
    /// What its agent has seen of its target.
    seen_target: u64,
    waited_steps: u64,
    /// What its balloon held when it waited last.
    held_before: u64,
    killed_until_s: u64,
    /// What it asks of its balloon because it is short.
    pub(super) begs: u64,
    pub(super) kills: u64,
    /// Microseconds for which its thread waited, for the host and for its own swap device.
    pub(super) stall_host_us: u64,
    pub(super) stall_own_us: u64,
    pub(super) accesses: u64,
}

impl Guest {
    pub(super) fn new(is: Described) -> Self {
        let load = is.loads[0];
        let room = is.size.0 - is.kernel.0 - is.ballooned.0;
        let allocated = load.allocated.0.min(room);
        Self {
            is,
            allocated,
            hot: load.hot.0.min(allocated),
            paged: 0,
            ballooned: is.ballooned.0,
            resident: is.kernel.0 + allocated,
            swapped: 0,
            seen_target: is.ballooned.0,
            waited_steps: 0,
            held_before: 0,
            killed_until_s: 0,
            begs: 0,
            kills: 0,
            stall_host_us: 0,
            stall_own_us: 0,
            accesses: 0,
        }
    }

    /// Pages in RAM by the guest's own count.
    fn used(&self) -> u64 {
        self.is.kernel.0 + self.allocated - self.paged
    }

    pub(super) fn free(&self) -> u64 {
        (self.is.size.0 - self.ballooned).saturating_sub(self.used())
    }

    pub(super) fn resident(&self) -> u64 {
        self.resident
    }

    pub(super) fn untouched(&self) -> u64 {
        self.is.size.0 - self.ballooned - self.resident - self.swapped
    }

    /// The pages that it uses, as sampling finds them.
    pub(super) fn active(&self) -> Pages {
        Pages(self.is.kernel.0 + self.hot)
    }

    pub(super) fn stall_us(&self) -> u64 {
        self.stall_host_us + self.stall_own_us
    }

    /// The pages of its hot part that do not fit beside its balloon.
    pub(super) fn overshoot(&self) -> u64 {
        let load = self.load_hot();
        (self.is.kernel.0 + load + self.ballooned).saturating_sub(self.is.size.0)
    }

    fn load_hot(&self) -> u64 {
        self.hot.max(1)
    }

    fn load(&self, at_s: u64) -> Load {
        let begun = self.is.loads.iter().rev().find(|load| load.at_s <= at_s);
        let load = *begun.unwrap_or(&self.is.loads[0]);
        if at_s < self.killed_until_s {
            // What is left after the largest process was killed.
            return Load {
                allocated: Pages(load.allocated.0 / 2),
                hot: Pages(load.hot.0 / 2),
                ..load
            };
        }
        load
    }

    /// The host takes pages from it.
    pub(super) fn evict(&mut self, pages: u64) -> u64 {
        let pages = pages.min(self.resident);
        self.resident -= pages;
        self.swapped += pages;
        pages
    }

    /// A step of its agent.
    pub(super) fn follow(&mut self, target: u64, at_s: u64, first_of_second: bool) {
        let agent = self.is.agent;
        if (agent.stuck_s.0..agent.stuck_s.1).contains(&at_s) {
            return;
        }
        let looks = match agent.looks_every_s {
            0 => true,
            every => first_of_second && at_s.is_multiple_of(every),
        };
        if looks {
            self.seen_target = target;
        }
        let target = self.seen_target;
        if self.ballooned > target {
            let back = (self.ballooned - target).min(agent.deflates / STEPS_PER_S);
            self.ballooned -= back;
        } else {
            self.inflate(target - self.ballooned);
        }
    }

    fn inflate(&mut self, wanted: u64) {
        let fast = 16_384.max(self.is.size.0 / 16) / STEPS_PER_S;
        let of_free = wanted.min(fast).min(self.free());
        self.take(of_free);
        // Then its kernel pages for the balloon.
        let room = self.is.swap.0 - self.paged;
        let pageable = self.allocated - self.paged;
        let slow = 2048 / STEPS_PER_S;
        let reclaimed = (wanted - of_free).min(slow).min(room).min(pageable);
        if of_free == 0 {
            self.paged += reclaimed;
            self.take(reclaimed);
        }
    }

    /// The balloon takes pages that are free: of those, first such that were never touched.
    fn take(&mut self, pages: u64) {
        let touched = pages.saturating_sub(self.untouched());
        self.ballooned += pages;
        let resident = touched.min(self.resident);
        self.resident -= resident;
        self.swapped -= (touched - resident).min(self.swapped);
    }

    /// A step of its threads, with so many pages free on the host. Returns whether the host had too few.
    pub(super) fn run(&mut self, at_s: u64, host_free: &mut u64, blocked: bool) {
        self.begs = 0;
        if blocked {
            self.stall_host_us += STEP_US;
            return;
        }
        let load = self.load(at_s);
        let mut left_us = STEP_US;
        self.allocate(load, at_s, host_free, &mut left_us);
        self.hot = load.hot.0.min(self.allocated);
        self.touch(left_us, host_free);
    }

    fn allocate(&mut self, load: Load, at_s: u64, host_free: &mut u64, left_us: &mut u64) {
        let wants = load.allocated.0;
        if wants <= self.allocated {
            // What is freed leaves the guest's swap first.
            self.paged = self.paged.min(wants);
            self.allocated = wants;
            self.waited_steps = 0;
            return;
        }
        let grows = (wants - self.allocated).min(ALLOCATES);
        let of_free = grows.min(self.free());
        let paged = (grows - of_free).min(self.is.swap.0 - self.paged);
        self.allocated += of_free + paged;
        self.paged += paged;
        let paging_us = (paged * SWAP_IN_US).min(*left_us);
        self.stall_own_us += paging_us;
        *left_us -= paging_us;
        self.fill(host_free, left_us);
        let lacks = grows - of_free - paged;
        self.begs = grows - of_free;
        if lacks == 0 {
            self.waited_steps = 0;
            return;
        }
        // No memory, and nothing to page out to: the thread waits.
        self.stall_own_us += *left_us;
        let tries = (*left_us / IN_VAIN_US).max(1);
        *left_us = 0;
        if !self.is.agent.relief && self.ballooned > 0 {
            // It deflates on OOM, a little each time, and the next look at the target takes it back.
            let back = (tries * ON_OOM_PAGES).min(self.ballooned);
            self.ballooned -= back;
            return;
        }
        // A kernel that is given something tries again.
        self.waited_steps = if self.ballooned < self.held_before {
            0
        } else {
            self.waited_steps + 1
        };
        self.held_before = self.ballooned;
        if self.waited_steps > PATIENCE {
            self.kill(at_s);
        }
    }

    fn kill(&mut self, at_s: u64) {
        self.kills += 1;
        self.killed_until_s = at_s + RESTART_S;
        self.waited_steps = 0;
        self.allocated /= 2;
        self.paged = self.paged.min(self.allocated);
    }

    /// What the guest uses and the host has not seen yet becomes resident, as far as the host has memory.
    fn fill(&mut self, host_free: &mut u64, left_us: &mut u64) {
        let lacks = self.used().saturating_sub(self.resident + self.swapped);
        let filled = lacks.min(*host_free).min(self.untouched());
        self.resident += filled;
        *host_free -= filled;
        if filled < lacks {
            self.stall_host_us += *left_us;
            *left_us = 0;
        }
    }

    /// Its thread touches hot pages for so long.
    fn touch(&mut self, left_us: u64, host_free: &mut u64) {
        if left_us == 0 || self.hot == 0 {
            return;
        }
        let cold = self.allocated - self.hot;
        let hot_paged = self.paged.saturating_sub(cold).min(self.hot);
        let touched = (self.resident + self.swapped).max(1);
        // What an access costs on average, in nanoseconds.
        let own = 1000 * SWAP_IN_US * hot_paged / self.hot;
        let here = self.hot - hot_paged;
        let host = 1000 * REFILL_US * here / self.hot * self.swapped / touched;
        let accesses = left_us * 1000 / (1000 * ACCESS_US + own + host);
        self.accesses += accesses;
        self.stall_own_us += accesses * own / 1000;
        self.stall_host_us += accesses * host / 1000;
        let refilled = (accesses * here / self.hot * self.swapped / touched).min(self.swapped);
        let served = refilled.min(*host_free);
        self.swapped -= served;
        self.resident += served;
        *host_free -= served;
        // Pages that are back take the place of others, unless there is room.
        let back = (accesses * hot_paged / self.hot)
            .min(hot_paged)
            .min(self.free());
        self.paged -= back;
        let mut left_us = 0;
        self.fill(host_free, &mut left_us);
        self.begs = self.begs.max(hot_paged - back);
    }
}
