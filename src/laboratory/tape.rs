//! The file of one recorded session.
//!
//! A header, then a record for each datagram in the order in which the session read and sent them, then one that says
//! how the session ended. Between them, where both sides share a map of free pages, are records of what has changed in
//! it: before what is said next, and after the host has moved pages. Numbers are little endian, without padding.
//!
//! | header | | record | |
//! |---|---|---|---|
//! | 8 bytes | `memvball` | u32 | length of the content, at most 65 536 |
//! | u16 | version of the file, 2 | u16 | 0 the agent said it, 1 the host said it, 2 the session ended, 3 the map changed |
//! | u16 | version of the balloon protocol | u64 | microseconds since the session began |
//! | u64 | microseconds from 1970 to the beginning | | the content: a datagram, the end as UTF-8, or runs of words |
//! | u32 | check of what is before it | u32 | check of what is before it, from the length on |
//!
//! A run of words is three u32: the number of its first word in the map, how many there are, and the value that each of
//! them has now. The map is all zeroes when `STARTED` is said. Version 1 has no such records, and is read too.
//!
//! A check is the lower half of XXH3-64. A process that dies leaves a file that ends inside a record or between two; a
//! disk may return other bytes than were written. So a reader takes what is whole from the front and says at which byte
//! it stopped, and why. It does not look for records behind that byte: what it found there could be anything.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use memvisor_wire::balloon::{MAX_MESSAGE_BYTES, VERSION};
use memvisor_wire::{DecodeError, Reader, Writer};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use super::map::WordRun;

/// The version of the file that is written.
const FILE_VERSION: u16 = 2;
/// The oldest version that is read.
const OLDEST: u16 = 1;
const MAGIC: &[u8; 8] = b"memvball";
const HEADER_BYTES: usize = 24;
/// Bytes of a record beside its content.
const FRAME_BYTES: usize = 18;
const ENDED: u16 = 2;
const MAPPED: u16 = 3;
/// Bytes of a run of words.
const RUN_BYTES: usize = 12;
/// The most runs of words in a record.
pub const MOST_RUNS: usize = MAX_MESSAGE_BYTES / RUN_BYTES;

/// Who says something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The agent.
    Agent,
    /// The host.
    Host,
}

impl Side {
    /// The side as one word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Host => "host",
        }
    }
}

/// A datagram that was said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heard {
    /// When, since the session began; in whole microseconds.
    pub at: Duration,
    /// By whom.
    pub by: Side,
    /// The datagram, without the secret of a `START`.
    pub bytes: Vec<u8>,
}

/// One thing in a recording.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Somebody said something.
    Said(Heard),
    /// The map of free pages has changed.
    Mapped {
        /// When that was seen, since the session began; in whole microseconds.
        at: Duration,
        /// The words that have changed.
        runs: Vec<WordRun>,
    },
}

/// Where and why a reader stopped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The session ended, and its recording is whole.
    Ended {
        /// When.
        at: Duration,
        /// How, for people.
        why: String,
    },
    /// The last record is whole, and no end follows: the session goes on, or its host died.
    Open,
    /// The file ends inside a record.
    Cut {
        /// The byte at which the record begins.
        at: usize,
        /// Bytes of it that are missing.
        missing: usize,
    },
    /// A record is not what was written.
    Damaged {
        /// The byte at which the record begins.
        at: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Stop {
    /// Whether all of the file was read.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        matches!(self, Self::Ended { .. } | Self::Open)
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended { why, .. } => write!(f, "ended: {why}"),
            Self::Open => f.write_str("no end: the session goes on, or its host died"),
            Self::Cut { at, missing } => write!(
                f,
                "cut off: the record at byte {at} lacks {missing} bytes or more; what is before it is whole"
            ),
            Self::Damaged { at, what } => write!(
                f,
                "damaged: the record at byte {at} {what}; what is before it is whole"
            ),
        }
    }
}

/// A recording, as far as it is whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tape {
    /// When the session began.
    pub began: SystemTime,
    /// What was said and what changed, in the order of time.
    pub entries: Vec<Entry>,
    /// Where it ends.
    pub stop: Stop,
}

