//! Records of DAMON as JSON: what `damo record` writes, compressed by zlib unless it is told otherwise, and what
//! `damo report access --json` prints.
//!
//! ```text
//! file      [record, ...], one for each target that was monitored
//! record    {"kdamond_idx", "context_idx", "target_id", "snapshots": [snapshot, ...], ...}
//! snapshot  {"start_time", "end_time", "regions": [region, ...], ...}
//! region    {"start", "end", "nr_accesses": {"samples", "percent"}, ...}
//! ```
//!
//! Numbers are numbers, or texts for people: `"386,338,816,000"`, and times, which are nanoseconds, `"36 s 789 ms"`.
//! `samples` says in how many samples a region was accessed; where it is null, `percent` says in what part of them.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::read::ZlibDecoder;
use serde::Deserialize;

use super::{MOST, Region, Snapshot, accesses};
use crate::trace::{Accesses, ImportError};
use crate::units::PAGE_SIZE;

/// The longest text that is read: an hour of snapshots ten times a second, of 200 regions each, is two thirds of it.
const LONGEST: u64 = 1 << 30;

/// Whether a file that begins so is such a record.
#[must_use]
pub fn is_record(head: &[u8]) -> bool {
    head.trim_ascii_start().starts_with(b"[") || is_compressed(head)
}

/// Whether bytes begin as those of zlib do: with its only method, and a checksum of that.
fn is_compressed(head: &[u8]) -> bool {
    matches!(*head, [first, second, ..]
        if first & 15 == 8 && u16::from_be_bytes([first, second]).is_multiple_of(31))
}

/// Reads the record at `path`; `file` is its name, for errors.
///
/// # Errors
/// [`ImportError`] names the line, in what is compressed that of the text in it.
pub fn load(file: &str, path: &Path) -> Result<Accesses, ImportError> {
    let broken = |error: io::Error| ImportError {
        file: file.to_owned(),
        place: "1".to_owned(),
        why: format!("it cannot be read: {error}"),
    };
    let mut head = Vec::new();
    let open = || File::open(path).map_err(broken);
    open()?.take(2).read_to_end(&mut head).map_err(broken)?;
    if is_compressed(&head) {
        return read(file, ZlibDecoder::new(open()?));
    }
    read(file, open()?)
}

/// Reads the text of a record.
///
/// # Errors
/// [`ImportError`] names the line.
pub fn read(file: &str, text: impl Read) -> Result<Accesses, ImportError> {
    read_up_to(MOST, file, text)
}

/// As [`read`], but of a record that becomes no more than `most` accesses.
///
/// # Errors
/// [`ImportError`] names the line.
pub fn read_up_to(most: usize, file: &str, text: impl Read) -> Result<Accesses, ImportError> {
    let wrong = |line: usize, why: String| ImportError {
        file: file.to_owned(),
        place: line.to_string(),
        why,
    };
    let mut text = BufReader::new(text).take(LONGEST);
    let records: Vec<Record> = serde_json::from_reader(&mut text).map_err(|error| {
        if text.limit() == 0 {
            return wrong(
                error.line(),
                format!("the text is longer than {LONGEST} bytes"),
            );
        }
        let why = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let why = why.trim_end_matches(&place);
        wrong(error.line(), format!("no record of damo: {why}"))
    })?;
    let (names, snapshots) = taken(records).map_err(|why| wrong(1, why))?;
    let name = |target: u64| {
        let at = usize::try_from(target).ok();
        at.and_then(|at| names.get(at)).cloned().unwrap_or_default()
    };
    accesses(&snapshots, name, most).map_err(|why| wrong(1, why))
}

/// What was recorded of one target.
#[derive(Debug, Deserialize)]
struct Record {
    #[serde(default)]
    kdamond_idx: Option<u32>,
    #[serde(default)]
    context_idx: Option<u32>,
    #[serde(default)]
    target_id: Option<u64>,
    snapshots: Vec<WrittenSnapshot>,
}

#[derive(Debug, Deserialize)]
struct WrittenSnapshot {
    start_time: Nanos,
    end_time: Nanos,
    regions: Vec<WrittenRegion>,
}

#[derive(Debug, Deserialize)]
struct WrittenRegion {
    start: Whole,
    end: Whole,
    nr_accesses: Option<NrAccesses>,
}

/// In how many samples a region was accessed.
#[derive(Debug, Deserialize)]
struct NrAccesses {
    samples: Option<Whole>,
    percent: Option<Number>,
}

/// A number, or a text.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a number or a text is needed")]
enum Number {
    Whole(u64),
    Fraction(f64),
    Text(String),
}

