//! On which processor a guest runs that waits for its disk, where the kernel's choice leaves another one idle.
//!
//! A thread that reads a page from the swap file sleeps until the disk interrupts a processor, and the kernel wakes the
//! thread there if the thread's own processor is busy. Many disks always interrupt the same one. So the guests that read
//! most gather on it and wait for each other, while another processor is idle for half of the time. The kernel's
//! balancing between processors does not help: a thread that runs for 20 us and sleeps again is gone before it looks. And
//! where only two processors share a cache, the kernel does not search for an idle one when it wakes a thread.
//! Four guests that read random pages waited for a processor three times as long as for the disk.
//!
//! ESX places its guests itself. This daemon leaves that to the kernel, and steps in where the kernel is seen to
//! fail. A guest that waits for the disk, and whose threads are *crowded*, ready to run without a processor for a fifth
//! of the time, is *placed* on a processor that is idle for as long as the guest runs: its threads may use no
//! other. One guest is moved at a look, the one that waits longest, because each move changes how the others fare. A guest
//! that was moved stays for a while. Each move evens out what the processors have to run, so moves come to an end.
//!
//! A guest is freed, and its threads may use what they could before, when it has ceased to wait for the disk, or when it
//! runs so much that one processor may be too little. Threads for which somebody else has chosen processors are left
//! alone. So is a guest that the daemon may not move: it takes `CAP_SYS_NICE` or the same user.
//!
//! Absent on purpose: guests that compute, which the kernel spreads well; guests without a need for the disk; and
//! the daemon's own threads. With workers confined to the processor that the disk did not interrupt, four stores of text
//! lost a fifth of their operations.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::member::Member;
use crate::sys::{Process, Processors, Scheduled, idle_times, move_threads, scheduled};
use crate::throttle::Throttle;
use crate::units::VmId;
use crate::vm::{Cause, Stalled};

/// The shortest time between two looks. Idle times are counted in steps of up to 10 ms.
const PERIOD: Duration = Duration::from_millis(500);
/// A guest waits for the disk if its threads stand still for swapped pages for this part of the time.
const WAITS_FOR_DISK: f64 = 0.1;
/// A guest is crowded if its threads are ready and have no processor for this part of the time.
const CROWDED: f64 = 0.2;
/// A processor has room if it is idle for this part of the time.
const ROOM: f64 = 0.15;
/// A guest that runs for more than this part of one processor's time is not confined to one.
const RUNS_MUCH: f64 = 0.7;
/// How long a guest that was moved stays where it is, and one that has ceased to wait for the disk.
const STAYS: Duration = Duration::from_secs(4);
/// Guests decide how often they are moved.
static MOVES: Throttle = Throttle::new(20, Duration::from_secs(10));

/// What two looks tell of a VM. Times are parts of the time between them.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Seen {
    vm: VmId,
    /// For how long its threads ran.
    ran: f64,
    /// For how long its threads were ready and had no processor.
    waited: f64,
    /// Where it is placed.
    on: Option<usize>,
    /// Whether it has been there for long enough.
    may_move: bool,
}

/// The guests that could move, those that wait longest first, and where to: the processor that is idle for the longest
/// time.
fn movable(vms: &[Seen], idle: &[(usize, f64)]) -> Option<(Vec<VmId>, usize)> {
    let (to, room) = *idle.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let suits = |vm: &&Seen| {
        let is_elsewhere = vm.may_move && vm.on != Some(to);
        is_elsewhere && vm.waited >= CROWDED && vm.ran <= room.min(RUNS_MUCH)
    };
    let mut crowded: Vec<&Seen> = vms.iter().filter(suits).collect();
    crowded.sort_by(|a, b| b.waited.total_cmp(&a.waited));
    (room >= ROOM).then(|| (crowded.iter().map(|vm| vm.vm).collect(), to))
}

/// A guest that is confined to a processor.
#[derive(Clone, Debug)]
struct Placed {
    on: usize,
    process: Arc<Process>,
    /// What its threads could use before, and get back.
    all: Processors,
    since: Instant,
    /// When it was last seen to wait for the disk.
    waited: Instant,
}

impl Placed {
    fn free(&self) {
        // A guest that has ended needs no processor, and its number may be another's by now.
        if !self.process.wait(Duration::ZERO)
            && let Ok(one) = Processors::only(self.on)
        {
            // One that cannot be freed could not have been placed.
            let _ = move_threads(self.process.pid(), &one, &self.all);
        }
    }
}

/// What was counted at a look, since ever.
#[derive(Clone, Debug)]
struct Look {
    at: Instant,
    /// For how long each processor was idle.
    idle: HashMap<usize, Duration>,
    vms: HashMap<VmId, Counted>,
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    /// For how long its threads stood still for swapped pages.
    swap: Duration,
    /// `None`: nobody asked, because it does not wait for the disk.
    scheduled: Option<Scheduled>,
}

