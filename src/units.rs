//! The units in which memvisor counts, each a type of its own so that they cannot be mixed up.

use std::fmt;
use std::str::FromStr;

pub use memvisor_wire::units::{DURATIONS, parse_duration, parse_duration_in, split};
use memvisor_wire::units::{SIZES, parse_bytes};
pub use memvisor_wire::{Gfn, GfnRun, PAGE_SIZE, RunsExt, runs_of};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A frame of the share pool: the page at offset `id * 4096` of the pool's memfd (ESX: an MPN).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrameId(pub u32);

impl FrameId {
    /// The index of this frame in an array with one element for each frame.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A place in a VM's compression cache, swap file or part of the host cache; each store gives out its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotId(pub u32);

impl SlotId {
    /// The bit that tells the slots of the host cache from those of the swap file. No swap file has so many slots.
    const CACHED: u32 = 1 << 31;

    /// Of a swapped page: whether it is in the host cache, and not in the swap file.
    #[must_use]
    pub const fn is_cached(self) -> bool {
        self.0 & Self::CACHED != 0
    }

    /// This slot of a file, as one of the host cache.
    #[must_use]
    pub const fn cached(self) -> Self {
        Self(self.0 | Self::CACHED)
    }

    /// The number of the slot in its own file.
    #[must_use]
    pub const fn in_file(self) -> Self {
        Self(self.0 & !Self::CACHED)
    }
}

/// The number a VM has for the life of one daemon; never given out twice.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct VmId(pub u32);

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A number of 4 KiB pages.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Pages(pub u64);

impl Pages {
    /// The size of these pages; saturates at the largest size there is.
    #[must_use]
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(PAGE_SIZE as u64))
    }

    /// The difference, or zero where `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// A number of bytes, written by people as `256M`, `1.5GiB` or `500 pages`; units are binary.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// The whole pages in these bytes; a remainder is dropped.
    #[must_use]
    pub const fn pages(self) -> Pages {
        Pages(self.0 / PAGE_SIZE as u64)
    }

    /// The pages in these bytes, if they are whole ones.
    #[must_use]
    pub const fn whole_pages(self) -> Option<Pages> {
        if self.0.is_multiple_of(PAGE_SIZE as u64) {
            return Some(self.pages());
        }
        None
    }

    /// `mib` MiB.
    #[must_use]
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }
}

impl fmt::Display for Bytes {
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        let text = match self.0 {
            0..1024 => format!("{} B", self.0),
            1024..1_048_576 => format!("{:.1} KiB", bytes / 1024.0),
            1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes / 1_048_576.0),
            _ => format!("{:.2} GiB", bytes / 1_073_741_824.0),
        };
        f.pad(&text)
    }
}

/// Why a text is not a size.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not a size: write {SIZES}")]
pub struct SizeError(String);

impl FromStr for Bytes {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let bytes = parse_bytes(text).map(Self);
        bytes.ok_or_else(|| SizeError(text.to_owned()))
    }
}

/// The content of one page, in memory that only this process can write.
///
/// Pages that a guest may be writing are copied into a `PageBuf` before anything looks at them.
/// It is aligned to its size because direct I/O needs that.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct PageBuf(pub [u8; PAGE_SIZE]);

impl PageBuf {
    /// A page of zeroes.
    #[must_use]
    pub const fn zeroed() -> Self {
        Self([0; PAGE_SIZE])
    }

    /// Whether every byte is zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        let (words, _) = self.0.as_chunks::<64>();
        words.iter().all(|word| *word == [0; 64])
    }
}

impl Default for PageBuf {
    fn default() -> Self {
        Self::zeroed()
    }
}

impl fmt::Debug for PageBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageBuf({:02x?}..)", &self.0[..16])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_zero_sees_every_byte() {
        let mut page = PageBuf::zeroed();
        assert!(page.is_zero());
        for at in [0, 63, 64, 4095] {
            page.0[at] = 1;
            assert!(!page.is_zero(), "byte {at}");
            page.0[at] = 0;
        }
    }
}