/// Why a file is no recording that can be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TapeError {
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It begins with something else.
    #[error("it is no recording of a balloon session: it does not begin with `memvball`")]
    Other,
    /// It ends inside its header.
    #[error("cut off: its header has {len} of {HEADER_BYTES} bytes, and no record follows")]
    Short {
        /// The bytes of the file.
        len: usize,
    },
    /// Its header is not what was written.
    #[error("damaged: the check of its header, bytes 0 to 23, does not fit")]
    Damaged,
    /// A program of another version wrote it.
    #[error(
        "it has version {file} for balloon protocol {protocol}; this program reads versions {OLDEST} to {FILE_VERSION} for protocol {VERSION}"
    )]
    Version {
        /// The version of the file.
        file: u16,
        /// The version of the protocol.
        protocol: u16,
    },
}

/// The header of a recording that begins now.
#[must_use]
pub fn header(began: SystemTime) -> Vec<u8> {
    let since = began.duration_since(SystemTime::UNIX_EPOCH);
    let mut to = Writer::new();
    to.bytes(MAGIC).u16(FILE_VERSION).u16(VERSION);
    to.u64(micros(since.unwrap_or_default()));
    checked(to.finish())
}

/// The record of a datagram.
#[must_use]
pub fn said(at: Duration, by: Side, bytes: &[u8]) -> Vec<u8> {
    record(at, by as u16, bytes)
}

/// The record of words of the map that have changed, of which there are [`MOST_RUNS`] at most.
#[must_use]
pub fn mapped(at: Duration, runs: &[WordRun]) -> Vec<u8> {
    let mut to = Writer::new();
    for run in &runs[..runs.len().min(MOST_RUNS)] {
        to.u32(run.first).u32(run.count).u32(run.value);
    }
    record(at, MAPPED, &to.finish())
}

/// The record of the end of a session.
#[must_use]
pub fn ended(at: Duration, why: &str) -> Vec<u8> {
    record(at, ENDED, why.as_bytes())
}

fn record(at: Duration, kind: u16, content: &[u8]) -> Vec<u8> {
    let mut to = Writer::new();
    to.u32(content.len() as u32).u16(kind).u64(micros(at));
    checked(to.bytes(content).finish())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn check(bytes: &[u8]) -> u32 {
    xxh3_64(bytes) as u32
}

fn checked(mut bytes: Vec<u8>) -> Vec<u8> {
    let check = check(&bytes);
    bytes.extend(check.to_le_bytes());
    bytes
}

impl Tape {
    /// Reads a recording as far as it is whole.
    ///
    /// # Errors
    /// [`TapeError`] if nothing of it can be read.
    pub fn read(file: &[u8]) -> Result<Self, TapeError> {
        let magic = &file[..file.len().min(MAGIC.len())];
        if !MAGIC.starts_with(magic) {
            return Err(TapeError::Other);
        }
        let Some((head, records)) = file.split_at_checked(HEADER_BYTES) else {
            return Err(TapeError::Short { len: file.len() });
        };
        let began = read_header(head)?;
        let mut tape = Self {
            began: SystemTime::UNIX_EPOCH + Duration::from_micros(began),
            entries: Vec::new(),
            stop: Stop::Open,
        };
        tape.stop = tape.read_records(records);
        Ok(tape)
    }

    /// What was said.
    pub fn heard(&self) -> impl Iterator<Item = &Heard> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Said(heard) => Some(heard),
            Entry::Mapped { .. } => None,
        })
    }

    /// Reads records until there is none, or one that is not whole.
    fn read_records(&mut self, records: &[u8]) -> Stop {
        let mut rest = records;
        while !rest.is_empty() {
            let at = HEADER_BYTES + records.len() - rest.len();
            let record = match Record::read(rest) {
                Ok(record) => record,
                Err(Broken::Missing(missing)) => return Stop::Cut { at, missing },
                Err(Broken::Wrong(what)) => return Stop::Damaged { at, what },
            };
            let (at, said) = (record.at, |by| Heard {
                at: record.at,
                by,
                bytes: record.content.to_vec(),
            });
            self.entries.push(match record.kind {
                ENDED => {
                    let why = String::from_utf8_lossy(record.content).into_owned();
                    return Stop::Ended { at, why };
                }
                MAPPED => Entry::Mapped {
                    at,
                    runs: runs(record.content),
                },
                0 => Entry::Said(said(Side::Agent)),
                _ => Entry::Said(said(Side::Host)),
            });
            rest = &rest[FRAME_BYTES + record.content.len()..];
        }
        Stop::Open
    }
}

