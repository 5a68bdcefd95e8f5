//! Descriptors in messages (`SCM_RIGHTS`): how RAM, pool, userfaultfd and fault channels change
//! hands.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, recvmsg, sendmsg};

use super::seqpacket::{Received, SeqPacket};

/// What the kernel lets one message carry (`SCM_MAX_FD`), so that there is always room for all of them.
/// Yet a process that may open no more descriptors gets only some.
const MAX_FDS: usize = 253;

impl From<OwnedFd> for SeqPacket {
    /// Takes over a descriptor that came in a message. If it is no such socket, every call says so.
    fn from(fd: OwnedFd) -> Self {
        Self::over(fd)
    }
}

impl SeqPacket {
    /// Sends one datagram with descriptors; the peer gets duplicates.
    ///
    /// # Errors
    /// What `sendmsg(2)` says.
    pub fn send_with_fds(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        loop {
            let iov = [IoSlice::new(message)];
            let socket = self.as_fd().as_raw_fd();
            match sendmsg::<UnixAddr>(socket, &iov, control, MsgFlags::MSG_NOSIGNAL, None) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop).map_err(io::Error::from),
            }
        }
    }

    /// Waits for one datagram and takes over the descriptors that came with it.
    ///
    /// # Errors
    /// What `recvmsg(2)` says.
    pub fn recv_with_fds(&self, into: &mut [u8]) -> io::Result<(Received, Vec<OwnedFd>)> {
        let capacity = into.len();
        let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
        let mut iov = [IoSliceMut::new(into)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_TRUNC;
        let socket = self.as_fd().as_raw_fd();
        let message = loop {
            match recvmsg::<UnixAddr>(socket, &mut iov, Some(&mut control), flags) {
                // A reset is said once, ahead of what the peer sent before it left.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                result => break result?,
            }
        };
        let (bytes, flags) = (message.bytes, message.flags);
        let fds = take_over(&control);
        if flags.contains(MsgFlags::MSG_CTRUNC) {
            let error = "a message was cut off: this process can hold no more descriptors";
            return Err(io::Error::other(error));
        }
        Ok((Received::of(bytes, capacity), fds))
    }
}

/// Takes over the descriptors that the kernel has told of in `control`, which was zero before: also those
/// of a message that was cut off, which `nix` does not name.
fn take_over(control: &[u8]) -> Vec<OwnedFd> {
    const WORD: usize = size_of::<usize>();
    let rights = [Some(libc::SOL_SOCKET), Some(libc::SCM_RIGHTS)];
    let mut fds = Vec::new();
    let mut rest = control;
    // As `cmsghdr`: a word, the length of all; level and type; then here descriptors.
    while let Some((word, _)) = rest.split_first_chunk() {
        let len = usize::from_ne_bytes(*word);
        let (numbers, _) = rest.get(WORD..len).unwrap_or_default().as_chunks();
        let mut numbers = numbers.iter().map(|bytes| RawFd::from_ne_bytes(*bytes));
        if [numbers.next(), numbers.next()] == rights {
            for fd in numbers {
                // SAFETY: the kernel has just installed this descriptor for this message, so it is open
                // and nobody else owns it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        if len < WORD {
            break;
        }
        rest = rest.get(len.next_multiple_of(WORD)..).unwrap_or_default();
    }
    fds
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;

    #[test]
    fn descriptors_arrive_open_and_in_order() {
        let (one, other) = SeqPacket::pair().unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        one.send_with_fds(b"two", &[writer.as_fd(), null.as_fd()])
            .unwrap();
        writer.write_all(b"a").unwrap();
        drop(writer);

        let mut buffer = [0; 16];
        let (received, mut fds) = other.recv_with_fds(&mut buffer).unwrap();
        assert_eq!(
            received,
            Received::Message {
                len: 3,
                truncated: false
            }
        );
        assert_eq!(fds.len(), 2);
        File::from(fds.remove(0)).write_all(b"b").unwrap();

        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ab", "the last writer is closed, so the pipe ended");
    }

    /// Where descriptors are short, or as here something else comes with them, not all of them fit.
    #[test]
    fn descriptors_of_a_message_that_is_cut_off_are_closed() {
        let (one, other) = SeqPacket::pair().unwrap();
        setsockopt(&other, sockopt::PassCred, &true).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let pipe = std::fs::read_link(format!("/proc/self/fd/{}", reader.as_raw_fd())).unwrap();
        let open = || {
            let all = std::fs::read_dir("/proc/self/fd").unwrap();
            let links = all.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
            links.filter(|link| *link == pipe).count()
        };
        assert_eq!(open(), 2);
        one.send_with_fds(b"many", &[writer.as_fd(); MAX_FDS])
            .unwrap();
        let received = other.recv_with_fds(&mut [0; 16]);
        assert_eq!(open(), 2, "some of {MAX_FDS} stay open");
        let error = received.unwrap_err();
        assert!(error.to_string().contains("cut off"), "{error}");
    }

    #[test]
    fn message_without_descriptors_has_none() {
        let (one, other) = SeqPacket::pair().unwrap();
        one.send_with_fds(b"plain", &[]).unwrap();
        let (_, fds) = other.recv_with_fds(&mut [0; 16]).unwrap();
        assert!(fds.is_empty());
        drop(one);
        let (received, _) = other.recv_with_fds(&mut [0; 16]).unwrap();
        assert_eq!(received, Received::Closed);
    }
}