/// A whole number, perhaps with commas between its digits.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "Number")]
struct Whole(u64);

/// A time in nanoseconds, or with units.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "Number")]
struct Nanos(u64);

fn whole(text: &str) -> Option<u64> {
    text.replace(',', "").parse().ok()
}

impl TryFrom<Number> for Whole {
    type Error = String;

    fn try_from(number: Number) -> Result<Self, String> {
        let read = match &number {
            Number::Whole(whole) => Some(*whole),
            Number::Fraction(_) => None,
            Number::Text(text) => whole(text),
        };
        let allowed = "allowed: a whole number, perhaps with commas";
        read.map(Self)
            .ok_or_else(|| format!("`{}` is none; {allowed}", number.shown()))
    }
}

impl TryFrom<Number> for Nanos {
    type Error = String;

    fn try_from(number: Number) -> Result<Self, String> {
        let read = match &number {
            Number::Whole(whole) => Some(*whole),
            // Of whole nanoseconds, as Python divides them.
            Number::Fraction(fraction) if (0.0..1e18).contains(fraction) => Some(*fraction as u64),
            Number::Fraction(_) => None,
            Number::Text(text) => whole(text).or_else(|| with_units(text)),
        };
        let allowed = "allowed: nanoseconds, or a time such as 36 s 789 ms";
        read.map(Self)
            .ok_or_else(|| format!("`{}` is no time; {allowed}", number.shown()))
    }
}

impl Number {
    fn shown(&self) -> String {
        match self {
            Self::Whole(whole) => whole.to_string(),
            Self::Fraction(fraction) => fraction.to_string(),
            Self::Text(text) => text
                .chars()
                .take(40)
                .collect::<String>()
                .escape_debug()
                .to_string(),
        }
    }
}

/// The nanoseconds of `1 d 10 h 17 m 36 s 789 ms`.
fn with_units(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (pairs, rest) = words.as_chunks::<2>();
    if pairs.is_empty() || !rest.is_empty() {
        return None;
    }
    pairs.iter().try_fold(0_u64, |sum, [number, unit]| {
        let unit = match *unit {
            "ns" => 1,
            "us" => 1000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            _ => return None,
        };
        let part = match whole(number) {
            Some(number) => number.checked_mul(unit)?,
            // Only the smallest unit has a fraction.
            None => {
                let number: f64 = number.parse().ok()?;
                (0.0..1e6)
                    .contains(&number)
                    .then_some((number * unit as f64) as u64)?
            }
        };
        sum.checked_add(part)
    })
}

impl NrAccesses {
    fn any(&self) -> bool {
        match (&self.samples, &self.percent) {
            (Some(samples), _) => samples.0 > 0,
            (None, Some(Number::Whole(percent))) => *percent > 0,
            (None, Some(Number::Fraction(percent))) => *percent > 0.0,
            // Such as `15 %`.
            (None, Some(Number::Text(text))) => text.bytes().any(|it| (b'1'..=b'9').contains(&it)),
            (None, None) => false,
        }
    }
}

/// The names of the targets, and all snapshots of them.
fn taken(records: Vec<Record>) -> Result<(Vec<String>, Vec<Snapshot>), String> {
    let (mut names, mut snapshots) = (Vec::new(), Vec::new());
    for record in records {
        let name = record.name();
        let known = names.iter().position(|known| *known == name);
        let at = known.unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
        for written in record.snapshots {
            snapshots.push(written.of(at as u64)?);
        }
    }
    Ok((names, snapshots))
}

impl Record {
    /// As in a binary record, unless there is more than one monitor.
    fn name(&self) -> String {
        let target = self.target_id.unwrap_or_default();
        match (
            self.kdamond_idx.unwrap_or_default(),
            self.context_idx.unwrap_or_default(),
        ) {
            (0, 0) => format!("target-{target}"),
            (kdamond, context) => format!("target-{kdamond}.{context}.{target}"),
        }
    }
}

