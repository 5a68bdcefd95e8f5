//! Records the sessions of a host: one file a session in a directory.
//!
//! What is recorded is what a session said, so recording must never change a session. A record is one `write`, without a
//! buffer that would be lost with the process. When a write fails, because the disk is full, the file is cut back to its
//! last whole record, one warning is logged, and the session goes on without a recording.
//!
//! The token in a `START` is a secret for as long as the VM runs, and recordings are made to be passed on. So its bytes
//! are recorded as zeroes, in each datagram of an agent that is a `START` or no message at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use memvisor_wire::balloon::{ToAgent, ToHost};
use memvisor_wire::claims::Words;

use super::map::Seen;
use super::tape::{self, MOST_RUNS, Side};
use crate::balloon::Tap;
use crate::throttle::Throttle;

/// Where the token is in a `START`.
const TOKEN: std::ops::Range<usize> = 16..24;
/// The ending of the name of a recording.
const ENDING: &str = "balloon";
/// The most recordings that one host makes: an agent that connects again and again must not fill a directory.
const MOST: u32 = 100_000;
/// The most bytes of one recording, for the same reason: hours of a session that moves pages all the time.
const LONGEST: u64 = 4 << 30;

/// Sessions that cannot be recorded may be many.
static FAILURES: Throttle = Throttle::new(1, Duration::from_secs(60));

/// The recordings of a host.
#[derive(Debug)]
pub struct Recorder {
    dir: PathBuf,
    next: AtomicU32,
    left: AtomicU32,
}

impl Recorder {
    /// Records into `dir`, which is made if it is not there. Recordings that are there stay.
    ///
    /// # Errors
    /// What the kernel says if `dir` cannot be made or read.
    pub fn new(dir: &Path) -> io::Result<Self> {
        // Closed to others: what guests say of themselves is theirs.
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let number = |name: &str| name.strip_suffix(ENDING)?.strip_suffix('.')?.parse().ok();
        let taken = fs::read_dir(dir)?
            .flatten()
            .filter_map(|entry| number(entry.file_name().to_str()?));
        Ok(Self {
            dir: dir.to_owned(),
            next: AtomicU32::new(taken.max().unwrap_or(0_u32).saturating_add(1)),
            left: AtomicU32::new(MOST),
        })
    }

    /// Begins the recording of a session; `None`, after a warning, if that cannot be.
    #[must_use]
    pub fn begin(&self) -> Option<Recording> {
        // Relaxed: the numbers only tell files apart, and `create_new` has the last word.
        let take = |left: u32| left.checked_sub(1);
        let left = (self.left).fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{number:06}.{ENDING}"));
        let begun = match left {
            Ok(_) => Recording::begin(&path),
            Err(_) => Err(io::Error::other(format!("{MOST} sessions are recorded"))),
        };
        let told = |error| {
            FAILURES.line(|unsaid| {
                let path = path.display();
                tracing::warn!(%path, %error, unsaid, "a balloon session is not recorded");
            });
        };
        begun.map_err(told).ok()
    }
}

/// The recording of a session that goes on.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    /// `None` after a failure.
    file: Option<File>,
    /// Bytes of whole records.
    len: u64,
    began: Instant,
    /// The map of free pages, as it is recorded.
    map: Seen,
}

impl Recording {
    /// Begins a recording in a new file.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut recording = Self {
            path: path.to_owned(),
            file: Some(file),
            len: 0,
            began: Instant::now(),
            map: Seen::default(),
        };
        recording.write(&tape::header(SystemTime::now()))?;
        Ok(recording)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        if self.len + bytes.len() as u64 > LONGEST {
            return Err(io::Error::other(format!("it has {LONGEST} bytes")));
        }
        file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn record(&mut self, bytes: &[u8]) {
        if let Err(error) = self.write(bytes)
            && let Some(file) = self.file.take()
        {
            // Without the half of a record that may be there. If this fails too, a reader stops before it.
            let _ = file.set_len(self.len);
            let path = self.path.display();
            tracing::warn!(%path, %error, "the recording of a balloon session stops here; the session goes on");
        }
    }
}

impl Tap for Recording {
    fn received(&mut self, datagram: &[u8]) {
        let record = tape::said(self.began.elapsed(), Side::Agent, &without_token(datagram));
        self.record(&record);
    }

    fn sent(&mut self, datagram: &[u8]) {
        if let Ok((_, ToAgent::Started(_))) = ToAgent::decode(datagram) {
            self.map.begin();
        }
        let record = tape::said(self.began.elapsed(), Side::Host, datagram);
        self.record(&record);
    }

    fn mapped(&mut self, words: &dyn Words, count: u32) {
        if self.file.is_none() {
            return;
        }
        let changed = self.map.look(words, count);
        for runs in changed.chunks(MOST_RUNS) {
            let record = tape::mapped(self.began.elapsed(), runs);
            self.record(&record);
        }
    }

    fn ended(&mut self, why: &str) {
        let record = tape::ended(self.began.elapsed(), why);
        self.record(&record);
    }
}

