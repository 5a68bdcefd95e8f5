//! The host's memory: one count of pages. A page is taken from it before it is used and given back afterwards.
//!
//! Every page of guest RAM, pool, compression arena and metadata is charged here before the kernel
//! is asked for it, so used memory cannot exceed the budget. The last pages are a *reserve*. First
//! touches may not use the reserve, so that a break or a refill of a page that a guest already owns
//! can go on. Reclaim itself needs a page for a moment (a frame, an arena page) before it frees one:
//! without the reserve the host could become so full that nothing could be freed any more.
//!
//! Taking a page is one atomic operation. Faults for which no page is left wait in a [queue](super::queue).

use std::sync::atomic::AtomicU64 as Mark;
use std::sync::{Arc, Condvar, Mutex as StdMutex};
use std::time::Duration;

use super::parking::{Parking, Waits};
use super::queue::{Need, Queue};
use crate::seeded::Seeded;
use crate::sync::{AtomicU64, Mutex, Ordering, fence};
use crate::units::Pages;

/// What pages are wanted for. It decides how much of the reserve may be used for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// A first touch: the guest has nothing there yet. It leaves the whole reserve.
    Touch,
    /// A refill or a copy-on-write break: the guest's own content. It leaves half of the reserve.
    Refill,
    /// Reclaim, which needs a page for a moment to free more. It leaves nothing.
    Reclaim,
}

/// The host's memory. See the module text.
///
/// No memory ordering depends on the marks: a thread that reads one late acts a little late. So the models leave them
/// out.
#[derive(Debug)]
pub struct Budget {
    total: Mark,
    reserve: Mark,
    used: AtomicU64,
    /// The most pages that were used at once since the last plan.
    peak: Mark,
    /// When used memory rises above this, the policy is called at once.
    alarm_at: Mark,
    /// Reclaim goes on while more than this is used. The policy is called when used memory rises above it.
    aim_at: Mark,
    /// While more than this is used, VMs above their targets wait.
    wait_at: Mark,
    /// What faults leave free, where that is more than the part of the reserve that they must leave.
    floor: Mark,
    alarm: StdMutex<bool>,
    alarmed: Condvar,
    queue: Mutex<Queue>,
    /// Copies of what the queue says, to be read without its lock: how many VMs wait, and for how many pages.
    starving: AtomicU64,
    touches_awaited: AtomicU64,
    refills_awaited: AtomicU64,
}

impl Budget {
    /// A budget of `total` pages, of which `reserve` are kept for what cannot wait.
    #[must_use]
    pub fn new(total: Pages, reserve: Pages) -> Self {
        Self {
            total: Mark::new(total.0),
            reserve: Mark::new(reserve.0.min(total.0)),
            used: AtomicU64::new(0),
            peak: Mark::new(0),
            alarm_at: Mark::new(u64::MAX),
            aim_at: Mark::new(u64::MAX),
            wait_at: Mark::new(0),
            floor: Mark::new(0),
            alarm: StdMutex::new(false),
            alarmed: Condvar::new(),
            queue: Mutex::default(),
            starving: AtomicU64::new(0),
            touches_awaited: AtomicU64::new(0),
            refills_awaited: AtomicU64::new(0),
        }
    }

    /// The whole budget.
    #[must_use]
    pub fn total(&self) -> Pages {
        Pages(self.total.load(Ordering::Relaxed))
    }

    /// Makes the budget larger or smaller. If more is used than it then has, nothing is free until that much was given
    /// back. The marks stay where they are, as amounts of used memory, until they are set again.
    pub fn set_total(&self, total: Pages, reserve: Pages) {
        self.reserve
            .store(reserve.0.min(total.0), Ordering::Relaxed);
        self.total.store(total.0, Ordering::Relaxed);
        self.hand_out();
    }

    /// The pages that first touches leave alone.
    #[must_use]
    pub fn reserve(&self) -> Pages {
        Pages(self.reserve.load(Ordering::Relaxed))
    }

    /// What is charged now.
    #[must_use]
    pub fn used(&self) -> Pages {
        Pages(self.used.load(Ordering::Relaxed))
    }

    /// What is left, reserve included.
    #[must_use]
    pub fn free(&self) -> Pages {
        self.total().saturating_sub(self.used())
    }