impl WrittenSnapshot {
    fn of(self, target: u64) -> Result<Snapshot, String> {
        let [start, end] = [self.start_time.0, self.end_time.0];
        if start > end {
            return Err(format!(
                "a snapshot ends at {end} ns, before it begins at {start} ns"
            ));
        }
        let regions = self.regions.iter().map(|region| {
            let (start, end) = (region.start.0, region.end.0);
            if start >= end {
                return Err(format!("a region from {start} to {end} has no length"));
            }
            let size = PAGE_SIZE as u64;
            Ok(Region {
                target,
                pages: start / size..end.div_ceil(size),
                accesses: region
                    .nr_accesses
                    .as_ref()
                    .is_some_and(NrAccesses::any)
                    .into(),
            })
        });
        Ok(Snapshot {
            start_us: Some(start / 1000),
            end_us: end / 1000,
            regions: regions.collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use proptest::prelude::*;

    use super::*;

    /// As `damo` 3.4.3 writes it with `--output_type json`: two snapshots of a target with two regions far apart.
    const RECORD: &str = include_str!("record.json");

    fn found(list: &Accesses) -> Vec<(u64, u32)> {
        let accesses = list.accesses.iter();
        accesses.map(|access| (access.at_us, access.gfn)).collect()
    }

    /// What is in [`RECORD`]: five pages in the first interval, two in the second.
    const EXPECTED: [(u64, u32); 7] = [
        (123_456_789_000, 0),
        (123_456_809_000, 1),
        (123_456_829_000, 2),
        (123_456_849_000, 3),
        (123_456_869_000, 4),
        (123_456_889_000, 5),
        (123_456_939_000, 6),
    ];

    #[test]
    fn record_of_damo_is_read_plain_and_compressed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (plain, packed) = (dir.path().join("a.json"), dir.path().join("damon.data"));
        std::fs::write(&plain, RECORD).expect("our own directory");
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(RECORD.as_bytes()).expect("in memory");
        let zlib = zlib.finish().expect("in memory");
        std::fs::write(&packed, &zlib).expect("our own directory");
        for path in [plain, packed] {
            let head = std::fs::read(&path).expect("there");
            assert!(is_record(&head[..16]));
            let list = load("d", &path).expect("right");
            assert_eq!(list.vms, ["target-0"]);
            assert_eq!(found(&list), EXPECTED);
        }
        assert!(!is_record(b"time_us,vm,gfn\n"));
    }

    #[test]
    fn numbers_for_people_are_read_as_well() {
        // `damo report access --json` without `--raw_form`.
        let text = RECORD
            .replace("\"123456789000000\"", "\"1 d 10 h 17 m 36 s 789 ms\"")
            .replace("\"123456889000000\"", "123456889000000")
            .replace("\"386,338,816,000\"", "386338816000")
            .replace("\"samples\": 3", "\"samples\": null")
            .replacen("\"percent\": null", "\"percent\": \"15 %\"", 1);
        let list = read("d", text.as_bytes()).expect("right");
        assert_eq!(found(&list), EXPECTED);
        assert_eq!(with_units("1.500 us"), Some(1500));
        for wrong in ["", "5", "5 parsec", "5 s 3", "99999999 d"] {
            assert_eq!(with_units(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn targets_of_several_monitors_are_told_apart() {
        let second = RECORD.replace("\"kdamond_idx\": 0", "\"kdamond_idx\": 1");
        let both = format!("[{},{}]", inner(RECORD), inner(&second));
        let list = read("d", both.as_bytes()).expect("right");
        assert_eq!(list.vms, ["target-0", "target-1.0.0"]);
        assert_eq!(list.accesses.len(), 2 * EXPECTED.len());
    }

    fn inner(list: &str) -> &str {
        let list = list.trim().trim_start_matches('[');
        list.trim_end_matches(']')
    }

    #[test]
    fn errors_name_the_line_and_the_value() {
        for (good, bad, said) in [
            (
                "\"386,338,816,000\"",
                "\"386 KiB\"",
                "d:25: no record of damo: `386 KiB` is none",
            ),
            (
                "\"123456789000000\"",
                "\"noon\"",
                "d:21: no record of damo: `noon` is no time",
            ),
            ("\"snapshots\"", "\"snap\"", "missing field `snapshots`"),
            ("386,338,836,480", "386,338,816,000", "has no length"),
            (
                "\"123456789000000\"",
                "\"123456889000001\"",
                "before it begins",
            ),
        ] {
            let text = RECORD.replacen(good, bad, 1);
            assert_ne!(text, RECORD, "{good}");
            let error = read("d", text.as_bytes()).expect_err(bad).to_string();
            assert!(error.contains(said), "{error}");
        }
        let cut = read("d", &RECORD.as_bytes()[..700]).expect_err("cut off");
        assert!(cut.to_string().contains("EOF"), "{cut}");
        let most = read_up_to(6, "d", RECORD.as_bytes()).expect_err("seven");
        assert!(most.to_string().contains("more than 6 accesses"), "{most}");
    }

    proptest! {
        #[test]
        fn damaged_record_is_read_or_refused(at in any::<prop::sample::Index>(), byte: u8) {
            let mut text = RECORD.as_bytes().to_vec();
            let at = at.index(text.len());
            text[at] = byte;
            let _ = read_up_to(1000, "d", text.as_slice());
        }
    }
}
