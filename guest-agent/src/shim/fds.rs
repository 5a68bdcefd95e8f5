//! Descriptors in messages (`SCM_RIGHTS`): how RAM, pool, userfaultfd and fault channels change
//! hands.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use super::seqpacket::{Received, SeqPacket};

/// What the kernel lets one message carry (`SCM_MAX_FD`). With room for all of them a message is
/// never cut in the middle of its descriptors, which would leak those that did arrive.
const MAX_FDS: usize = 253;

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
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok((Received::Closed, Vec::new())),
                result => break result?,
            }
        };
        let mut fds = Vec::new();
        for header in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = header {
                for fd in raw {
                    // SAFETY: the kernel has just installed this descriptor for this message, so it
                    // is open and nobody else owns it.
                    fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        let received = match message.bytes {
            0 => Received::Closed,
            len => Received::Message {
                len,
                truncated: len > capacity,
            },
        };
        Ok((received, fds))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

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
