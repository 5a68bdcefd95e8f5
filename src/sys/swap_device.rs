//! The kernel's own swapping, onto a block device or a file.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `SWAP_FLAG_PREFER` of the kernel's headers: the low bits are the priority.
const PREFER: libc::c_int = 0x8000;
/// The highest priority.
const FIRST: libc::c_int = 0x7fff;

fn name(device: &Path) -> io::Result<CString> {
    Ok(CString::new(device.as_os_str().as_bytes())?)
}

/// When the kernel swaps to a device that has others beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SwapPriority {
    /// Before it uses any other.
    First,
    /// When all others are full.
    Last,
}

/// Has the kernel swap onto `device`, a block device or a file without holes.
///
/// # Errors
/// What `swapon(2)` says: `EPERM` without privilege, `EINVAL` without a swap header.
pub fn swap_on(device: &Path, priority: SwapPriority) -> io::Result<()> {
    let name = name(device)?;
    let priority = match priority {
        SwapPriority::First => FIRST,
        SwapPriority::Last => 0,
    };
    // SAFETY: `name` is a string that ends with a zero and outlives the call, which only reads it.
    let done = unsafe { libc::swapon(name.as_ptr(), PREFER | priority) };
    result(done)
}

/// Brings everything back from `device` and no longer swaps onto it.
///
/// # Errors
/// What `swapoff(2)` says: `EINVAL` when it is no swap device now, `ENOMEM` when memory is short.
pub fn swap_off(device: &Path) -> io::Result<()> {
    let name = name(device)?;
    // SAFETY: `name` is a string that ends with a zero and outlives the call, which only reads it.
    let done = unsafe { libc::swapoff(name.as_ptr()) };
    result(done)
}

fn result(done: libc::c_int) -> io::Result<()> {
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_swap_device_is_refused() {
        let path = Path::new("/proc/self/status");
        assert!(swap_on(path, SwapPriority::Last).is_err());
        assert!(swap_off(path).is_err());
    }
}
