//! Records a live host.
//!
//! Threads that serve faults note what happened in the queue of their VM and go on. One thread drains all queues twenty
//! times a second and writes. Nobody waits for anybody: a note that finds its queue full is counted and dropped, and a
//! trace that has its full length, or cannot be written, ends, with the reason in the log and, if possible, in the trace.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Writer;
use super::format::{End, Event, HostFacts, Kind, Lost, Pools, Stalls, VmFacts, What};
use crate::page::{Home, Witness};
use crate::units::{Bytes, Gfn, VmId};

/// Notes that a VM's queue holds: 400 000 a second can come.
const NOTES: usize = 1 << 15;
/// How often the queues are drained.
const PERIOD: Duration = Duration::from_millis(50);

/// Where a trace goes, and how long it may become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The file. What was in it is lost.
    pub file: PathBuf,
    /// The most bytes of it.
    pub most: Bytes,
}

/// Notes what happens to the pages of one VM.
#[derive(Debug)]
struct Notes {
    began: Instant,
    /// Makes classes of digests. A digest must not outlive its process ([`crate::digest`]), and a trace does.
    secret: u64,
    queue: ArrayQueue<Event>,
    lost: AtomicU64,
}

impl Notes {
    fn note(&self, gfn: Gfn, what: What) {
        let event = Event {
            at_us: since(self.began),
            gfn: gfn.0,
            what,
        };
        if self.queue.push(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Witness for Notes {
    fn moved(&self, gfn: Gfn, from: Home, to: Home) {
        let (from, to) = (from.into(), to.into());
        self.note(gfn, What::Moved { from, to });
    }

    fn accessed(&self, gfn: Gfn) {
        self.note(gfn, What::Accessed);
    }

    fn compressed(&self, gfn: Gfn, bytes: u32) {
        self.note(gfn, What::Compressed { bytes });
    }

    fn hashed(&self, gfn: Gfn, digest: u64) {
        let class = xxh3_64_with_seed(&digest.to_le_bytes(), self.secret);
        #[expect(clippy::cast_possible_truncation, reason = "half of it is enough")]
        let class = class as u32;
        self.note(gfn, What::Hashed { class });
    }
}

/// Microseconds since then.
fn since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// A recorded VM.
#[derive(Debug)]
struct Vm {
    notes: Arc<Notes>,
    facts: VmFacts,
}

/// What is recorded now. The lock is taken by the thread that writes and by those of VMs that come or go, never by one
/// that serves a fault.
#[derive(Debug)]
struct State {
    writer: Option<Writer<BufWriter<File>>>,
    vms: BTreeMap<VmId, Vm>,
    pools: Pools,
    most: u64,
    file: PathBuf,
}

#[derive(Debug)]
struct Shared {
    began: Instant,
    secret: u64,
    state: Mutex<State>,
    is_over: AtomicBool,
}

/// A trace that is being recorded. Dropping it writes what is left, and that the trace is complete.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Recorder {
    /// Begins to record.
    ///
    /// # Errors
    /// The file cannot be written, or no thread can be started.
    pub fn start(limits: &Limits, host: &HostFacts, began: Instant) -> io::Result<Self> {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            // It tells what guests use, which is nobody else's business.
            .mode(0o600)
            .open(&limits.file)?;
        let mut writer = Writer::new(BufWriter::new(file))?;
        writer.facts(Kind::Host, VmId(0), 0, host)?;
        writer.flush()?;
        let shared = Arc::new(Shared {
            began,
            secret: rand::random(),
            is_over: AtomicBool::new(false),
            state: Mutex::new(State {
                writer: Some(writer),
                vms: BTreeMap::new(),
                pools: Pools::default(),
                most: limits.most.0,
                file: limits.file.clone(),
            }),
        });
        let writing = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("trace".to_owned())
            .spawn(move || writing.run())?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// A VM appears. Returns who is to be told what happens to its pages.
    #[must_use]
    pub fn appears(&self, vm: VmId, facts: VmFacts) -> Arc<dyn Witness> {
        let notes = Arc::new(Notes {
            began: self.shared.began,
            secret: self.shared.secret,
            queue: ArrayQueue::new(NOTES),
            lost: AtomicU64::new(0),
        });
        let mut state = self.shared.state();
        let at = since(self.shared.began);
        state.write(|writer| writer.facts(Kind::Vm, vm, at, &facts));
        let told = Arc::clone(&notes);
        state.vms.insert(vm, Vm { notes, facts });
        told
    }

    /// Notes the settings of a VM if they have changed.
    pub fn settings(&self, vm: VmId, facts: &VmFacts) {
        let mut state = self.shared.state();
        let known = state.vms.get_mut(&vm);
        let Some(known) = known.filter(|known| known.facts != *facts) else {
            return;
        };
        known.facts.clone_from(facts);
        state.drain(since(self.shared.began), Some(vm));
        let at = since(self.shared.began);
        state.write(|writer| writer.facts(Kind::Vm, vm, at, facts));
    }

    /// Notes the resource pools if they have changed.
    pub fn pools(&self, pools: &Pools) {
        let mut state = self.shared.state();
        if state.pools == *pools {
            return;
        }
        state.pools.clone_from(pools);
        let at = since(self.shared.began);
        state.write(|writer| writer.facts(Kind::Pools, VmId(0), at, pools));
    }

    /// A VM leaves. Nothing happens to its pages any more.
    pub fn leaves(&self, vm: VmId, stalls: &Stalls) {
        let mut state = self.shared.state();
        state.drain(since(self.shared.began), Some(vm));
        state.vms.remove(&vm);
        let at = since(self.shared.began);
        state.write(|writer| writer.facts(Kind::Gone, vm, at, stalls));
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.end();
    }
}

impl Recorder {
    /// Writes what is left, and that the trace is complete.
    pub fn end(&self) {
        let thread = self.thread.lock();
        let Some(thread) = thread.unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        self.shared.is_over.store(true, Ordering::Relaxed);
        thread.thread().unpark();
        // A writer that panicked has ended the process.
        let _ = thread.join();
        let mut state = self.shared.state();
        state.drain(since(self.shared.began), None);
        state.end(since(self.shared.began), "the host ended");
    }
}

impl Shared {
    fn run(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            thread::park_timeout(PERIOD);
            self.state().drain(since(self.began), None);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain data, whole even if a thread panicked while it held the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Writes what was noted, of one VM or of all.
    fn drain(&mut self, now_us: u64, only: Option<VmId>) {
        let vms: Vec<(VmId, Arc<Notes>)> = (self.vms.iter())
            .filter(|(vm, _)| only.is_none_or(|only| only == **vm))
            .map(|(vm, known)| (*vm, Arc::clone(&known.notes)))
            .collect();
        for (vm, notes) in vms {
            // Bounded: a guest that is faster than this thread must not keep it here.
            let mut events: Vec<Event> = (0..NOTES).map_while(|_| notes.queue.pop()).collect();
            // Two threads that note at the same time may come in the other order.
            events.sort_by_key(|event| event.at_us);
            let events_lost = notes.lost.swap(0, Ordering::Relaxed);
            self.write(|writer| writer.events(vm, &events));
            if events_lost > 0 {
                let lost = Lost {
                    events: events_lost,
                };
                self.write(|writer| writer.facts(Kind::Lost, vm, now_us, &lost));
            }
        }
        self.write(Writer::flush);
        if (self.writer.as_ref()).is_some_and(|writer| writer.bytes() >= self.most) {
            self.end(now_us, "it has its full length");
        }
    }

    fn write(&mut self, write: impl FnOnce(&mut Writer<BufWriter<File>>) -> io::Result<()>) {
        let Some(Err(error)) = self.writer.as_mut().map(write) else {
            return;
        };
        // Without a word in the trace: that could not be written either.
        self.writer = None;
        tracing::error!(file = %self.file.display(), %error, "the trace ends here");
    }

    fn end(&mut self, now_us: u64, why: &str) {
        let end = End {
            why: why.to_owned(),
        };
        self.write(|writer| {
            writer.facts(Kind::End, VmId(0), now_us, &end)?;
            writer.flush()
        });
        if let Some(writer) = self.writer.take() {
            let (bytes, events) = (writer.bytes(), writer.count());
            let each = bytes as f64 / events.max(1) as f64;
            tracing::info!(
                file = %self.file.display(), why, events, size = %Bytes(bytes),
                bytes_an_event = format_args!("{each:.1}"), "the trace is complete"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::format::PoolFacts;
    use super::super::{Reader, Record};
    use super::*;

    fn record(dir: &Path, most: u64, events: u32) -> Vec<Record> {
        let file = dir.join("t.trace");
        let limits = Limits {
            file: file.clone(),
            most: Bytes(most),
        };
        let recorder =
            Recorder::start(&limits, &HostFacts::default(), Instant::now()).expect("writable");
        let witness = recorder.appears(VmId(1), VmFacts::default());
        for gfn in 0..events {
            witness.moved(Gfn(gfn), Home::Untouched, Home::Resident);
        }
        recorder.leaves(VmId(1), &Stalls::default());
        drop(recorder);
        let reader = Reader::new(File::open(file).expect("there")).expect("a trace");
        reader.map(|block| block.expect("whole").record).collect()
    }

    #[test]
    fn notes_are_written_and_those_that_found_no_room_are_counted() {
        let dir = tempfile::tempdir().expect("tempdir");
        let records = record(dir.path(), 1 << 30, 200_000);
        let count = |record: &Record| match record {
            Record::Events(events) => events.len() as u64,
            Record::Lost(lost) => lost.events,
            _ => 0,
        };
        assert_eq!(records.iter().map(count).sum::<u64>(), 200_000);
        assert!(matches!(records.last(), Some(Record::End(_))));
    }

    #[test]
    fn resource_pools_are_written_when_they_have_changed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let limits = Limits {
            file: dir.path().join("t.trace"),
            most: Bytes(1 << 20),
        };
        let recorder =
            Recorder::start(&limits, &HostFacts::default(), Instant::now()).expect("writable");
        let some = |names: &[&str]| Pools {
            pools: names
                .iter()
                .map(|name| PoolFacts {
                    name: (*name).to_owned(),
                    ..PoolFacts::default()
                })
                .collect(),
        };
        for names in [&[][..], &["root", "a"], &["root", "a"], &["root"]] {
            recorder.pools(&some(names));
        }
        drop(recorder);
        let reader = Reader::new(File::open(&limits.file).expect("there")).expect("a trace");
        let pools = reader.filter_map(|block| match block.expect("whole").record {
            Record::Pools(pools) => Some(pools),
            _ => None,
        });
        let expected = [some(&["root", "a"]), some(&["root"])];
        assert_eq!(pools.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn trace_ends_at_its_full_length_and_says_so() {
        let dir = tempfile::tempdir().expect("tempdir");
        let records = record(dir.path(), 1000, 10_000);
        let Some(Record::End(end)) = records.last() else {
            panic!("{records:?}");
        };
        assert_eq!(end.why, "it has its full length");
    }
}
