//! What a fault thread waits for.

use std::os::fd::{AsFd, BorrowedFd};

use memvisor_wire::SeqPacket;
use memvisor_wire::system_error::cannot;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::ended::Ended;
use crate::engine::Link;
use crate::sys::Uffd;

/// The bell of the VM rang.
pub(super) const BELL: usize = 0;
/// The socket of the memory thread is closed.
pub(super) const LINK: usize = 1;
/// There are faults on the userfaultfd.
pub(super) const UFFD: usize = 2;
/// There is a message on the first fault channel; the numbers of the other channels follow.
pub(super) const FIRST_CHANNEL: usize = 3;

/// Events taken from the kernel at once: more than a guest has descriptors.
const EVENTS: usize = 32;

/// An epoll over the descriptors of one guest. Its owner keeps them open.
#[derive(Debug)]
pub(super) struct Watch(Epoll);

impl Watch {
    /// Watches all descriptors of a guest.
    pub(super) fn new(
        bell: BorrowedFd<'_>,
        link: &Link,
        uffd: Option<&Uffd>,
        sockets: &[SeqPacket],
    ) -> Result<Self, Ended> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(cannot("make an epoll"))?;
        let watch = |fd: BorrowedFd<'_>, flags, token| {
            epoll
                .add(fd, EpollEvent::new(flags, token as u64))
                .map_err(cannot("watch a guest"))
        };
        watch(bell, EpollFlags::EPOLLIN, BELL)?;
        // The worker reads the answers on this socket; here only its end is of interest.
        watch(link.as_fd(), EpollFlags::EPOLLRDHUP, LINK)?;
        if let Some(uffd) = uffd {
            watch(uffd.as_fd(), EpollFlags::EPOLLIN, UFFD)?;
        }
        for (token, socket) in (FIRST_CHANNEL..).zip(sockets) {
            watch(socket.as_fd(), EpollFlags::EPOLLIN, token)?;
        }
        Ok(Self(epoll))
    }

    /// Waits until there is something to do, or for `timeout`, and returns the descriptors by the numbers above.
    pub(super) fn wait(
        &self,
        timeout: EpollTimeout,
    ) -> Result<impl Iterator<Item = usize> + use<>, Ended> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.0.wait(&mut events, timeout) {
            Ok(count) => count,
            // As if the time had passed: the caller does what is due, and waits again.
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(cannot("wait for faults")(errno).into()),
        };
        let events = events.into_iter().take(count);
        Ok(events.map(|event| event.data() as usize))
    }
}
