//! Descriptors in messages (`SCM_RIGHTS`): how RAM, pool, userfaultfd and fault channels change
//! hands.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::cmsg_space;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use crate::seqpacket::{Received, SeqPacket, retry};

/// The most descriptors that the kernel lets one message carry (`SCM_MAX_FD`), so the buffer always has room for all.
/// Yet a process at its limit of open descriptors receives only some of them.
const MAX_FDS: usize = 253;
const CONTROL_BYTES: usize = cmsg_space!(ScmRights(MAX_FDS));

impl SeqPacket {
    /// Sends one datagram with descriptors; the peer gets duplicates.
    ///
    /// # Errors
    /// `InvalidInput` when there are too many descriptors; what else `sendmsg(2)` says.
    pub fn send_with_fds(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let (iov, control) = ([IoSlice::new(message)], [ControlMessage::ScmRights(&fds)]);
        let (to, flags) = (self.as_fd().as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
        retry(|| sendmsg::<()>(to, &iov, &control, flags, None)).map(drop)
    }

    /// Waits for one datagram and takes over the descriptors that came with it.
    ///
    /// # Errors
    /// What `recvmsg(2)` says.
    pub fn recv_with_fds(&self, into: &mut [u8]) -> io::Result<(Received, Vec<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(into)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::TRUNC;
        let message = retry(|| recvmsg(self, &mut iov, &mut control, flags))?;
        // An error, because descriptors are told apart by their order: with some missing, one would be taken for
        // another.
        if message.flags.contains(ReturnFlags::CTRUNC) {
            let error = "a message was cut off: this process can hold no more descriptors";
            return Err(io::Error::other(error));
        }
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds = rights.flatten().collect();
        Ok((Received::of(message.bytes), fds))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, AsRawFd};

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
        assert_eq!(received, Received::Message { len: 3 });
        assert_eq!(fds.len(), 2);
        File::from(fds.remove(0)).write_all(b"b").unwrap();

        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ab", "the last writer is closed, so the pipe ended");
    }

    /// Not all descriptors arrive if the process may open no more, or if other control data comes with them, as here.
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
