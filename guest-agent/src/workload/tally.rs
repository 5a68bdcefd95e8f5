//! What the threads of one workload have done so far.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::clocked::Clocked;
use super::{Phase, Work, WorkloadReport};

/// Counters that the threads of one workload write and anybody reads.
#[derive(Debug)]
pub(super) struct Tally {
    name: String,
    pages: u32,
    threads: u32,
    loaded: AtomicU32,
    done: AtomicU32,
    /// When the guest's workloads were started.
    started: Instant,
    /// When this one began.
    began: OnceLock<Instant>,
    running_since: OnceLock<Instant>,
    stopped_at: OnceLock<Instant>,
    operations: AtomicU64,
    written: AtomicU64,
    verified: AtomicU64,
    pages_verified: AtomicU64,
    unverified: AtomicU64,
    mismatches: AtomicU64,
    errors: AtomicU64,
    last_error: Mutex<Option<String>>,
    clocked: Vec<Mutex<Clocked>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl Tally {
    /// Of a workload that has not begun, in a guest whose workloads were started at that time.
    pub(super) fn new(name: String, pages: u32, threads: u32, started: Instant) -> Self {
        Self {
            name,
            pages,
            threads,
            loaded: AtomicU32::new(0),
            done: AtomicU32::new(0),
            started,
            began: OnceLock::new(),
            running_since: OnceLock::new(),
            stopped_at: OnceLock::new(),
            operations: AtomicU64::new(0),
            written: AtomicU64::new(0),
            verified: AtomicU64::new(0),
            pages_verified: AtomicU64::new(0),
            unverified: AtomicU64::new(0),
            mismatches: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            last_error: Mutex::new(None),
            clocked: (0..threads).map(|_| Mutex::new(Clocked::new())).collect(),
        }
    }

    /// Notes that the workload begins now.
    pub(super) fn begin(&self, now: Instant) {
        self.began.get_or_init(|| now);
        // Without threads, nobody else would end the loading.
        if self.threads == 0 {
            self.running_since.get_or_init(|| now);
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Counts a thread that has filled its memory.
    pub(super) fn count_loaded(&self) {
        if self.loaded.fetch_add(1, Ordering::Relaxed) + 1 == self.threads {
            self.running_since.get_or_init(Instant::now);
        }
    }

    /// Counts a thread that has ended.
    pub(super) fn count_done(&self) {
        if self.done.fetch_add(1, Ordering::Relaxed) + 1 == self.threads {
            self.stop_clock();
        }
    }

    /// Whether all threads have ended.
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed) == self.threads
    }

    pub(super) fn count_work(&self, work: Work) {
        add(&self.written, work.written);
        add(&self.verified, work.verified);
        add(&self.pages_verified, work.pages_verified);
    }

    /// Counts a piece of memory that a thread has filled.
    pub(super) fn count_piece(&self, thread: usize, end: Instant) {
        if let Some(clocked) = self.clocked.get(thread) {
            lock(clocked).progress(end.saturating_duration_since(self.started));
        }
    }

    pub(super) fn count_operation(&self, thread: usize, begin: Instant, end: Instant) {
        add(&self.operations, 1);
        if let Some(clocked) = self.clocked.get(thread) {
            let mut clocked = lock(clocked);
            clocked.record(end.saturating_duration_since(begin));
            clocked.progress(end.saturating_duration_since(self.started));
        }
    }

    pub(super) fn count_mismatch(&self) {
        add(&self.mismatches, 1);
    }

    pub(super) fn count_error(&self, error: String) {
        add(&self.errors, 1);
        *lock(&self.last_error) = Some(error);
    }

    pub(super) fn count_unverified(&self, pages: u64) {
        add(&self.unverified, pages);
    }

    /// Notes the time at which the workload was told to stop.
    pub(super) fn stop_clock(&self) {
        self.stopped_at.get_or_init(Instant::now);
    }

    fn phase(&self) -> Phase {
        match self.stopped_at.get() {
            Some(_) if self.is_done() => Phase::Done,
            Some(_) => Phase::Verifying,
            None if self.running_since.get().is_some() => Phase::Running,
            None if self.began.get().is_some() => Phase::Loading,
            None => Phase::Waiting,
        }
    }

    /// How long the workload loaded and how long it ran, until now or until it was stopped.
    fn times(&self) -> (Duration, Duration) {
        let end = self.end();
        let loaded = self
            .running_since
            .get()
            .map_or(end, |since| end.min(*since));
        let began = self.began.get().map_or(loaded, |began| loaded.min(*began));
        (
            loaded.saturating_duration_since(began),
            end.saturating_duration_since(loaded),
        )
    }

    /// When the workload was stopped; now, if it was not.
    fn end(&self) -> Instant {
        self.stopped_at.get().copied().unwrap_or_else(Instant::now)
    }

    /// For how long there is progress to tell, from the start of the guest's workloads on.
    fn told(&self) -> Duration {
        match self.began.get() {
            Some(_) => self.end().saturating_duration_since(self.started),
            None => Duration::ZERO,
        }
    }

    /// Operations so far.
    pub(super) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Adds the times of all threads to `sum`.
    pub(super) fn add_times(&self, sum: &mut Clocked) {
        for clocked in &self.clocked {
            sum.add(&lock(clocked));
        }
    }

    pub(super) fn report(&self) -> WorkloadReport {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut all = Clocked::new();
        self.add_times(&mut all);
        let (loading, running) = self.times();
        let seconds = running.as_secs_f64();
        let operations = self.operations();
        WorkloadReport {
            name: self.name.clone(),
            phase: self.phase(),
            pages: self.pages.into(),
            loading_seconds: loading.as_secs_f64(),
            seconds,
            operations,
            operations_per_second: if seconds > 0.0 {
                operations as f64 / seconds
            } else {
                0.0
            },
            bytes_written: read(&self.written),
            bytes_verified: read(&self.verified),
            pages_verified: read(&self.pages_verified),
            mismatches: read(&self.mismatches),
            pages_unverified: read(&self.unverified),
            errors: read(&self.errors),
            last_error: lock(&self.last_error).clone(),
            latency: all.summary(),
            each_second: all.each_second(self.told()),
        }
    }
}
