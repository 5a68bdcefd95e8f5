//! What workloads report: how much they did, how fast, and what they found wrong.

use std::fmt;

use memvisor_wire::{Gfn, PAGE_SIZE};
use serde::{Deserialize, Serialize};

/// Bytes of a page that a [`Mismatch`] shows.
const WINDOW: usize = 32;

/// A page that does not hold what was written to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mismatch {
    /// The workload, as it was specified.
    pub workload: String,
    /// The page of the workload's memory or file.
    pub page: u64,
    /// The guest-physical page, looked up right after the mismatch was found, if the page was in RAM then.
    pub gfn: Option<u32>,
    /// The first wrong byte of the page.
    pub offset: u32,
    /// How often the item at that place was written; 0 means never.
    pub version: u32,
    /// The byte of the page at which `expected` and `found` begin.
    pub window: u32,
    /// Bytes around the first wrong one as they should be.
    pub expected: Vec<u8>,
    /// The same bytes as they are.
    pub found: Vec<u8>,
}

impl Mismatch {
    /// Compares the bytes that a workload found at byte `at` of a page with the bytes that it expected.
    pub(super) fn of(expected: &[u8], found: &[u8], at: usize) -> Option<Self> {
        if expected == found {
            return None;
        }
        let wrong = expected.iter().zip(found).position(|(a, b)| a != b);
        let wrong = wrong.unwrap_or(expected.len().min(found.len()));
        let start = wrong.saturating_sub(WINDOW / 4);
        let window = |bytes: &[u8]| bytes.iter().skip(start).take(WINDOW).copied().collect();
        Some(Self {
            workload: String::new(),
            page: 0,
            gfn: None,
            offset: (at + wrong) as u32,
            version: 0,
            window: (at + start) as u32,
            expected: window(expected),
            found: window(found),
        })
    }

    /// Notes on which page the mismatch was found.
    pub(super) fn on(mut self, page: u64, gfn: Option<Gfn>, version: u32) -> Self {
        (self.page, self.gfn, self.version) = (page, gfn.map(|gfn| gfn.0), version);
        self
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            workload,
            page,
            offset,
            version,
            window,
            ..
        } = self;
        write!(f, "workload `{workload}`: byte {offset} of page {page} ")?;
        match self.gfn {
            Some(gfn) => write!(f, "({}) ", Gfn(gfn))?,
            None => f.write_str("(not in RAM) ")?,
        }
        writeln!(
            f,
            "is wrong; it was written {version} times. From byte {window} on:"
        )?;
        writeln!(f, "  expected {}", Hex(&self.expected))?;
        write!(f, "  found    {}", Hex(&self.found))
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How far a workload is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The workload follows another one that has not ended.
    Waiting,
    /// The workload fills its memory for the first time.
    Loading,
    /// The workload does its operations.
    Running,
    /// The workload verifies all that it owns for the last time.
    Verifying,
    /// The workload is done.
    Done,
}

/// How long operations took, in microseconds. This includes making and comparing content, about one
/// microsecond per page. All values are zero when there was no operation.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the operations took at most this long.
    pub p50_us: f64,
    /// 99 of 100 operations took at most this long.
    pub p99_us: f64,
    /// 999 of 1000 operations took at most this long.
    pub p999_us: f64,
    /// The longest operation took this long.
    pub max_us: f64,
}

/// What one workload did.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WorkloadReport {
    /// The workload, as it was specified.
    pub name: String,
    /// How far it is.
    pub phase: Phase,
    /// Pages it works on.
    pub pages: u64,
    /// Seconds that it took to fill its memory, or until it was stopped if that came first.
    pub loading_seconds: f64,
    /// Seconds from then until now, or until it was stopped.
    pub seconds: f64,
    /// Operations, without filling and the final pass.
    pub operations: u64,
    /// Operations per second of `seconds`.
    pub operations_per_second: f64,
    /// Bytes it wrote.
    pub bytes_written: u64,
    /// Bytes it read and compared with what they should be.
    pub bytes_verified: u64,
    /// Pages that it compared, whole or in part. A page counts each time it is compared.
    pub pages_verified: u64,
    /// Comparisons that failed.
    pub mismatches: u64,
    /// Pages that the final pass could not read.
    pub pages_unverified: u64,
    /// Pieces of work that failed, for instance for want of memory. They are tried again.
    pub errors: u64,
    /// The text of the last such failure.
    pub last_error: Option<String>,
    /// How long operations took.
    pub latency: Latency,
    /// For each full second from the start of the guest's workloads until this one was stopped: pages filled plus
    /// operations. Only the first hour is kept.
    pub each_second: Vec<u32>,
}

/// What all workloads of a guest did.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// One entry per workload, in the order they were specified; the workloads of a sequence are entries of their own.
    pub workloads: Vec<WorkloadReport>,
    /// The first mismatches in full. The reports of the workloads count all of them.
    pub mismatches: Vec<Mismatch>,
}

const _: () = assert!(WINDOW < PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mismatch_names_the_first_wrong_byte_and_shows_what_is_around_it() {
        let expected = vec![7; 400];
        let mut found = expected.clone();
        assert_eq!(Mismatch::of(&expected, &found, 800), None);
        found[300] = 9;
        found[399] = 9;
        let mismatch = Mismatch::of(&expected, &found, 800).expect("they differ");
        assert_eq!((mismatch.offset, mismatch.window), (1100, 1092));
        assert_eq!(mismatch.expected, [7; 32]);
        assert_eq!(mismatch.found.iter().position(|byte| *byte == 9), Some(8));
        let text = mismatch.on(5, Some(Gfn(16)), 3).to_string();
        for part in ["byte 1100 of page 5 (gfn 0x10)", "3 times", "0707070709"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn mismatch_at_either_end_of_a_page_is_cut_there() {
        for wrong in [0, PAGE_SIZE - 1] {
            let mut found = vec![0; PAGE_SIZE];
            found[wrong] = 1;
            let mismatch = Mismatch::of(&[0; PAGE_SIZE], &found, 0).expect("they differ");
            assert_eq!(mismatch.offset, wrong as u32);
            assert_eq!(mismatch.expected.len(), mismatch.found.len());
            assert!(mismatch.found.contains(&1));
        }
    }

    #[test]
    fn report_survives_json() {
        let mismatch = Mismatch::of(&[1; 64], &[2; 64], 0).expect("they differ");
        let report = Report {
            workloads: Vec::new(),
            mismatches: vec![mismatch.on(1, None, 2)],
        };
        let text = serde_json::to_string(&report).expect("plain data");
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
