//! Records of DAMON, the kernel's access monitor, in the formats of its own tool, `damo`: JSON (see [`json`]), and before
//! that a binary format (`damon.data`):
//!
//! ```text
//! file      "damon_recfmt_ver", version: i32 (1 or 2), then snapshots
//! snapshot  seconds: i64, nanoseconds: i64, targets: u32, then targets
//! target    id: i32 in version 1, u64 in version 2; regions: u32, then regions
//! region    start: u64, end: u64, accesses: u32
//! ```
//!
//! Little-endian, as the machines are that DAMON runs on. The time is that of the end of the snapshot's interval.
//!
//! DAMON does not see pages but regions, and takes it that all pages of a region are accessed alike. So each page of a
//! region that was accessed at all becomes one access in the interval, and the pages of a region come one after the
//! other over the interval. How often a region was accessed within it is lost: no decision of a host is that fast.
//! Addresses of a target may span terabytes with little in them. Its pages are numbered anew, from 0, in the order of
//! addresses, those that are in no region left out.

pub mod json;

use std::collections::BTreeMap;

use super::{Access, Accesses, ImportError};
use crate::units::PAGE_SIZE;

/// How such a record begins.
pub const MAGIC: &[u8; 16] = b"damon_recfmt_ver";

/// The most accesses that a record may become: each takes 24 bytes here.
const MOST: usize = 200_000_000;

/// Pages, from the first to before the last, and when they were accessed.
struct Region {
    target: u64,
    pages: std::ops::Range<u64>,
    accesses: u32,
}

struct Snapshot {
    /// When its interval began; `None`: with the end of the one before.
    start_us: Option<u64>,
    end_us: u64,
    regions: Vec<Region>,
}

/// Reads a record; `file` is its name, for errors.
///
/// # Errors
/// [`ImportError`] names the byte.
pub fn read(file: &str, bytes: &[u8]) -> Result<Accesses, ImportError> {
    read_up_to(MOST, file, bytes)
}

/// As [`read`], but of a record that becomes no more than `most` accesses.
///
/// # Errors
/// [`ImportError`] names the byte.
pub fn read_up_to(most: usize, file: &str, bytes: &[u8]) -> Result<Accesses, ImportError> {
    let mut bytes = Bytes { all: bytes, at: 0 };
    let snapshots = snapshots(&mut bytes);
    let name = |id: u64| format!("target-{id}");
    let list = snapshots.and_then(|snapshots| accesses(&snapshots, name, most));
    list.map_err(|why| ImportError {
        file: file.to_owned(),
        place: format!("byte {}", bytes.at),
        why,
    })
}

/// Bytes, and how many have been read.
struct Bytes<'a> {
    all: &'a [u8],
    at: usize,
}

impl Bytes<'_> {
    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let bytes = self.all[self.at..].first_chunk();
        let bytes = *bytes.ok_or_else(|| format!("the record is cut off: here is no {what}"))?;
        self.at += N;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.take(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.take(what).map(u64::from_le_bytes)
    }

    const fn is_over(&self) -> bool {
        self.at == self.all.len()
    }
}

fn snapshots(bytes: &mut Bytes<'_>) -> Result<Vec<Snapshot>, String> {
    if bytes.take::<16>("record of DAMON")? != *MAGIC {
        bytes.at = 0;
        return Err("no record of DAMON: it does not begin with `damon_recfmt_ver`".to_owned());
    }
    let version = bytes.u32("version")?;
    if !matches!(version, 1 | 2) {
        return Err(format!(
            "the format's version is {version}; 1 and 2 are read"
        ));
    }
    let mut snapshots = Vec::new();
    while !bytes.is_over() {
        snapshots.push(snapshot(bytes, version)?);
    }
    Ok(snapshots)
}

fn snapshot(bytes: &mut Bytes<'_>, version: u32) -> Result<Snapshot, String> {
    let time = (bytes.u64("time")?, bytes.u64("time")?);
    let end_us = time
        .0
        .checked_mul(1_000_000)
        .and_then(|us| us.checked_add(time.1 / 1000));
    let end_us = end_us.ok_or_else(|| format!("{} is no time in seconds", time.0))?;
    let mut regions = Vec::new();
    for _ in 0..bytes.u32("number of targets")? {
        let target = match version {
            1 => bytes.u32("target")?.into(),
            _ => bytes.u64("target")?,
        };
        for _ in 0..bytes.u32("number of regions")? {
            let (start, end) = (bytes.u64("region")?, bytes.u64("region")?);
            if start >= end {
                return Err(format!(
                    "a region from {start:#x} to {end:#x} has no length"
                ));
            }
            let size = PAGE_SIZE as u64;
            regions.push(Region {
                target,
                pages: start / size..end.div_ceil(size),
                accesses: bytes.u32("number of accesses")?,
            });
        }
    }
    Ok(Snapshot {
        start_us: None,
        end_us,
        regions,
    })
}

/// Pages of a target, from the first to before the last, and the number that the first one gets.
type Numbered = (u64, u64, u32);

