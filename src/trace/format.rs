//! What is in a trace, and its bytes.
//!
//! ```text
//! trace   "memtrace", version: u32, then blocks
//! block   kind: u32, vm: u32, start_us: u64, len: u32, sum: u64, then len bytes
//! ```
//!
//! Numbers are little-endian. `sum` is XXH3-64 of the twenty bytes before it and of the bytes behind it. The bytes of a
//! block of *events* are one event after the other; those of the others are JSON.
//!
//! ```text
//! event   op: u8, microseconds since the last event (or since start_us), page number less the last one (or 0)
//! op      0 to 63: a move, from + 8 * to; 64: an access to a frozen or sampled page;
//!         65: compressed, then the size in bytes; 66: hashed, then the class, four bytes
//! ```
//!
//! Both differences and the size are variable: seven bits a byte, the lowest first, bit 7 set in all bytes but the
//! last. The difference of page numbers is written as `2n`, or `-2n - 1` where it is negative.

mod pools;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

pub use self::pools::{PoolFacts, Pools};
use crate::page::Home;
use crate::units::Pages;

/// How a trace begins.
pub const MAGIC: [u8; 8] = *b"memtrace";
/// The version that is written.
pub const VERSION: u32 = 2;
/// The oldest version that is read. Version 1 has no resource pools.
pub const OLDEST: u32 = 1;
/// Bytes before the first block.
pub const HEAD: usize = 12;
/// Bytes of a block before its own.
pub const BLOCK_HEAD: usize = 28;
/// The most bytes of a block; a longer one is damaged.
pub const MOST: usize = 1 << 20;
/// The most bytes of an event.
pub const MOST_OF_EVENT: usize = 1 + 10 + 5 + 5;

/// What a block is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// [`HostFacts`].
    Host = 1,
    /// [`VmFacts`] of a VM that appears, or whose settings change.
    Vm = 2,
    /// [`Stalls`] of a VM that leaves.
    Gone = 3,
    /// Events.
    Events = 4,
    /// [`Lost`].
    Lost = 5,
    /// [`End`]: nothing comes behind it.
    End = 6,
    /// [`Pools`], when there are any, and when they have changed.
    Pools = 7,
}

impl Kind {
    /// The kind of that number.
    #[must_use]
    pub const fn of(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Host,
            2 => Self::Vm,
            3 => Self::Gone,
            4 => Self::Events,
            5 => Self::Lost,
            6 => Self::End,
            7 => Self::Pools,
            _ => return None,
        })
    }
}

/// The host that was recorded.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HostFacts {
    /// Its version of memvisor.
    pub version: String,
    /// Its budget.
    pub memory: Pages,
    /// The pages of the budget that were used without any VM.
    pub overhead: Pages,
    /// By which policy it divided memory.
    pub policy: String,
    /// Its settings by their names, all of them.
    pub settings: BTreeMap<String, String>,
    /// When the trace began, in microseconds of `CLOCK_MONOTONIC`. The times of the trace count from there.
    pub began_us: u64,
}

/// A VM: its size and what it is entitled to.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct VmFacts {
    /// Its name.
    pub name: String,
    /// Its configured size.
    pub pages: u32,
    /// Its weight, counted out.
    pub shares: u32,
    /// What it is guaranteed.
    pub reservation: Pages,
    /// The most that it may hold; `None`: its size.
    pub limit: Option<Pages>,
    /// The name of the resource pool that it is in; empty: none but the root.
    #[serde(default)]
    pub pool: String,
}

/// For how long the threads of a VM stood still, in microseconds by cause.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Stalls {
    /// For pages of zeroes.
    pub first_touch_us: u64,
    /// For pages from the compression cache.
    pub refill_zip_us: u64,
    /// For pages from the swap file.
    pub refill_swap_us: u64,
    /// For copies of shared pages.
    pub break_us: u64,
    /// For pages that were frozen and are resident.
    pub open_us: u64,
    /// Because there was no memory, or the VM was blocked, or a page was being moved.
    pub wait_us: u64,
}

impl Stalls {
    /// All causes together.
    #[must_use]
    pub const fn sum_us(&self) -> u64 {
        self.first_touch_us
            + self.refill_zip_us
            + self.refill_swap_us
            + self.break_us
            + self.open_us
            + self.wait_us
    }
}

/// Events that are missing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Lost {
    /// How many, since the last such block of the VM.
    pub events: u64,
}

/// Why a trace ends.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct End {
    /// In words.
    pub why: String,
}

/// Where a page is: [`Home`] without its payload, with numbers that stay what they are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Place {
    /// It was never touched.
    Untouched = 0,
    /// It holds zeroes and costs nothing.
    Zero = 1,
    /// It is in the VM's own RAM.
    Resident = 2,
    /// It is a frame that several may map.
    Shared = 3,
    /// It is in the compression cache.
    Compressed = 4,
    /// It is in the swap file.
    Swapped = 5,
    /// It is in the balloon.
    Ballooned = 6,
}

impl Place {
    /// All of them, by their numbers.
    pub const ALL: [Self; 7] = [
        Self::Untouched,
        Self::Zero,
        Self::Resident,
        Self::Shared,
        Self::Compressed,
        Self::Swapped,
        Self::Ballooned,
    ];
}

