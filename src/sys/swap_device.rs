//! Swapping of the kernel's own onto a block device.

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

/// Has the kernel swap onto `device` before any other.
///
/// # Errors
/// What `swapon(2)` says: `EPERM` without privilege, `EINVAL` without a swap header.
pub fn swap_on(device: &Path) -> io::Result<()> {
    let name = name(device)?;
    // SAFETY: `name` is a string that ends with a zero and outlives the call, which only reads it.
    let done = unsafe { libc::swapon(name.as_ptr(), PREFER | FIRST) };
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
        assert!(swap_on(path).is_err());
        assert!(swap_off(path).is_err());
    }
}