/// The pages of each target that are in any region, as ranges in order.
fn numbered(snapshots: &[Snapshot]) -> Result<BTreeMap<u64, Vec<Numbered>>, String> {
    let mut targets: BTreeMap<u64, Vec<Numbered>> = BTreeMap::new();
    for region in snapshots.iter().flat_map(|snapshot| &snapshot.regions) {
        let ranges = targets.entry(region.target).or_default();
        // Most regions are those of the last snapshot.
        if ranges.last() != Some(&(region.pages.start, region.pages.end, 0)) {
            ranges.push((region.pages.start, region.pages.end, 0));
        }
    }
    for (target, ranges) in &mut targets {
        ranges.sort_unstable();
        ranges.dedup_by(|next, last| {
            let joins = next.0 <= last.1;
            if joins {
                last.1 = last.1.max(next.1);
            }
            joins
        });
        let mut pages = 0_u64;
        for range in ranges {
            range.2 = u32::try_from(pages).unwrap_or(u32::MAX);
            pages += range.1 - range.0;
            if pages >= u64::from(u32::MAX) {
                return Err(format!("target {target} has more than 16 TiB in regions"));
            }
        }
    }
    Ok(targets)
}

/// The accesses of at most `most` pages; `name` tells what a target is called.
fn accesses(
    snapshots: &[Snapshot],
    name: impl Fn(u64) -> String,
    most: usize,
) -> Result<Accesses, String> {
    let numbered = numbered(snapshots)?;
    let vm = |target: u64| numbered.keys().position(|known| *known == target);
    let mut list = Accesses {
        vms: numbered.keys().map(|id| name(*id)).collect(),
        remarks: vec![
            "of DAMON: each page of an accessed region counts as accessed once in the interval"
                .to_owned(),
        ],
        ..Accesses::default()
    };
    let mut before = None;
    for snapshot in snapshots {
        // The first interval is as long as the second, as far as one can know.
        let next = snapshots.get(1).map_or(0, |next| next.end_us);
        let first = snapshot
            .end_us
            .saturating_sub(next.saturating_sub(snapshot.end_us));
        let before = before.replace(snapshot.end_us).unwrap_or(first);
        let start = snapshot.start_us.unwrap_or(before);
        let length = snapshot.end_us.saturating_sub(start);
        for region in snapshot.regions.iter().filter(|it| it.accesses > 0) {
            let ranges = &numbered[&region.target];
            let of = ranges.partition_point(|range| range.0 <= region.pages.start) - 1;
            let pages = region.pages.end - region.pages.start;
            if list.accesses.len() as u64 + pages > most as u64 {
                return Err(format!("it becomes more than {most} accesses"));
            }
            let vm = vm(region.target).and_then(|vm| u32::try_from(vm).ok());
            let vm = vm.ok_or("it has too many targets")?;
            list.accesses.extend((0..pages).map(|at| Access {
                at_us: start + (u128::from(length) * u128::from(at) / u128::from(pages)) as u64,
                vm,
                gfn: ranges[of].2 + (region.pages.start - ranges[of].0 + at) as u32,
                write: false,
            }));
        }
    }
    list.accesses.sort_by_key(|access| access.at_us);
    Ok(list)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The seconds of a snapshot, and the regions of its one target: from, to in pages, and accesses.
    type Taken<'a> = (u64, &'a [(u64, u64, u32)]);

    fn record(version: u32, snapshots: &[Taken<'_>]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(version.to_le_bytes());
        for (seconds, regions) in snapshots {
            bytes.extend(seconds.to_le_bytes());
            bytes.extend(500_000_000_u64.to_le_bytes());
            bytes.extend(1_u32.to_le_bytes());
            match version {
                1 => bytes.extend(42_u32.to_le_bytes()),
                _ => bytes.extend(42_u64.to_le_bytes()),
            }
            bytes.extend(u32::try_from(regions.len()).expect("few").to_le_bytes());
            for (start, end, accesses) in *regions {
                bytes.extend((start * 4096).to_le_bytes());
                bytes.extend((end * 4096).to_le_bytes());
                bytes.extend(accesses.to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn regions_become_accesses_to_pages_that_are_numbered_anew() {
        let far = 0x7f00_0000;
        let snapshots: [Taken<'_>; 2] = [
            (10, &[(100, 104, 3), (far, far + 2, 0)]),
            (12, &[(102, 106, 0), (far, far + 2, 1)]),
        ];
        for version in [1, 2] {
            let list = read("d", &record(version, &snapshots)).expect("right");
            assert_eq!(list.vms, ["target-42"]);
            let found: Vec<_> = (list.accesses.iter())
                .map(|access| (access.at_us, access.gfn))
                .collect();
            let expected = [
                (8_500_000, 0),
                (9_000_000, 1),
                (9_500_000, 2),
                (10_000_000, 3),
                (10_500_000, 6),
                (11_500_000, 7),
            ];
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn errors_name_the_byte() {
        let good = record(2, &[(10, &[(1, 2, 1)])]);
        let said = |bytes: &[u8]| read("d", bytes).expect_err("bad").to_string();
        assert!(said(&good[..30]).starts_with("d:byte 28: the record is cut off: here is no time"));
        assert!(said(b"x").starts_with("d:byte 0: "));
        let other = record(3, &[]);
        assert!(said(&other).contains("version is 3; 1 and 2 are read"));
        let empty = record(2, &[(10, &[(2, 2, 1)])]);
        assert!(said(&empty).contains("from 0x2000 to 0x2000 has no length"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_not(mut bytes: Vec<u8>, version in 1_u32..3) {
            let mut all = MAGIC.to_vec();
            all.extend(version.to_le_bytes());
            all.append(&mut bytes);
            let _ = read("d", &all);
        }
    }
}
