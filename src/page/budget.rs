//! The host's memory: one number of pages, taken before a page is used and given back after.
//!
//! Every page of guest RAM, pool, compression arena and metadata is charged here before the kernel
//! is asked for it, so used memory can not pass the budget. The last pages are a *reserve*: first
//! touches may not use it, so that a break or a refill of a page that a guest already owns can go
//! on; and reclaim itself needs a page for a moment (a frame, an arena page) before it frees one.
//! Without the reserve the host could fill up so that nothing can be freed any more.

use std::sync::atomic::AtomicU64 as Mark;
use std::sync::{Arc, Condvar, Mutex as StdMutex, Weak};
use std::time::Duration;

use super::parking::Parking;
use crate::sync::{AtomicU64, Mutex, Ordering, fence};
use crate::units::Pages;

/// What pages are wanted for; it decides how deep into the reserve it may reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// A first touch: the guest has nothing there yet. Leaves the whole reserve.
    Touch,
    /// A refill or a copy-on-write break: the guest's own content. Leaves half of the reserve.
    Refill,
    /// Reclaim needs a page for a moment to free more. Leaves nothing.
    Reclaim,
}

/// The host's memory. See the module text.
///
/// The marks order nothing: who reads one late acts a little late. So they are no part of the models.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    reserve: u64,
    used: AtomicU64,
    /// The most that was used since the policy last looked.
    peak: Mark,
    /// When used memory rises over this, the policy is called at once.
    alarm_at: Mark,
    /// Reclaim goes on while more than this is used; the policy is called when it is exceeded.
    aim_at: Mark,
    /// While more than this is used, VMs above their targets wait.
    wait_at: Mark,
    /// What faults leave free, if that is more than the reserve.
    floor: Mark,
    alarm: StdMutex<bool>,
    alarmed: Condvar,
    parkings: Mutex<Vec<Weak<Parking>>>,
    starving: AtomicU64,
}

impl Budget {
    /// A budget of `total` pages of which `reserve` are kept for what cannot wait.
    #[must_use]
    pub fn new(total: Pages, reserve: Pages) -> Self {
        Self {
            total: total.0,
            reserve: reserve.0.min(total.0),
            used: AtomicU64::new(0),
            peak: Mark::new(0),
            alarm_at: Mark::new(u64::MAX),
            aim_at: Mark::new(u64::MAX),
            wait_at: Mark::new(0),
            floor: Mark::new(0),
            alarm: StdMutex::new(false),
            alarmed: Condvar::new(),
            parkings: Mutex::default(),
            starving: AtomicU64::new(0),
        }
    }

    /// The whole budget.
    #[must_use]
    pub const fn total(&self) -> Pages {
        Pages(self.total)
    }

    /// The pages that first touches leave alone.
    #[must_use]
    pub const fn reserve(&self) -> Pages {
        Pages(self.reserve)
    }

    /// What is charged now.
    #[must_use]
    pub fn used(&self) -> Pages {
        Pages(self.used.load(Ordering::Relaxed))
    }

    /// What is left, reserve included.
    #[must_use]
    pub fn free(&self) -> Pages {
        Pages(self.total).saturating_sub(self.used())
    }

    /// What there is for first touches.
    #[must_use]
    pub fn spare(&self) -> Pages {
        self.free().saturating_sub(Pages(self.kept(Urgency::Touch)))
    }

    fn kept(&self, urgency: Urgency) -> u64 {
        let floor = self.floor.load(Ordering::Relaxed);
        match urgency {
            Urgency::Touch => self.reserve.max(floor),
            Urgency::Refill => (self.reserve / 2).max(floor),
            Urgency::Reclaim => 0,
        }
    }

