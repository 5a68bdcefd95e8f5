//! The only door to atomics and locks for protocol code.
//!
//! Whether a protocol of two atomics and a lock is right depends on the order in which threads meet, and a
//! test on real threads sees few of those orders. So the types here are those of [`std::sync`] with
//! one addition: in test builds each operation first calls [`preempt`], and inside `model` that
//! hands over to one of shuttle's schedulers, which may let any other task go first. Outside a model,
//! and in every other build, `preempt` does nothing and the types cost what those of `std` cost.
//!
//! Shuttle's tasks are coroutines on one OS thread. Waiting for a lock of `std` would block all of them
//! for ever, so inside a model [`Mutex::lock`] spins and yields. A deadlock shows as shuttle's "exceeded
//! max_steps".
//!
//! Shuttle is sequentially consistent: its schedulers interleave operations and do not delay stores. Whether
//! an ordering is enough is checked by loom, whose types are used here under `cfg(loom)`. The package `tests/models`
//! sets that for itself and builds this file and those of the protocols once more. Of `SeqCst`, loom models only
//! fences, so the code uses it only there. Each use of an ordering says why the ordering is enough.

use std::io;

#[cfg(loom)]
use loom::sync::{self, atomic};
#[cfg(not(loom))]
use std::sync::{self, atomic};

pub(crate) use atomic::{Ordering, fence};
pub(crate) use sync::MutexGuard;

#[cfg(not(loom))]
use zerocopy::FromZeros;

/// A table of `count` zeroes. It costs memory only where it is touched. Tables grow with budgets and guests, so an
/// allocation that fails is an error for the one that needs the table, and does not abort the daemon.
///
/// # Errors
/// [`io::ErrorKind::OutOfMemory`], naming the size, when there is no address space for the table.
#[cfg(not(loom))]
pub(crate) fn zeroes<T: FromZeros>(count: usize) -> io::Result<Box<[T]>> {
    <[T]>::new_box_zeroed_with_elems(count).map_err(|_| {
        let kib = count.saturating_mul(size_of::<T>()).div_ceil(1024);
        let text = format!("no memory for a table of {kib} KiB");
        io::Error::new(io::ErrorKind::OutOfMemory, text)
    })
}

/// A table of `count` zeroes.
#[cfg(loom)]
pub(crate) fn zeroes<T: Default>(count: usize) -> io::Result<Box<[T]>> {
    Ok(std::iter::repeat_with(T::default).take(count).collect())
}

/// Operations of the type inside, each behind a point of preemption.
macro_rules! forward {
    ($($operation:ident($($argument:ident: $type:ty),+) -> $result:ty;)+) => {$(
        #[inline]
        pub(crate) fn $operation(&self, $($argument: $type),+) -> $result {
            preempt();
            self.0.$operation($($argument),+)
        }
    )+};
}

macro_rules! atomic {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        #[cfg_attr(not(loom), derive(FromZeros))]
        pub(crate) struct $name(atomic::$name);

        #[allow(dead_code, reason = "every width has the whole set, whoever uses which part of it")]
        impl $name {
            #[cfg(not(loom))]
            pub(crate) const fn new(value: $int) -> Self {
                Self(atomic::$name::new(value))
            }

            #[cfg(loom)]
            pub(crate) fn new(value: $int) -> Self {
                Self(atomic::$name::new(value))
            }

            forward! {
                load(order: Ordering) -> $int;
                store(value: $int, order: Ordering) -> ();
                swap(value: $int, order: Ordering) -> $int;
                fetch_add(value: $int, order: Ordering) -> $int;
                fetch_sub(value: $int, order: Ordering) -> $int;
                fetch_or(value: $int, order: Ordering) -> $int;
                fetch_and(value: $int, order: Ordering) -> $int;
                compare_exchange(current: $int, new: $int, success: Ordering, failure: Ordering) -> Result<$int, $int>;
                compare_exchange_weak(current: $int, new: $int, success: Ordering, failure: Ordering) -> Result<$int, $int>;
            }
        }
    };
}

atomic!(
    /// [`atomic::AtomicU64`] with a preemption point before each operation in a model.
    AtomicU64,
    u64
);
atomic!(
    /// [`atomic::AtomicU32`] with a preemption point before each operation in a model.
    AtomicU32,
    u32
);
atomic!(
    /// [`atomic::AtomicU8`] with a preemption point before each operation in a model.
    AtomicU8,
    u8
);

/// [`sync::Mutex`] without poisoning results: a thread that panicked while it held the lock may have left
/// the state half changed, so whoever locks it next panics too instead of going on.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    #[cfg(loom)]
    pub(crate) fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    /// Waits for the lock.
    ///
    /// # Panics
    /// When a holder panicked.
    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        preempt();
        #[cfg(test)]
        if model::is_running() {
            return self.spin();
        }
        self.0.lock().expect("no holder of this lock panicked")
    }

    #[cfg(test)]
    fn spin(&self) -> MutexGuard<'_, T> {
        loop {
            match self.0.try_lock() {
                Ok(guard) => return guard,
                Err(sync::TryLockError::WouldBlock) => shuttle::thread::yield_now(),
                Err(sync::TryLockError::Poisoned(_)) => panic!("a holder of this lock panicked"),
            }
        }
    }
}

