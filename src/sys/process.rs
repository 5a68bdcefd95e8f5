//! A guest's process, held by a pidfd so that its number cannot be taken over by another.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use memvisor_guest_agent::shim::{PeerCredentials, SeqPacket, wait_readable};

/// `SO_PEERPIDFD`, since Linux 6.5.
const SO_PEERPIDFD: libc::c_int = 77;

/// The process at the other end of a socket.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    credentials: PeerCredentials,
}

impl Process {
    /// The peer of `socket`.
    ///
    /// # Errors
    /// What `getsockopt(2)` or `pidfd_open(2)` says: the process is gone already.
    pub fn peer(socket: &SeqPacket) -> io::Result<Self> {
        let credentials = socket.peer()?;
        let pidfd = peer_pidfd(socket).or_else(|_| open_pidfd(credentials.pid))?;
        Ok(Self { pidfd, credentials })
    }

    /// Its number.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.credentials.pid
    }

    /// Its user.
    #[must_use]
    pub const fn uid(&self) -> u32 {
        self.credentials.uid
    }

    /// Ends it by SIGKILL and waits at most `timeout` until it is gone; whether it is. It may be
    /// gone already.
    #[must_use]
    pub fn kill(&self, timeout: Duration) -> bool {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        let (call, pidfd) = (libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd());
        // SAFETY: the descriptor is an open pidfd; a null siginfo means "as kill(2)"; the call
        // touches no memory of ours. Its result is told by the wait below.
        unsafe { libc::syscall(call, pidfd, libc::SIGKILL, no_info, 0) };
        wait_readable([self.pidfd.as_fd()], Some(timeout)).is_ok_and(|[gone]| gone)
    }
}

fn peer_pidfd(socket: &SeqPacket) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let raw = socket.as_fd().as_raw_fd();
    let value = (&raw mut fd).cast();
    // SAFETY: `value` points to one c_int and `len` says so; both outlive the call.
    let done =
        unsafe { libc::getsockopt(raw, libc::SOL_SOCKET, SO_PEERPIDFD, value, &raw mut len) };
    own(if done == 0 { fd } else { -1 })
}

fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    own(i32::try_from(fd).unwrap_or(-1))
}

fn own(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, so it is open and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