    /// Takes `count` pages, or none. `false`: not now; see [`Budget::starve`].
    #[must_use]
    pub fn take(&self, count: u64, urgency: Urgency) -> bool {
        let limit = self.total - self.kept(urgency);
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let Some(next) = used.checked_add(count).filter(|next| *next <= limit) else {
                self.ring_alarm();
                return false;
            };
            // Acquire pairs with the Release of `give`: the kernel has the pages back before they are used again.
            match self
                .used
                .compare_exchange(used, next, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => {
                    self.note_taken(used, next);
                    return true;
                }
                Err(now) => used = now,
            }
        }
    }

    fn note_taken(&self, before: u64, now: u64) {
        // Most takes are below the peak, and a word that many threads only read costs nothing.
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
        let passed = |at: &Mark| {
            let at = at.load(Ordering::Relaxed);
            before <= at && now > at
        };
        if passed(&self.alarm_at) || passed(&self.aim_at) {
            self.ring_alarm();
        }
    }

    /// The least that was free since this was last asked.
    #[must_use]
    pub fn take_least_free(&self) -> Pages {
        let used = self.used.load(Ordering::Relaxed);
        let peak = self.peak.swap(used, Ordering::Relaxed).max(used);
        Pages(self.total).saturating_sub(Pages(peak))
    }

    /// Gives pages back and calls the VMs whose faults wait for some.
    pub fn give(&self, count: u64) {
        if count == 0 {
            return;
        }
        // Release: who takes these pages does so after what was done to free them.
        let before = self.used.fetch_sub(count, Ordering::Release);
        assert!(
            before >= count,
            "gave back {count} pages of {before} that were taken"
        );
        // SeqCst: between what came free and this load. Pairs with the fence of `Parking::set_starved`, behind
        // which a VM that starves tries once more.
        fence(Ordering::SeqCst);
        if self.starving.load(Ordering::Relaxed) > 0 {
            self.call_starved();
        }
    }

    /// Makes `parking` one of those that are called when memory comes free.
    pub fn register(&self, parking: &Arc<Parking>) {
        let mut parkings = self.parkings.lock();
        parkings.retain(|other| other.strong_count() > 0);
        parkings.push(Arc::downgrade(parking));
    }

    /// Says that faults of this VM wait for memory, or no longer do. After saying so the VM must
    /// try once more: memory may have come free in between.
    pub fn starve(&self, parking: &Parking, starved: bool) {
        if parking.says_starved() == starved {
            return;
        }
        if starved {
            self.starving.fetch_add(1, Ordering::Relaxed);
        } else {
            self.starving.fetch_sub(1, Ordering::Relaxed);
        }
        // Last: its fence stands between both and the next try.
        parking.set_starved(starved);
    }

    /// How many VMs have faults that wait for memory.
    #[must_use]
    pub fn starving(&self) -> u64 {
        self.starving.load(Ordering::Relaxed)
    }

    /// Calls the VMs whose faults wait for memory.
    pub fn call_starved(&self) {
        for parking in self.parkings.lock().iter().filter_map(Weak::upgrade) {
            if parking.is_starved() {
                parking.ring();
            }
        }
    }

    /// Sets the amounts of free memory, in pages: below `alarm` the policy is called at once ([`Budget::wait_alarm`]
    /// returns), below `aim` too, and reclaim goes on; below `wait` VMs above their targets wait.
    pub fn set_marks(&self, alarm: Pages, aim: Pages, wait: Pages) {
        let total = self.total();
        for (mark, free) in [
            (&self.alarm_at, alarm),
            (&self.aim_at, aim),
            (&self.wait_at, wait),
        ] {
            mark.store(total.saturating_sub(free).0, Ordering::Relaxed);
        }
    }

    /// Sets the pages that faults leave free, beside the reserve. Whether there is more for them than before.
    pub fn set_floor(&self, floor: Pages) -> bool {
        let floor = floor.min(self.total()).0;
        self.floor.swap(floor, Ordering::Relaxed) > floor
    }

    /// Whether less is free than reclaim aims at.
    #[must_use]
    pub fn is_below_aim(&self) -> bool {
        self.used().0 > self.aim_at.load(Ordering::Relaxed)
    }

    /// Whether so little is free that VMs above their targets wait; always so until somebody has set the marks.
    #[must_use]
    pub fn is_scarce(&self) -> bool {
        let wait_at = self.wait_at.load(Ordering::Relaxed);
        wait_at == 0 || self.used().0 > wait_at
    }

    /// Makes [`Budget::wait_alarm`] return.
    pub fn ring_alarm(&self) {
        if let Ok(mut alarm) = self.alarm.lock()
            && !*alarm
        {
            *alarm = true;
            self.alarmed.notify_all();
        }
    }

    /// Waits for the alarm, at most `timeout`.
    pub fn wait_alarm(&self, timeout: Duration) {
        let Ok(alarm) = self.alarm.lock() else { return };
        if let Ok((mut alarm, _)) = self
            .alarmed
            .wait_timeout_while(alarm, timeout, |rung| !*rung)
        {
            *alarm = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync;

    #[test]
    fn reserve_is_left_by_urgency() {
        let budget = Budget::new(Pages(100), Pages(20));
        assert!(budget.take(80, Urgency::Touch));
        assert!(!budget.take(1, Urgency::Touch));
        assert!(budget.take(10, Urgency::Refill));
        assert!(!budget.take(1, Urgency::Refill));
        assert!(budget.take(10, Urgency::Reclaim));
        assert!(!budget.take(1, Urgency::Reclaim));
        budget.give(100);
        assert_eq!(budget.free(), Pages(100));
    }

    #[test]
    fn floor_is_left_by_faults_and_not_by_reclaim() {
        let budget = Budget::new(Pages(100), Pages(20));
        assert!(!budget.set_floor(Pages(30)), "there is less for them");
        assert_eq!(budget.spare(), Pages(70));
        assert!(budget.take(70, Urgency::Touch));
        assert!(!budget.take(1, Urgency::Refill));
        assert!(budget.take(25, Urgency::Reclaim));
        budget.give(25);
        // The reserve stays.
        assert!(budget.set_floor(Pages(0)), "there is more");
        assert_eq!(budget.spare(), Pages(10));
        assert!(budget.take(10, Urgency::Touch));
        assert!(!budget.take(1, Urgency::Touch));
    }

    #[test]
    fn alarm_rings_when_the_level_is_passed() {
        let budget = Budget::new(Pages(100), Pages(0));
        budget.set_marks(Pages(50), Pages(0), Pages(0));
        assert!(budget.take(50, Urgency::Touch));
        assert!(!*budget.alarm.lock().unwrap());
        assert!(budget.take(1, Urgency::Touch));
        assert!(*budget.alarm.lock().unwrap());
        budget.wait_alarm(Duration::ZERO);
        assert!(!*budget.alarm.lock().unwrap());
    }

    #[test]
    fn marks_say_whether_reclaim_goes_on_and_who_waits() {
        let budget = Budget::new(Pages(100), Pages(0));
        assert!(!budget.is_below_aim());
        budget.set_marks(Pages(0), Pages(30), Pages(10));
        assert!(budget.take(70, Urgency::Touch));
        assert!(!budget.is_below_aim() && !*budget.alarm.lock().unwrap());
        assert!(budget.take(1, Urgency::Touch));
        assert!(budget.is_below_aim() && !budget.is_scarce());
        assert!(*budget.alarm.lock().unwrap(), "the policy is called");
        assert!(budget.take(20, Urgency::Touch));
        assert!(budget.is_scarce());
        budget.give(41);
        assert_eq!(budget.take_least_free(), Pages(9));
        assert_eq!(budget.take_least_free(), Pages(50));
    }

    #[test]
    fn budget_is_never_passed_in_any_schedule() {
        sync::model(500, || {
            let budget = Arc::new(Budget::new(Pages(3), Pages(0)));
            let tasks: Vec<_> = (0..3)
                .map(|_| {
                    let budget = Arc::clone(&budget);
                    shuttle::thread::spawn(move || {
                        if budget.take(2, Urgency::Touch) {
                            assert!(budget.used() <= budget.total());
                            budget.give(2);
                        }
                    })
                })
                .collect();
            tasks
                .into_iter()
                .for_each(|task| task.join().expect("the task ends"));
            assert_eq!(budget.used(), Pages(0));
        });
    }
}