    /// How many pages first touches may take now.
    #[must_use]
    pub fn spare(&self) -> Pages {
        self.free().saturating_sub(Pages(self.kept(Urgency::Touch)))
    }

    fn kept(&self, urgency: Urgency) -> u64 {
        let floor = self.floor.load(Ordering::Relaxed);
        match urgency {
            Urgency::Touch => self.reserve().0.max(floor),
            Urgency::Refill => (self.reserve().0 / 2).max(floor),
            Urgency::Reclaim => 0,
        }
    }

    /// Takes `count` pages or none, even if others wait for some ([`Budget::is_awaited`]). `false`: there are not
    /// enough now; see [`Budget::wait`].
    #[must_use]
    pub fn take(&self, count: u64, urgency: Urgency) -> bool {
        let taken = self.take_some(count, count, urgency);
        if taken.is_none() {
            self.ring_alarm();
        }
        taken.is_some()
    }

    /// Takes what is there, from `least` to `most` pages, and returns how many; `None` if there are fewer than `least`.
    fn take_some(&self, least: u64, most: u64, urgency: Urgency) -> Option<u64> {
        let limit = self.total().0.saturating_sub(self.kept(urgency));
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let count = limit.saturating_sub(used).min(most);
            if count < least {
                return None;
            }
            // Acquire pairs with the Release of `give`: the kernel has the pages back before they are used again.
            match self.used.compare_exchange(
                used,
                used + count,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    self.note_taken(used, used + count);
                    return Some(count);
                }
                Err(now) => used = now,
            }
        }
    }

    fn note_taken(&self, before: u64, now: u64) {
        // Most takes stay below the peak, and a word that is only read stays in the cache of every processor.
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

    /// The fewest pages that were free at once since the last call.
    #[must_use]
    pub fn take_least_free(&self) -> Pages {
        let used = self.used.load(Ordering::Relaxed);
        let peak = self.peak.swap(used, Ordering::Relaxed).max(used);
        self.total().saturating_sub(Pages(peak))
    }

    /// Gives pages back. VMs whose faults wait for pages are the first to get them.
    pub fn give(&self, count: u64) {
        if count == 0 {
            return;
        }
        // Release pairs with the Acquire of `take_some`: whoever takes these pages does so after they were freed.
        let before = self.used.fetch_sub(count, Ordering::Release);
        assert!(
            before >= count,
            "gave back {count} pages of {before} that were taken"
        );
        // SeqCst: between the pages that came free and this load. Pairs with the fence of `Parking::set_waits`, after
        // which a VM that waits looks once more for free pages: either it sees these, or we see that it waits.
        fence(Ordering::SeqCst);
        if self.starving.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.hand_out();
        let wait_at = self.wait_at.load(Ordering::Relaxed);
        if before > wait_at && before - count <= wait_at {
            self.wake_barred();
        }
    }

    /// Says that faults of a VM wait and how many pages they need. The VM gets them in its turn: the bell of
    /// `parking` rings when there is something to [collect](Self::collect).
    ///
    /// `barred`: the VM also has faults that an order of the policy keeps from having memory; their pages are not
    /// part of `need`. After such a call the caller must check the order once more, because it may have changed in
    /// between.
    pub fn wait(&self, parking: &Arc<Parking>, need: Need, barred: bool, is_promised: bool) {
        let mut queue = self.queue.lock();
        queue.want(parking, need, is_promised);
        self.publish(&queue);
        // After everything else is stored: the fence in it separates those stores from the look for free pages.
        parking.set_waits(if barred { Waits::Barred } else { Waits::Queued });
        let called = self.hand_out_to(&mut queue);
        let is_short = queue.wants().pages() > 0;
        drop(queue);
        called.iter().for_each(|parking| parking.ring());
        if is_short {
            self.ring_alarm();
        }
    }

    /// Takes what has been granted to a VM that waits.
    #[must_use]
    pub fn collect(&self, parking: &Parking) -> Need {
        self.queue.lock().collect(parking)
    }

    /// Faults of a VM no longer wait. Pages that it was granted and has not collected are given back.
    pub fn leave(&self, parking: &Parking) {
        if parking.waits() == Waits::Not {
            return;
        }
        let mut queue = self.queue.lock();
        let granted = queue.leave(parking);
        self.publish(&queue);
        parking.set_waits(Waits::Not);
        drop(queue);
        if !Seeded::LostGrant.is_sown() {
            self.give(granted.pages());
        }
    }

    /// Whether some VM that waits could use the page that the caller wants to take now. If so, a caller that can wait
    /// goes to the end of the queue.
    #[must_use]
    pub fn is_awaited(&self, urgency: Urgency) -> bool {
        let touches = || self.touches_awaited.load(Ordering::Relaxed) > 0;
        let refills = || self.refills_awaited.load(Ordering::Relaxed) > 0;
        match urgency {
            Urgency::Touch => touches() || refills(),
            Urgency::Refill => {
                let is_same = || self.kept(Urgency::Touch) == self.kept(Urgency::Refill);
                refills() || (touches() && is_same())
            }
            Urgency::Reclaim => false,
        }
    }

    /// How many VMs have faults that wait for memory.
    #[must_use]
    pub fn starving(&self) -> u64 {
        self.starving.load(Ordering::Relaxed)
    }

    /// Pages that are granted and not collected. They are charged.
    #[cfg(test)]
    pub(crate) fn granted(&self) -> Pages {
        Pages(self.queue.lock().granted().pages())
    }

    /// Hands out free pages to the VMs that wait, in order.
    fn hand_out(&self) {
        let mut queue = self.queue.lock();
        let called = self.hand_out_to(&mut queue);
        drop(queue);
        // After the lock is dropped: the thread that is called needs it.
        called.iter().for_each(|parking| parking.ring());
    }

    fn hand_out_to(&self, queue: &mut Queue) -> Vec<Arc<Parking>> {
        let called = queue.hand_out(|most, urgency| match most {
            0 => 0,
            most => self.take_some(1, most, urgency).unwrap_or(0),
        });
        self.publish(queue);
        called
    }

    fn publish(&self, queue: &Queue) {
        let Need { refill, touch } = queue.wants();
        self.refills_awaited.store(refill, Ordering::Relaxed);
        self.touches_awaited.store(touch, Ordering::Relaxed);
        self.starving.store(queue.len() as u64, Ordering::Relaxed);
    }

    /// Calls the VMs that have barred faults.
    fn wake_barred(&self) {
        for parking in self.queue.lock().parkings() {
            if parking.is_barred() {
                parking.ring();
            }
        }
    }

    /// Sets the marks, as amounts of free memory. When it falls below `alarm` or `aim`, the policy is called at once
    /// ([`Budget::wait_alarm`] returns). While it is below `aim`, reclaim goes on; while it is below `wait`, VMs
    /// above their targets wait.
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

    /// Sets the pages that faults leave free where that is more than the reserve. If it falls, the VMs that wait get
    /// what they may have now.
    pub fn set_floor(&self, floor: Pages) {
        let floor = floor.min(self.total()).0;
        if self.floor.swap(floor, Ordering::Relaxed) > floor {
            self.hand_out();
        }
    }

    /// Whether less is free than reclaim aims at.
    #[must_use]
    pub fn is_below_aim(&self) -> bool {
        self.used().0 > self.aim_at.load(Ordering::Relaxed)
    }

    /// How much more is free than reclaim aims at.
    #[must_use]
    pub fn beyond_aim(&self) -> Pages {
        let most = Pages(self.aim_at.load(Ordering::Relaxed)).min(self.total());
        most.saturating_sub(self.used())
    }

    /// Whether so little is free that VMs above their targets wait. Always true until the marks have been set.
    #[must_use]
    pub fn is_scarce(&self) -> bool {
        self.is_scarce_beside(Pages(0))
    }

    /// [`is_scarce`](Self::is_scarce), as if `pages` of the used pages were free.
    #[must_use]
    pub fn is_scarce_beside(&self, pages: Pages) -> bool {
        let wait_at = self.wait_at.load(Ordering::Relaxed);
        wait_at == 0 || self.used().saturating_sub(pages).0 > wait_at
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

    /// Whether the alarm has rung since it was last asked or waited for.
    #[must_use]
    pub fn take_alarm(&self) -> bool {
        self.alarm
            .lock()
            .is_ok_and(|mut rung| std::mem::take(&mut *rung))
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
    use memvisor_wire::wait_readable;
    use proptest::prelude::*;

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
    fn budget_that_shrinks_below_what_is_used_hands_out_nothing_until_it_is_given_back() {
        let budget = Budget::new(Pages(100), Pages(20));
        assert!(budget.take(80, Urgency::Touch));
        budget.set_total(Pages(50), Pages(10));
        assert_eq!((budget.free(), budget.spare()), (Pages(0), Pages(0)));
        assert_eq!(budget.take_least_free(), Pages(0));
        assert!(!budget.take(1, Urgency::Reclaim));
        budget.give(35);
        assert_eq!(budget.free(), Pages(5));
        assert!(!budget.take(1, Urgency::Refill));
        assert!(budget.take(1, Urgency::Reclaim));
        budget.set_total(Pages(100), Pages(20));
        assert!(budget.take(34, Urgency::Touch));
        assert!(!budget.take(1, Urgency::Touch));
        budget.give(80);
    }

    #[test]
    fn vm_that_waits_gets_what_a_larger_budget_has() {
        let budget = Budget::new(Pages(10), Pages(0));
        assert!(budget.take(10, Urgency::Touch));
        let parking = Arc::new(Parking::new().expect("an eventfd"));
        let need = Need {
            touch: 3,
            refill: 0,
        };
        budget.wait(&parking, need, false, false);
        assert_eq!(budget.granted(), Pages(0));
        budget.set_total(Pages(12), Pages(0));
        assert_eq!(budget.granted(), Pages(2));
        budget.leave(&parking);
        budget.give(10);
    }

    #[test]
    fn floor_is_left_by_faults_and_not_by_reclaim() {
        let budget = Budget::new(Pages(100), Pages(20));
        budget.set_floor(Pages(30));
        assert_eq!(budget.spare(), Pages(70));
        assert!(budget.take(70, Urgency::Touch));
        assert!(!budget.take(1, Urgency::Refill));
        assert!(budget.take(25, Urgency::Reclaim));
        budget.give(25);
        // The reserve stays.
        budget.set_floor(Pages(0));
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

    fn touches(count: u64) -> Need {
        Need {
            touch: count,
            refill: 0,
        }
    }

    fn parking() -> Arc<Parking> {
        Arc::new(Parking::new().expect("an eventfd"))
    }

    /// Whether the bell rang since the last call.
    fn rang(parking: &Parking) -> bool {
        let rings = wait_readable([parking.bell()], Some(Duration::ZERO))
            .expect("an eventfd can be polled");
        parking.answer();
        rings == [true]
    }

    #[test]
    fn refills_do_not_wait_behind_touches_that_must_leave_more() {
        let budget = Budget::new(Pages(10), Pages(4));
        assert!(budget.take(6, Urgency::Touch));
        budget.wait(&parking(), touches(1), false, false);
        assert!(budget.is_awaited(Urgency::Touch));
        assert!(!budget.is_awaited(Urgency::Refill));
        budget.set_floor(Pages(4));
        assert!(budget.is_awaited(Urgency::Refill), "both leave as much");
        assert!(!budget.is_awaited(Urgency::Reclaim));
    }

    #[test]
    fn place_is_good_for_what_was_wanted_when_it_was_taken() {
        let budget = Budget::new(Pages(10), Pages(0));
        assert!(budget.take(10, Urgency::Touch));
        let [first, second] = [parking(), parking()];
        budget.wait(&first, touches(2), false, false);
        budget.wait(&second, touches(3), false, false);
        budget.wait(&first, touches(9), false, false);
        budget.give(4);
        assert!(rang(&first) && rang(&second));
        assert_eq!(budget.collect(&first), touches(2));
        assert_eq!(budget.collect(&second), touches(2));
        budget.wait(&first, touches(7), false, false);
        budget.give(1);
        assert!(!rang(&first) && rang(&second));
        assert_eq!(budget.collect(&second), touches(1));
        budget.leave(&second);
        budget.give(1);
        assert_eq!(budget.collect(&first), touches(1));
        budget.leave(&first);
        assert_eq!((budget.starving(), budget.free()), (0, Pages(0)));
    }

    #[derive(Clone, Debug)]
    enum Move {
        Take(u64, bool),
        Give(u64),
        Wait(usize, Need, bool, bool),
        Collect(usize),
        Leave(usize),
        Floor(u64),
    }

    const VMS: usize = 4;

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let need = || (0_u64..6, 0_u64..6).prop_map(|(refill, touch)| Need { refill, touch });
        let one = prop_oneof![
            (0_u64..8, any::<bool>()).prop_map(|(count, touch)| Move::Take(count, touch)),
            (0_u64..8).prop_map(Move::Give),
            (0..VMS, need(), any::<bool>(), any::<bool>())
                .prop_map(|(vm, need, barred, first)| Move::Wait(vm, need, barred, first)),
            (0..VMS).prop_map(Move::Collect),
            (0..VMS).prop_map(Move::Leave),
            (0_u64..40).prop_map(Move::Floor),
        ];
        proptest::collection::vec(one, 0..80)
    }

    proptest! {
        /// Every used page is in somebody's hands, nobody waits while a page is free, and every VM with a grant was
        /// called.
        #[test]
        fn every_page_is_in_one_hand_and_none_lies_idle_while_somebody_waits(moves in moves()) {
            let budget = Budget::new(Pages(40), Pages(8));
            let parkings: Vec<_> = (0..VMS).map(|_| parking()).collect();
            let mut held = 0;
            let mut called = [false; VMS];
            for step in moves {
                match step {
                    Move::Take(count, is_touch) => {
                        let urgency = if is_touch { Urgency::Touch } else { Urgency::Refill };
                        held += if budget.take(count, urgency) { count } else { 0 };
                    }
                    Move::Give(count) => {
                        budget.give(count.min(held));
                        held -= count.min(held);
                    }
                    Move::Wait(vm, need, barred, first) => {
                        budget.wait(&parkings[vm], need, barred, first);
                    }
                    Move::Collect(vm) => {
                        let granted = budget.collect(&parkings[vm]).pages();
                        prop_assert!(granted == 0 || rang(&parkings[vm]) || called[vm]);
                        called[vm] = false;
                        held += granted;
                    }
                    Move::Leave(vm) => budget.leave(&parkings[vm]),
                    Move::Floor(pages) => budget.set_floor(Pages(pages)),
                }
                for (parking, called) in parkings.iter().zip(&mut called) {
                    *called |= rang(parking);
                }
                prop_assert_eq!(budget.used().0, held + budget.granted().0);
                let refills = budget.refills_awaited.load(Ordering::Relaxed);
                let touches = budget.touches_awaited.load(Ordering::Relaxed);
                let free = |urgency| budget.total().0 - budget.kept(urgency) > budget.used().0;
                prop_assert!(refills == 0 || !free(Urgency::Refill));
                prop_assert!(touches == 0 || !free(Urgency::Touch));
            }
            parkings.iter().for_each(|parking| budget.leave(parking));
            budget.give(held);
            prop_assert_eq!((budget.used(), budget.starving()), (Pages(0), 0));
        }
    }

    /// Each task takes a page if nobody waits before it, or waits for its turn. One leaves without having collected.
    #[test]
    fn everybody_gets_a_page_in_any_schedule() {
        sync::model(2000, || {
            let budget = Arc::new(Budget::new(Pages(1), Pages(0)));
            let tasks: Vec<_> = (0..4)
                .map(|number| {
                    let budget = Arc::clone(&budget);
                    shuttle::thread::spawn(move || visit(&budget, number == 3))
                })
                .collect();
            tasks
                .into_iter()
                .for_each(|task| task.join().expect("the task ends"));
            assert_eq!((budget.used(), budget.starving()), (Pages(0), 0));
        });
    }

    fn visit(budget: &Budget, is_impatient: bool) {
        let parking = parking();
        let at_once = !budget.is_awaited(Urgency::Touch) && budget.take(1, Urgency::Touch);
        if !at_once {
            budget.wait(&parking, touches(1), false, false);
            while !is_impatient && !rang(&parking) {
                shuttle::thread::yield_now();
            }
            let granted = if is_impatient {
                Need::default()
            } else {
                budget.collect(&parking)
            };
            assert_eq!(
                granted.pages(),
                u64::from(!is_impatient),
                "called for nothing"
            );
            budget.leave(&parking);
        }
        if at_once || !is_impatient {
            assert_eq!(budget.used(), Pages(1));
            budget.give(1);
        }
    }
}
