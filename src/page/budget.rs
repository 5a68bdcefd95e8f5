//! The host's memory: one number of pages, taken before a page is used and given back after.
//!
//! Every page of guest RAM, pool, compression arena and metadata is charged here before the kernel
//! is asked for it, so used memory can not pass the budget. The last pages are a *reserve*: first
//! touches may not use it, so that a break or a refill of a page that a guest already owns can go
//! on; and reclaim itself needs a page for a moment (a frame, an arena page) before it frees one.
//! Without the reserve the host could fill up so that nothing can be freed any more.

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
#[derive(Debug)]
pub struct Budget {
    total: u64,
    reserve: u64,
    used: AtomicU64,
    /// When used memory rises over this, the policy is called at once.
    alarm_at: AtomicU64,
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
            alarm_at: AtomicU64::new(u64::MAX),
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

    /// Takes `count` pages, or none. `false`: not now; see [`Budget::starve`].
    #[must_use]
    pub fn take(&self, count: u64, urgency: Urgency) -> bool {
        let kept = match urgency {
            Urgency::Touch => self.reserve,
            Urgency::Refill => self.reserve / 2,
            Urgency::Reclaim => 0,
        };
        let limit = self.total - kept;
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
                    let alarm_at = self.alarm_at.load(Ordering::Relaxed);
                    if used <= alarm_at && next > alarm_at {
                        self.ring_alarm();
                    }
                    return true;
                }
                Err(now) => used = now,
            }
        }
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

    fn call_starved(&self) {
        for parking in self.parkings.lock().iter().filter_map(Weak::upgrade) {
            if parking.is_starved() {
                parking.ring();
            }
        }
    }

    /// Sets the level of used memory above which [`Budget::wait_alarm`] returns at once.
    pub fn set_alarm(&self, used: Pages) {
        self.alarm_at.store(used.0, Ordering::Relaxed);
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
    fn alarm_rings_when_the_level_is_passed() {
        let budget = Budget::new(Pages(100), Pages(0));
        budget.set_alarm(Pages(50));
        assert!(budget.take(50, Urgency::Touch));
        assert!(!*budget.alarm.lock().unwrap());
        assert!(budget.take(1, Urgency::Touch));
        assert!(*budget.alarm.lock().unwrap());
        budget.wait_alarm(Duration::ZERO);
        assert!(!*budget.alarm.lock().unwrap());
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