impl From<Home> for Place {
    fn from(home: Home) -> Self {
        match home {
            Home::Untouched => Self::Untouched,
            Home::Zero => Self::Zero,
            Home::Resident => Self::Resident,
            Home::Shared(_) => Self::Shared,
            Home::Compressed(_) => Self::Compressed,
            Home::Swapped(_) => Self::Swapped,
            Home::Ballooned => Self::Ballooned,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Untouched => "untouched",
            Self::Zero => "zero",
            Self::Resident => "resident",
            Self::Shared => "shared",
            Self::Compressed => "compressed",
            Self::Swapped => "swapped",
            Self::Ballooned => "ballooned",
        })
    }
}

/// Something that happened to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub struct Event {
    /// When, in microseconds since the trace began.
    pub at_us: u64,
    /// Which page.
    pub gfn: u32,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase", tag = "what")]
pub enum What {
    /// It moved.
    Moved {
        /// Where it was.
        from: Place,
        /// Where it is.
        to: Place,
    },
    /// Its guest accessed it while it was frozen or sampled.
    Accessed,
    /// It was compressed to that many bytes; the size of a page: not to half.
    Compressed {
        /// How many.
        bytes: u32,
    },
    /// Its content is of this class: pages of one class are very probably equal.
    Hashed {
        /// A part of the digest.
        class: u32,
    },
}

const ACCESSED: u8 = 64;
const COMPRESSED: u8 = 65;
const HASHED: u8 = 66;

/// The events of one block, as bytes.
#[derive(Debug)]
pub struct Encoder {
    bytes: Vec<u8>,
    at_us: u64,
    gfn: u32,
}

impl Encoder {
    /// No events yet; the times count from `start_us`.
    #[must_use]
    pub const fn new(start_us: u64) -> Self {
        Self {
            bytes: Vec::new(),
            at_us: start_us,
            gfn: 0,
        }
    }

    /// Adds an event. One that is earlier than the last one counts as equally late.
    pub fn push(&mut self, event: &Event) {
        let (op, more) = match event.what {
            What::Moved { from, to } => (from as u8 | (to as u8) << 3, None),
            What::Accessed => (ACCESSED, None),
            What::Compressed { bytes } => (COMPRESSED, Some(bytes)),
            What::Hashed { .. } => (HASHED, None),
        };
        self.bytes.push(op);
        self.put(event.at_us.saturating_sub(self.at_us));
        self.at_us = self.at_us.max(event.at_us);
        let step = i64::from(event.gfn) - i64::from(self.gfn);
        self.put((step << 1 ^ step >> 63).cast_unsigned());
        self.gfn = event.gfn;
        if let Some(more) = more {
            self.put(more.into());
        }
        if let What::Hashed { class } = event.what {
            self.bytes.extend(class.to_le_bytes());
        }
    }

    fn put(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    /// How many bytes there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads the events of a block; `None`: they are none.
pub fn decode(mut bytes: &[u8], start_us: u64) -> Option<Vec<Event>> {
    let (mut at_us, mut gfn) = (start_us, 0_u32);
    let mut events = Vec::new();
    while let Some((&op, rest)) = bytes.split_first() {
        bytes = rest;
        at_us = at_us.checked_add(number(&mut bytes)?)?;
        let step = number(&mut bytes)?;
        let step = (step >> 1).cast_signed() ^ -(step & 1).cast_signed();
        gfn = u32::try_from(i64::from(gfn).checked_add(step)?).ok()?;
        let what = what(op, &mut bytes)?;
        events.push(Event { at_us, gfn, what });
    }
    Some(events)
}

fn what(op: u8, bytes: &mut &[u8]) -> Option<What> {
    let place = |number: u8| Place::ALL.get(usize::from(number)).copied();
    Some(match op {
        0..64 => What::Moved {
            from: place(op & 7)?,
            to: place(op >> 3)?,
        },
        ACCESSED => What::Accessed,
        COMPRESSED => What::Compressed {
            bytes: u32::try_from(number(bytes)?).ok()?,
        },
        HASHED => {
            let (class, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            What::Hashed {
                class: u32::from_le_bytes(*class),
            }
        }
        _ => return None,
    })
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        number |= part.checked_shl(shift).filter(|it| it >> shift == part)?;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// The checksum of a block.
#[must_use]
pub fn sum(head: &[u8], bytes: &[u8]) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(head);
    sum.update(bytes);
    sum.digest()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn event() -> impl Strategy<Value = Event> {
        let place = || prop::sample::select(Place::ALL.to_vec());
        let what = prop_oneof![
            (place(), place()).prop_map(|(from, to)| What::Moved { from, to }),
            Just(What::Accessed),
            (0_u32..=4096).prop_map(|bytes| What::Compressed { bytes }),
            any::<u32>().prop_map(|class| What::Hashed { class }),
        ];
        (0_u64..1 << 40, any::<u32>(), what).prop_map(|(at_us, gfn, what)| Event {
            at_us,
            gfn,
            what,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            mut events in proptest::collection::vec(event(), 0..50),
            start in 0_u64..1 << 40,
        ) {
            events.sort_by_key(|event| event.at_us);
            events.retain(|event| event.at_us >= start);
            let mut encoder = Encoder::new(start);
            for event in &events {
                let before = encoder.len();
                encoder.push(event);
                prop_assert!(encoder.len() - before <= MOST_OF_EVENT);
            }
            prop_assert_eq!(decode(encoder.bytes(), start), Some(events));
        }

        #[test]
        fn any_bytes_are_events_or_not(bytes: Vec<u8>, start: u64) {
            let _ = decode(&bytes, start);
        }
    }
}
