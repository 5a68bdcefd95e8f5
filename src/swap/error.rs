//! What can go wrong with a swap file.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::slots::SlotRun;
use crate::units::{Bytes, SlotId};

/// What can go wrong with a swap file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SwapError {
    /// The file could not be made.
    #[error("VM `{vm}`: cannot create a swap file in {}", dir.display())]
    Create {
        /// The VM it was for.
        vm: String,
        /// Where the file was to be.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The disk has not enough room for the whole file: the VM cannot be powered on, its reservation
    /// cannot be lowered, or its file cannot be moved there.
    #[error(
        "VM `{vm}`: a swap file of {len} does not fit into {}: {wanted} wanted, {available} available",
        dir.display()
    )]
    NoSpace {
        /// The VM it was for.
        vm: String,
        /// Where the file was to be.
        dir: PathBuf,
        /// The length of the whole file: configured memory - reservation.
        len: Bytes,
        /// How much of it was still to be reserved: all of a new file, the new part of a file that grows.
        wanted: Bytes,
        /// What the filesystem had left.
        available: Bytes,
    },
    /// There is no memory for the digests of its slots.
    #[error("VM `{vm}`: cannot keep the digests of its swap file")]
    Digests {
        /// The VM it was for.
        vm: String,
        /// The allocation that failed.
        source: io::Error,
    },
    /// The length of the file could not be changed, for another reason than lack of room.
    #[error("VM `{vm}`: cannot make its swap file in {} {len} long", dir.display())]
    Resize {
        /// The VM.
        vm: String,
        /// Where its file is.
        dir: PathBuf,
        /// The length it was to have.
        len: Bytes,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its space could not be kept for the next power-on.
    #[error("VM `{vm}`: cannot keep its swap file as {}", path.display())]
    Keep {
        /// The VM.
        vm: String,
        /// What the file was to be called.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// One of these of the host cache.
    #[error("host cache in {}", dir.display())]
    Cache {
        /// Where it is.
        dir: PathBuf,
        /// What it is.
        source: Box<SwapError>,
    },
    /// A write found the disk, the quota or the file at its limit. The pages stay where they were;
    /// trying again helps only after room was made.
    #[error("swap slots {run}: no room on the disk")]
    Full {
        /// What was being written.
        run: SlotRun,
        /// What the kernel said.
        source: io::Error,
    },
    /// A write failed. The pages stay where they were.
    #[error("swap slots {run}: write failed")]
    Write {
        /// What was being written.
        run: SlotRun,
        /// What the kernel said.
        source: io::Error,
    },
    /// A read failed: the page cannot be brought back.
    #[error("swap slot {}: read failed", slot.0)]
    Read {
        /// What was being read.
        slot: SlotId,
        /// What the kernel said.
        source: io::Error,
    },
    /// The disk returned other bytes than were written, or the slot holds nothing (`expected` is 0).
    #[error("swap slot {} is corrupt: its digest is {found:#018x}, not {expected:#018x}", slot.0)]
    Corrupt {
        /// What was being read.
        slot: SlotId,
        /// The digest of what was written.
        expected: u64,
        /// The digest of what came back.
        found: u64,
    },
}

impl SwapError {
    /// A write that failed.
    pub(super) fn write(run: SlotRun, source: io::Error) -> Self {
        if is_full(&source) {
            Self::Full { run, source }
        } else {
            Self::Write { run, source }
        }
    }
}

/// Whether something failed for lack of room, which is no fault of the disk.
pub(super) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