/// What an agent said, with zeroes for what is or may be the token.
fn without_token(datagram: &[u8]) -> Vec<u8> {
    let mut bytes = datagram.to_vec();
    if matches!(ToHost::decode(datagram), Ok((_, ToHost::Start(_))) | Err(_)) {
        let end = TOKEN.end.min(bytes.len());
        bytes[TOKEN.start.min(end)..end].fill(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use std::sync::Arc;

    use memvisor_wire::balloon::{Capabilities, FreeMap, PageState, Start, Started, map_words};

    use super::*;
    use crate::laboratory::map::Moved;
    use crate::laboratory::tape::{Entry, Stop, Tape};
    use crate::sys::SharedWords;
    use crate::units::{Gfn, GfnRun};

    const SECRET: u64 = 0xdead_beef_feed_c0de;

    fn start() -> Vec<u8> {
        let start = Start {
            min_version: 1,
            max_version: 1,
            capabilities: Capabilities::COMMON,
            token: SECRET,
            total_pages: 77,
            name: "web".into(),
        };
        ToHost::Start(start).encode(1)
    }

    #[test]
    fn recording_has_both_sides_and_no_token() {
        let dir = tempfile::tempdir().expect("tempdir");
        let recorder = Recorder::new(&dir.path().join("new")).expect("made");
        let mut recording = recorder.begin().expect("room");
        let stats = ToHost::Relief { pages: 5 }.encode(2);
        recording.received(&start());
        recording.received(&start()[..22]);
        recording.sent(b"anything");
        recording.received(&stats);
        recording.ended("gone");
        let path = dir.path().join("new/000001.balloon");
        let file = fs::read(&path).expect("written");
        let secret = SECRET.to_le_bytes();
        assert!(!file.windows(4).any(|bytes| bytes == &secret[..4]));
        let tape = Tape::read(&file).expect("whole");
        assert!(matches!(&tape.stop, Stop::Ended { why, .. } if why == "gone"));
        let heard: Vec<_> = tape.heard().collect();
        let decoded = ToHost::decode(&heard[0].bytes).expect("still a START");
        assert!(matches!(
            decoded,
            (
                1,
                ToHost::Start(Start {
                    token: 0,
                    total_pages: 77,
                    ..
                })
            )
        ));
        assert_eq!(
            (&heard[2].bytes[..], heard[2].by),
            (&b"anything"[..], Side::Host)
        );
        assert_eq!(heard[3].bytes, stats);
        assert!(heard.is_sorted_by_key(|heard| heard.at));
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
    }

    #[test]
    fn changes_of_the_map_are_between_what_was_said() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("a.balloon");
        let mut recording = Recording::begin(&path).expect("room");
        let words = SharedWords::new("test-map", map_words(64)).expect("memory");
        let map = FreeMap::new(Arc::new(words), 64);
        let started = |vm| {
            ToAgent::Started(Started {
                capabilities: Capabilities::COMMON | Capabilities::BITMAP,
                vm,
                poll_interval_ms: 1000,
                max_ranges: 1,
                balloon_max: 40,
            })
        };
        recording.sent(&started(1).encode(1));
        recording.mapped(map.words(), 4);
        let run = GfnRun::new(Gfn(3), 20);
        assert_eq!(map.change_run(run, PageState::Used, PageState::Free), 20);
        recording.mapped(map.words(), 4);
        recording.mapped(map.words(), 4);
        recording.received(&ToHost::Stop.encode(2));
        // The map of another START is another map.
        recording.sent(&started(1).encode(3));
        recording.mapped(map.words(), 4);
        let tape = Tape::read(&fs::read(&path).expect("written")).expect("whole");
        let mut seen = Seen::default();
        let moved = |entry: &Entry| match entry {
            Entry::Said(_) => None,
            Entry::Mapped { runs, .. } => Some(runs.clone()),
        };
        let runs: Vec<_> = tape.entries.iter().map(moved).collect();
        let [None, Some(first), None, None, Some(again)] = &runs[..] else {
            panic!("{runs:?}");
        };
        assert_eq!(first, again);
        let expected = Moved {
            from: PageState::Used,
            to: PageState::Free,
            run,
        };
        assert_eq!(seen.take(first), [expected]);
    }

    #[test]
    fn recordings_that_are_there_stay() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join("000041.balloon"), "x").expect("write");
        let recorder = Recorder::new(dir.path()).expect("there");
        drop(recorder.begin().expect("room"));
        assert!(dir.path().join("000042.balloon").exists());
        let none = Recorder::new(&dir.path().join("000041.balloon"));
        assert!(none.is_err(), "a file is no directory");
    }

    /// Where every write fails with ENOSPC, the session is told nothing.
    #[test]
    fn full_disk_ends_a_recording_and_nothing_else() {
        let full = OpenOptions::new().write(true).open("/dev/full");
        let mut recording = Recording {
            path: PathBuf::from("/dev/full"),
            file: Some(full.expect("Linux has it")),
            len: 0,
            began: Instant::now(),
            map: Seen::default(),
        };
        recording.sent(b"x");
        assert!(recording.file.is_none(), "it has stopped");
        recording.received(b"y");
        recording.ended("z");
    }
}