impl Look {
    /// For which part of the time since the look before each processor was idle.
    fn idle_since(&self, before: &Self) -> Vec<(usize, f64)> {
        let each = |(on, idle): (&usize, &Duration)| {
            let was = *before.idle.get(on)?;
            Some((*on, self.part_since(before, *idle, was)))
        };
        self.idle.iter().filter_map(each).collect()
    }

    /// How much a time has grown since the look before, as a part of the time that has passed.
    fn part_since(&self, before: &Self, time: Duration, was: Duration) -> f64 {
        let passed = self.at.saturating_duration_since(before.at);
        time.saturating_sub(was).as_secs_f64() / passed.as_secs_f64().max(1e-3)
    }
}

/// Where guests are placed. All are freed when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Placement {
    latest: Option<Look>,
    placed: HashMap<VmId, Placed>,
}

impl Placement {
    /// Looks if it is time, and moves at most one guest. Frees all if guests are not to be placed.
    pub(super) fn look(&mut self, vms: &[(&Arc<Member>, Stalled)], wanted: bool, now: Instant) {
        if !wanted {
            self.latest = None;
            self.free(|_, _| true);
        } else if self.is_due(now) {
            let before = self.latest.take();
            let look = self.count(vms, before.as_ref(), now);
            if let Some(before) = before {
                self.judge(vms, &before, &look);
            }
            self.latest = Some(look);
        }
        for (member, _) in vms {
            let placed = self.placed.get(&member.vm.id);
            member
                .recent()
                .note_placed_on(placed.map(|placed| placed.on));
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let latest = self.latest.as_ref();
        latest.is_none_or(|latest| now >= latest.at + PERIOD)
    }

    /// Asks the kernel only about guests that wait for the disk, so that an idle host costs nothing.
    fn count(
        &mut self,
        vms: &[(&Arc<Member>, Stalled)],
        before: Option<&Look>,
        now: Instant,
    ) -> Look {
        let mut look = Look {
            at: now,
            idle: HashMap::new(),
            vms: HashMap::new(),
        };
        for (member, stalled) in vms {
            let (id, swap) = (member.vm.id, stalled.threads[Cause::RefillSwap]);
            let waits = before.is_some_and(|before| {
                let was = before.vms.get(&id).map_or(swap, |was| was.swap);
                look.part_since(before, swap, was) >= WAITS_FOR_DISK
            });
            let placed = self.placed.get_mut(&id);
            let asks = waits || placed.is_some();
            if waits && let Some(placed) = placed {
                placed.waited = now;
            }
            let scheduled = asks.then(|| scheduled(member.process.pid()).ok()).flatten();
            look.vms.insert(id, Counted { swap, scheduled });
        }
        if look.vms.values().any(|vm| vm.scheduled.is_some()) {
            look.idle = idle_times().unwrap_or_default();
        }
        look
    }

    fn judge(&mut self, vms: &[(&Arc<Member>, Stalled)], before: &Look, look: &Look) {
        let seen = self.seen(before, look);
        let runs_much = |id| seen.iter().any(|vm| vm.vm == id && vm.ran > RUNS_MUCH);
        self.free(|id, placed| {
            !look.vms.contains_key(&id) || look.at >= placed.waited + STAYS || runs_much(id)
        });
        let Some((crowded, to)) = movable(&seen, &look.idle_since(before)) else {
            return;
        };
        // The first that may be moved: one that may not must not keep the others where they are.
        for id in crowded {
            let member = vms.iter().find(|(member, _)| member.vm.id == id);
            if member.is_some_and(|(member, _)| self.place(member, to, look.at)) {
                return;
            }
        }
    }

    fn seen(&self, before: &Look, look: &Look) -> Vec<Seen> {
        let each = |(id, counted): (&VmId, &Counted)| {
            let (was, is) = (before.vms.get(id)?.scheduled?, counted.scheduled?);
            let placed = self.placed.get(id);
            Some(Seen {
                vm: *id,
                ran: look.part_since(before, is.ran, was.ran),
                waited: look.part_since(before, is.waited, was.waited),
                on: placed.map(|placed| placed.on),
                may_move: placed.is_none_or(|placed| look.at >= placed.since + STAYS),
            })
        };
        look.vms.iter().filter_map(each).collect()
    }

    /// Confines a guest to a processor; returns whether that was allowed. A guest that stays where it is only loses time.
    fn place(&mut self, member: &Member, to: usize, now: Instant) -> bool {
        let (id, process) = (member.vm.id, &member.process);
        let (from, all) = match self.placed.get(&id) {
            Some(placed) => (Processors::only(placed.on), placed.all),
            None => match Processors::of(process.pid()) {
                Ok(all) => (Ok(all), all),
                Err(_) => return false,
            },
        };
        let (Ok(from), Ok(one)) = (from, Processors::only(to)) else {
            return false;
        };
        if !all.contains(to) || move_threads(process.pid(), &from, &one).is_err() {
            return false;
        }
        let vm = &member.vm.params.name;
        MOVES.line(|unsaid| tracing::info!(%vm, processor = to, unsaid, "placed"));
        let placed = Placed {
            on: to,
            process: Arc::clone(process),
            all,
            since: now,
            waited: now,
        };
        self.placed.insert(id, placed);
        true
    }

    /// Frees the guests for which that is so.
    fn free(&mut self, so: impl Fn(VmId, &Placed) -> bool) {
        self.placed.retain(|id, placed| {
            let frees = so(*id, placed);
            if frees {
                placed.free();
            }
            !frees
        });
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        self.free(|_, _| true);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A VM that is placed nowhere.
    fn seen(vm: u32, ran: f64, waited: f64) -> Seen {
        Seen {
            vm: VmId(vm),
            ran,
            waited,
            on: None,
            may_move: true,
        }
    }

    /// Of the guests that could move, the one that waits longest.
    fn next(vms: &[Seen], idle: &[(usize, f64)]) -> Option<(VmId, usize)> {
        let (crowded, to) = movable(vms, idle)?;
        Some((*crowded.first()?, to))
    }

    #[test]
    fn guest_that_waits_longest_goes_to_the_idlest_processor() {
        let vms = [seen(1, 0.2, 0.3), seen(2, 0.2, 0.5), seen(3, 0.2, 0.1)];
        let idle = [(0, 0.2), (1, 0.0), (2, 0.6)];
        assert_eq!(next(&vms, &idle), Some((VmId(2), 2)));
        // Where it may not be moved, the next one is.
        let both = vec![VmId(2), VmId(1)];
        assert_eq!(movable(&vms, &idle), Some((both, 2)));
        assert_eq!(next(&vms, &[]), None, "nothing is known");
    }

    #[test]
    fn guest_stays_where_no_processor_has_room_for_it() {
        let idle = [(0, 0.0), (1, 0.4)];
        let moved = |vm: Seen| next(&[vm], &idle).is_some();
        let crowded = seen(1, 0.3, 0.3);
        assert!(moved(crowded));
        assert!(!moved(seen(1, 0.45, 0.3)), "it runs for longer");
        assert!(!moved(seen(1, 0.3, 0.1)), "it has its processor");
        assert!(
            !moved(Seen {
                on: Some(1),
                ..crowded
            }),
            "it is there"
        );
        assert!(
            !moved(Seen {
                may_move: false,
                ..crowded
            }),
            "it came lately"
        );
        let little = seen(1, 0.05, 0.5);
        assert!(next(&[little], &[(0, 0.0), (1, 0.1)]).is_none(), "no room");
        let much = seen(1, 0.8, 0.5);
        assert!(
            next(&[much], &[(0, 0.0), (1, 1.0)]).is_none(),
            "it runs much"
        );
    }

    /// The loads of the processors: what the guests on each would run if they had it to themselves.
    fn loads(wants: &[f64], on: &[usize], processors: usize) -> Vec<f64> {
        let mut loads = vec![0.0; processors];
        for (wants, on) in wants.iter().zip(on) {
            loads[*on] += wants;
        }
        loads
    }

    fn unevenness(loads: &[f64]) -> f64 {
        loads.iter().map(|load| load * load).sum()
    }

    /// The guests as a look sees them. Each runs for a part of a round and sleeps for the rest. Where all on a processor want
    /// more than there is, a round takes longer, by the time for which they wait.
    fn looked_at(wants: &[f64], on: &[usize], loads: &[f64]) -> Vec<Seen> {
        let each = |(vm, (wants, on)): (u32, (&f64, &usize))| {
            let speed = (1.0 / loads[*on]).min(1.0);
            seen(vm, wants * speed, 1.0 - speed)
        };
        (0..).zip(wants.iter().zip(on)).map(each).collect()
    }

    proptest! {
        /// The kernel is the worst there can be: it wakes all guests that are not placed on processor 0.
        #[test]
        fn moves_even_out_the_loads_until_no_crowded_guest_has_room_elsewhere(
            wants in prop::collection::vec(0.05..0.9, 1..9),
            processors in 1..5usize,
        ) {
            let mut on = vec![0; wants.len()];
            loop {
                let before = loads(&wants, &on, processors);
                let vms = looked_at(&wants, &on, &before);
                let idle: Vec<(usize, f64)> =
                    before.iter().map(|load| (1.0 - load).max(0.0)).enumerate().collect();
                let Some((vm, to)) = next(&vms, &idle) else {
                    let room = idle.iter().map(|(_, idle)| *idle).fold(0.0, f64::max);
                    let could = |vm: &Seen| vm.waited >= CROWDED && vm.ran <= room.min(RUNS_MUCH);
                    prop_assert!(room < ROOM || !vms.iter().any(could), "{vms:?} {idle:?}");
                    break;
                };
                on[vm.0 as usize] = to;
                let after = loads(&wants, &on, processors);
                prop_assert!(unevenness(&after) < unevenness(&before), "{before:?} {after:?}");
            }
        }
    }
}
