//! Faults that tests sow, to show that other tests find them.
//!
//! A simulator that finds nothing says little: perhaps there is nothing to find, perhaps it cannot see it. So eleven
//! faults of kinds that this program must never have are part of its code, each at the line where somebody could make
//! it by mistake. They are asleep: outside test builds [`Seeded::is_sown`] is the constant `false`, and the compiler
//! leaves nothing of them. `src/sim/seeded.rs` sows them one by one and says which search finds each, and how soon.

/// One fault.
#[cfg_attr(not(test), allow(dead_code, reason = "only tests list them"))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seeded {
    /// A page is unlocked, and the faults that wait for it are not called.
    ForgottenWakeup,
    /// A fault parks at a page that has been unlocked meanwhile.
    MissedUnlock,
    /// The lock of a page is released before the shim has confirmed its mapping.
    EarlyUnlock,
    /// The confirmation of a mapping is lost.
    LostDone,
    /// Memory is punched before frames are mapped in its place.
    EarlyPunch,
    /// A frame is released while its guest still maps it.
    EarlyRelease,
    /// A credit stays good after it was used.
    CreditSpentTwice,
    /// The guest is not told that its page is in another slot than before.
    StaleSlot,
    /// Memory that an eviction has taken for new homes is not given back when its guest dies.
    LostCharge,
    /// A page goes into the balloon and keeps its slot.
    KeptSlot,
    /// Memory that a VM was granted in its turn is not given back when its guest dies.
    LostGrant,
}

#[cfg(test)]
thread_local! {
    static SOWN: std::cell::Cell<Option<Seeded>> = const { std::cell::Cell::new(None) };
}

impl Seeded {
    /// Whether the fault is there now, on this thread.
    #[cfg(test)]
    pub(crate) fn is_sown(self) -> bool {
        SOWN.get() == Some(self)
    }

    /// Whether the fault is there: never in a build that ships.
    #[cfg(not(test))]
    #[inline]
    pub(crate) const fn is_sown(self) -> bool {
        false
    }

    /// Runs something with the fault in place. Models run on the thread that calls them, so they have the fault too.
    #[cfg(test)]
    pub(crate) fn sow<T>(self, run: impl FnOnce() -> T) -> T {
        struct Weed;
        impl Drop for Weed {
            fn drop(&mut self) {
                SOWN.set(None);
            }
        }
        SOWN.set(Some(self));
        let _weed = Weed;
        run()
    }
}