/// The runs of words of a record, which was checked.
fn runs(content: &[u8]) -> Vec<WordRun> {
    let (runs, _) = content.as_chunks::<RUN_BYTES>();
    let (words, number) = (runs.iter(), |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
    });
    words
        .map(|run| WordRun {
            first: number(&run[..4]),
            count: number(&run[4..8]),
            value: number(&run[8..]),
        })
        .collect()
}

fn read_header(head: &[u8]) -> Result<u64, TapeError> {
    let fields = || -> Result<_, DecodeError> {
        let mut from = Reader::new(&head[MAGIC.len()..]);
        let (file, protocol) = (from.u16("version")?, from.u16("protocol")?);
        Ok((file, protocol, from.u64("began")?, from.u32("check")?))
    };
    let (file, protocol, began, sum) = fields().map_err(|_| TapeError::Damaged)?;
    // A later version may check its header in another way, so this comes first.
    if !(OLDEST..=FILE_VERSION).contains(&file) || protocol != VERSION {
        return Err(TapeError::Version { file, protocol });
    }
    if sum != check(&head[..HEADER_BYTES - 4]) {
        return Err(TapeError::Damaged);
    }
    Ok(began)
}

struct Record<'f> {
    kind: u16,
    at: Duration,
    content: &'f [u8],
}

