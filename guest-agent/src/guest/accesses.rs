//! A list of what a guest accesses, for replays of it.
//!
//! Nobody outside a guest sees accesses to memory that is there; the guest's kernel makes all of them, through
//! [`Memory`]. To write down each one would cost more than making it, and no host decides faster than in milliseconds. So
//! of the accesses to a page in ten milliseconds only the first is noted, and the first write: the others cost a look at
//! the page's word and at a clock that the kernel keeps in memory. A thread of its own writes the notes, as the text that
//! `memvisor replay` reads: `time_us,vm,gfn,write`, by `CLOCK_MONOTONIC`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use memvisor_wire::{Gfn, GfnRun};
use nix::time::{ClockId, clock_gettime};

use crate::shim::Memory;

/// In this many milliseconds only the first access to a page is noted.
const RESOLUTION_MS: u64 = 10;
/// How often notes are written.
const PERIOD: Duration = Duration::from_millis(100);
/// Notes that wait to be written, 16 MiB. More are counted and lost.
const MOST: usize = 1 << 20;

/// An access: when, which page, and whether it was written.
#[derive(Clone, Copy)]
struct Note {
    at_us: u64,
    gfn: u32,
    write: bool,
}

#[derive(Default)]
struct Notes {
    waiting: Mutex<Vec<Note>>,
    lost: AtomicU64,
    is_over: AtomicBool,
}

impl Notes {
    fn waiting(&self) -> MutexGuard<'_, Vec<Note>> {
        // Plain data, whole even if a thread panicked while it held the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory whose accesses are noted.
pub(super) struct Recorded {
    memory: Arc<dyn Memory>,
    /// Of each page, twice the interval in which it was accessed last, plus one if it was written in it.
    latest: Box<[AtomicU32]>,
    notes: Arc<Notes>,
}

/// The thread that writes the list.
pub(super) struct Writing {
    notes: Arc<Notes>,
    thread: JoinHandle<io::Result<()>>,
}

/// Notes accesses to `memory` in `file`, for a guest of that name.
///
/// # Errors
/// The file cannot be made, or no thread started.
pub(super) fn record(
    memory: Arc<dyn Memory>,
    name: &str,
    file: &Path,
) -> io::Result<(Recorded, Writing)> {
    let mut out = BufWriter::new(File::create(file)?);
    writeln!(out, "time_us,vm,gfn,write")?;
    let notes = Arc::<Notes>::default();
    let (writing, name) = (Arc::clone(&notes), name.to_owned());
    let thread = thread::Builder::new()
        .name("accesses".to_owned())
        .spawn(move || write(&writing, &name, out))?;
    let latest = (0..memory.pages()).map(|_| AtomicU32::new(0)).collect();
    let recorded = Recorded {
        memory,
        latest,
        notes: Arc::clone(&notes),
    };
    Ok((recorded, Writing { notes, thread }))
}

fn write(notes: &Notes, name: &str, mut out: impl Write) -> io::Result<()> {
    let mut taken = Vec::new();
    loop {
        // Acquire pairs with the Release of `end`: what was noted before it is taken out below.
        let is_over = notes.is_over.load(Ordering::Acquire);
        std::mem::swap(&mut taken, &mut notes.waiting());
        for Note { at_us, gfn, write } in taken.drain(..) {
            writeln!(out, "{at_us},{name},{gfn},{}", u8::from(write))?;
        }
        out.flush()?;
        if is_over {
            return Ok(());
        }
        thread::park_timeout(PERIOD);
    }
}

impl Writing {
    /// Writes what is left. Returns how many accesses are missing.
    ///
    /// # Errors
    /// The list could not be written.
    pub(super) fn end(self) -> io::Result<u64> {
        // Release pairs with the Acquire of the writer: it takes out all that was noted before.
        self.notes.is_over.store(true, Ordering::Release);
        self.thread.thread().unpark();
        self.thread
            .join()
            .map_err(|_| io::Error::other("the writer of the list panicked"))??;
        Ok(self.notes.lost.load(Ordering::Relaxed))
    }
}

fn now(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

impl Recorded {
    fn note(&self, gfn: Gfn, write: bool) {
        // Moves on with the kernel's tick and costs no system call.
        let coarse = now(ClockId::CLOCK_MONOTONIC_COARSE).as_millis() as u64;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "it may wrap: only the latest counts"
        )]
        let interval = ((coarse / RESOLUTION_MS) as u32) << 1;
        let latest = &self.latest[gfn.0 as usize];
        // Relaxed: two threads that access a page at the same time may both be noted.
        let before = latest.load(Ordering::Relaxed);
        let known = before & !1 == interval;
        if known && (!write || before & 1 == 1) {
            return;
        }
        let written = u32::from(write) | if known { before & 1 } else { 0 };
        latest.store(interval | written, Ordering::Relaxed);
        let at_us = now(ClockId::CLOCK_MONOTONIC).as_micros() as u64;
        let mut waiting = self.notes.waiting();
        if waiting.len() < MOST {
            waiting.push(Note {
                at_us,
                gfn: gfn.0,
                write,
            });
        } else {
            self.notes.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Memory for Recorded {
    fn pages(&self) -> u32 {
        self.memory.pages()
    }

    fn read(&self, gfn: Gfn, at: usize, into: &mut [u8]) {
        self.note(gfn, false);
        self.memory.read(gfn, at, into);
    }

    fn write(&self, gfn: Gfn, at: usize, from: &[u8]) {
        self.note(gfn, true);
        self.memory.write(gfn, at, from);
    }

    fn attach(&self, pages: GfnRun, source: Gfn) -> u32 {
        self.memory.attach(pages, source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Memory for Nothing {
        fn pages(&self) -> u32 {
            4
        }

        fn read(&self, _: Gfn, _: usize, _: &mut [u8]) {}

        fn write(&self, _: Gfn, _: usize, _: &[u8]) {}
    }

    #[test]
    fn first_access_of_an_interval_is_listed_and_so_is_the_first_write() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("a.csv");
        let (memory, writing) = record(Arc::new(Nothing), "a", &file).expect("writable");
        let began = now(ClockId::CLOCK_MONOTONIC);
        for _ in 0..100 {
            memory.read(Gfn(1), 0, &mut []);
            memory.write(Gfn(2), 0, &[]);
            memory.read(Gfn(2), 0, &mut []);
        }
        let took = now(ClockId::CLOCK_MONOTONIC) - began;
        assert_eq!(writing.end().expect("written"), 0);
        let text = std::fs::read_to_string(&file).expect("there");
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("time_us,vm,gfn,write"));
        let lines: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
        let of = |gfn, write| {
            let is_it = |line: &&Vec<&str>| line[1..] == ["a", gfn, write];
            lines.iter().filter(is_it).count()
        };
        let most = 2 + took.as_millis() as usize / RESOLUTION_MS as usize;
        for (gfn, write) in [("1", "0"), ("2", "1")] {
            assert!((1..=most).contains(&of(gfn, write)), "{text}");
        }
        // An interval may begin between a write and the read that follows it.
        assert!(of("2", "0") < most, "{text}");
        let times: Vec<u64> = lines
            .iter()
            .map(|it| it[0].parse().expect("a time"))
            .collect();
        assert!(
            times.iter().all(|at| *at >= began.as_micros() as u64),
            "{text}"
        );
    }
}