/// A point at which a model may switch to another task; does nothing elsewhere.
#[inline]
fn preempt() {
    #[cfg(test)]
    model::preempt();
}

#[cfg(test)]
pub(crate) use model::model;

#[cfg(test)]
mod model {
    use std::cell::Cell;
    use std::env;
    use std::sync::Arc;

    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    use shuttle::sync::atomic::{AtomicBool, Ordering};
    use shuttle::{Config, Runner};

    thread_local! {
        /// Whether this OS thread is inside [`model`].
        static RUNNING: Cell<bool> = const { Cell::new(false) };
    }

    /// A number in this variable replaces the iterations of every model: `MEMVISOR_MODEL_ITERATIONS=1000000`.
    const ITERATIONS: &str = "MEMVISOR_MODEL_ITERATIONS";

    /// How often the second scheduler of a model interrupts a task for long: to find a use after free takes
    /// one interruption at the use and one before the reuse.
    const PREEMPTIONS: usize = 3;

    /// Bytes of a task's stack: the code keeps copies of pages on it, and shuttle's default of 60 KiB
    /// is too small for several of them.
    const STACK: usize = 512 << 10;

    /// Runs `body` `iterations` times, each time under another schedule of its tasks (two or more, which
    /// `body` starts by [`shuttle::thread::spawn`]).
    ///
    /// Half of the schedules switch at random before every operation. They find races between tasks that are a
    /// step or two apart. The other half interrupt only a few times but for long (PCT). They find races that need
    /// one task to stand still while another goes all its way. A task that waits for another in a
    /// loop must call [`shuttle::thread::yield_now`] there, or schedules of the second kind never end.
    ///
    /// A failure prints the seed; `SHUTTLE_RANDOM_SEED` repeats it. Returns how many times `body` was run.
    pub(crate) fn model(iterations: usize, body: impl Fn() + Send + Sync + 'static) -> usize {
        // Shuttle's coroutines change stacks by instructions that miri does not know.
        if cfg!(miri) {
            return 0;
        }
        let iterations = env::var(ITERATIONS).map_or(iterations, |text| {
            let wrong = |_| panic!("{ITERATIONS}=`{text}` is not a number of iterations");
            text.parse().unwrap_or_else(wrong)
        });
        let _running = Running::start();
        let body = Arc::new(body);
        let random = Arc::clone(&body);
        let half = iterations.div_ceil(2);
        Runner::new(RandomScheduler::new(half), config()).run(move || random());
        Runner::new(PctScheduler::new(PREEMPTIONS, half), config()).run(move || body());
        iterations
    }

    fn config() -> Config {
        let mut config = Config::new();
        config.stack_size = STACK;
        config
    }

    pub(super) fn is_running() -> bool {
        RUNNING.get()
    }

    pub(super) fn preempt() {
        // After a failure the tasks are unwound one by one, when the scheduler is gone already.
        if is_running() && !std::thread::panicking() {
            // An operation of shuttle's own types is a point at which it may switch. `yield_now` would not do: it asks
            // to be interrupted, and would turn every operation into an interruption.
            AtomicBool::new(false).load(Ordering::SeqCst);
        }
    }

    struct Running;

    impl Running {
        fn start() -> Self {
            assert!(!RUNNING.replace(true), "a model inside a model");
            Self
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            RUNNING.set(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::sync::Arc;

    use super::*;

    fn count_in_two_tasks(add: fn(&AtomicU64)) -> u64 {
        let count = Arc::new(AtomicU64::new(0));
        let other = Arc::clone(&count);
        let task = shuttle::thread::spawn(move || add(&other));
        add(&count);
        task.join().expect("the task ends");
        count.load(Ordering::Relaxed)
    }

    #[test]
    #[cfg_attr(miri, ignore = "miri runs no models")]
    fn model_lost_update_is_found() {
        fn racy(count: &AtomicU64) {
            let value = count.load(Ordering::Relaxed);
            count.store(value + 1, Ordering::Relaxed);
        }
        let found = catch_unwind(|| model(200, || assert_eq!(count_in_two_tasks(racy), 2)));
        assert!(found.is_err(), "200 schedules and none lost an update");
        assert!(!model::is_running());
    }

    #[test]
    fn model_atomic_update_holds() {
        fn atomic(count: &AtomicU64) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        model(200, || assert_eq!(count_in_two_tasks(atomic), 2));
    }

    #[test]
    fn mutex_in_a_model_excludes_and_does_not_block() {
        model(200, || {
            let value = Arc::new(Mutex::new(AtomicU64::new(0)));
            let other = Arc::clone(&value);
            let add = |value: &Mutex<AtomicU64>| {
                let guard = value.lock();
                let old = guard.load(Ordering::Relaxed);
                guard.store(old + 1, Ordering::Relaxed);
            };
            let task = shuttle::thread::spawn(move || add(&other));
            add(&value);
            task.join().expect("the task ends");
            assert_eq!(value.lock().load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn mutex_after_a_panic_of_its_holder_panics() {
        let lock = Mutex::new(0);
        let holder = || {
            let _guard = lock.lock();
            panic!("while holding");
        };
        assert!(catch_unwind(std::panic::AssertUnwindSafe(holder)).is_err());
        assert!(catch_unwind(std::panic::AssertUnwindSafe(|| *lock.lock())).is_err());
    }
}
