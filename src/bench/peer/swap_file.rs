//! A file that the kernel swaps to when its zram is full, as it is on a host that has both.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

use super::super::BenchError;
use super::super::guard::{Guard, Undo};
use super::zram::header;
use crate::sys::{SwapPriority, swap_on};
use crate::units::Bytes;

/// Makes a file of `size` at `path` and has the kernel swap to it, after all other devices, until the guard ends that.
/// The inner error says why that cannot be done. The caller removes the file.
///
/// # Errors
/// The guard is gone.
pub(crate) fn open(
    guard: &Guard,
    path: &Path,
    size: Bytes,
) -> Result<Result<(), String>, BenchError> {
    guard
        .undo(Undo::SwapOff(path.to_owned()))
        .map_err(BenchError::io("have swapping ended"))?;
    let why = |error: io::Error| format!("no swap file `{}`: {error}", path.display());
    Ok(prepare(path, size).map_err(why))
}

fn prepare(path: &Path, size: Bytes) -> io::Result<()> {
    let mut file = OpenOptions::new();
    // Truncated, because a round before may have left the file.
    file.write(true).create(true).truncate(true).mode(0o600);
    let mut file = file.open(path)?;
    let length = i64::try_from(size.0).map_err(io::Error::other)?;
    // Allocated in full, because the kernel does not swap to a file with holes.
    fallocate(&file, FallocateFlags::empty(), 0, length)?;
    file.write_all(&header(size)?.0)?;
    file.sync_all()?;
    swap_on(path, SwapPriority::Last)
}