enum Broken {
    Missing(usize),
    Wrong(&'static str),
}

impl<'f> Record<'f> {
    fn read(from: &'f [u8]) -> Result<Self, Broken> {
        let missing = |needed: usize| Broken::Missing(needed - from.len());
        let mut reader = Reader::new(from);
        let mut head = || -> Result<_, DecodeError> {
            Ok((
                reader.u32("length")?,
                reader.u16("kind")?,
                reader.u64("time")?,
            ))
        };
        let (len, kind, at) = head().map_err(|_| missing(FRAME_BYTES))?;
        if len as usize > MAX_MESSAGE_BYTES {
            return Err(Broken::Wrong("is longer than any datagram"));
        }
        let end = FRAME_BYTES + len as usize;
        let whole = from.get(..end).ok_or_else(|| missing(end))?;
        let (checked, sum) = whole.split_at(end - 4);
        if sum != check(checked).to_le_bytes() {
            return Err(Broken::Wrong("does not fit its check"));
        }
        if kind > MAPPED {
            return Err(Broken::Wrong("is of no kind that there is"));
        }
        let content = &checked[FRAME_BYTES - 4..];
        let fits =
            content.len().is_multiple_of(RUN_BYTES) && runs(content).iter().all(WordRun::fits);
        if kind == MAPPED && !fits {
            return Err(Broken::Wrong("has words that no map has"));
        }
        Ok(Self {
            kind,
            at: Duration::from_micros(at),
            content,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(entries: &[Entry], why: &str) -> (Vec<u8>, Vec<usize>) {
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let mut file = header(began);
        let mut ends = vec![];
        for entry in entries {
            file.extend(match entry {
                Entry::Said(one) => said(one.at, one.by, &one.bytes),
                Entry::Mapped { at, runs } => mapped(*at, runs),
            });
            ends.push(file.len());
        }
        file.extend(ended(Duration::from_secs(9), why));
        ends.push(file.len());
        (file, ends)
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..40);
        let said = (any::<u32>(), any::<bool>(), bytes).prop_map(|(at, host, bytes)| {
            Entry::Said(Heard {
                at: Duration::from_micros(at.into()),
                by: if host { Side::Host } else { Side::Agent },
                bytes,
            })
        });
        let run = (0_u32..1000, 1_u32..1000, any::<u32>());
        let run = run.prop_map(|(first, count, value)| WordRun {
            first,
            count,
            value,
        });
        let runs = (any::<u32>(), proptest::collection::vec(run, 0..5));
        let mapped = runs.prop_map(|(at, runs)| Entry::Mapped {
            at: Duration::from_micros(at.into()),
            runs,
        });
        prop_oneof![3 => said, 1 => mapped]
    }

    proptest! {
        /// Each prefix of a recording has the records that are whole in it, and says where the next one begins.
        #[test]
        fn recording_cut_at_any_byte_is_read_as_far_as_it_is_whole(
            heard in proptest::collection::vec(any_entry(), 0..6), why in "[a-z ]{0,20}"
        ) {
            let (file, ends) = written(&heard, &why);
            for cut in 0..=file.len() {
                let read = Tape::read(&file[..cut]);
                if cut < HEADER_BYTES {
                    prop_assert!(matches!(read, Err(TapeError::Short { len }) if len == cut), "{read:?}");
                    continue;
                }
                let tape = read.expect("the header is whole");
                let whole = ends.iter().filter(|end| **end <= cut).count();
                prop_assert_eq!(&tape.entries[..], &heard[..whole.min(heard.len())]);
                let begin = if whole == 0 { HEADER_BYTES } else { ends[whole - 1] };
                match tape.stop {
                    Stop::Ended { why: read, .. } => prop_assert!(cut == file.len() && read == why),
                    Stop::Open => prop_assert_eq!(begin, cut),
                    Stop::Cut { at, missing } => {
                        prop_assert_eq!(at, begin);
                        prop_assert!(missing > 0 && cut + missing <= ends[whole]);
                    }
                    Stop::Damaged { .. } => prop_assert!(false, "{:?}", tape.stop),
                }
            }
        }

        /// A changed byte is never taken for what was written: nothing from its record on is read.
        #[test]
        fn changed_byte_ends_what_is_read_at_its_record(
            heard in proptest::collection::vec(any_entry(), 1..6), at in any::<prop::sample::Index>(), by in 1..=255_u8
        ) {
            let (mut file, ends) = written(&heard, "done");
            let at = at.index(file.len());
            file[at] ^= by;
            if let Ok(tape) = Tape::read(&file) {
                prop_assert!(at >= HEADER_BYTES, "byte {}", at);
                let whole = ends.iter().filter(|end| **end <= at).count();
                prop_assert_eq!(&tape.entries[..], &heard[..whole]);
                let begin = if whole == 0 { HEADER_BYTES } else { ends[whole - 1] };
                let (Stop::Damaged { at: said, .. } | Stop::Cut { at: said, .. }) = tape.stop else {
                    panic!("{:?}", tape.stop);
                };
                prop_assert_eq!(said, begin);
            }
        }
    }

    #[test]
    fn file_of_another_version_or_kind_says_so() {
        let (file, _) = written(&[], "");
        let mut later = file.clone();
        later[8] = 3;
        let error = Tape::read(&later).expect_err("another version").to_string();
        assert!(
            error.contains("version 3 for balloon protocol 1; this program reads versions 1 to 2"),
            "{error}"
        );
        let error = Tape::read(b"\x7fELF...").expect_err("another kind");
        assert!(matches!(error, TapeError::Other), "{error}");
    }

    #[test]
    fn recording_of_version_1_is_read() {
        let heard = Heard {
            at: Duration::from_micros(7),
            by: Side::Host,
            bytes: vec![1, 2, 3],
        };
        let (mut file, _) = written(&[Entry::Said(heard.clone())], "done");
        file[8] = 1;
        let sum = check(&file[..HEADER_BYTES - 4]);
        file[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        let tape = Tape::read(&file).expect("of an older version");
        assert_eq!(tape.heard().collect::<Vec<_>>(), [&heard]);
        assert!(matches!(tape.stop, Stop::Ended { .. }));
    }

    #[test]
    fn words_that_no_map_has_are_told() {
        let run = |first, count| WordRun {
            first,
            count,
            value: 1,
        };
        for runs in [&[run(1 << 24, 1)][..], &[run(0, 1), run(9, 0)]] {
            let mut file = header(SystemTime::UNIX_EPOCH);
            file.extend(mapped(Duration::ZERO, runs));
            let tape = Tape::read(&file).expect("the header is whole");
            let text = tape.stop.to_string();
            assert!(text.contains("byte 24 has words that no map has"), "{text}");
        }
        let mut file = header(SystemTime::UNIX_EPOCH);
        file.extend(record(Duration::ZERO, MAPPED, &[0; 13]));
        let tape = Tape::read(&file).expect("the header is whole");
        assert!(!tape.stop.is_whole());
    }
}
