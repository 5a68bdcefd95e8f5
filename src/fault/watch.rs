//! What a fault thread waits for.

use std::os::fd::{AsFd, BorrowedFd};

use memvisor_guest_agent::shim::SeqPacket;
use memvisor_guest_agent::system_error::cannot;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::ended::Ended;
use crate::engine::Link;
use crate::sys::Uffd;

/// The bell of the VM, when it was rung.
pub(super) const BELL: usize = 0;
/// The socket of the memory thread, when it is closed.
pub(super) const LINK: usize = 1;
/// The userfaultfd, when there are faults.
pub(super) const UFFD: usize = 2;
/// The first of the fault channels, when there is a message.
pub(super) const FIRST_CHANNEL: usize = 3;

/// Events taken from the kernel at once: more than one guest's descriptors.
const EVENTS: usize = 32;

/// The descriptors of one guest; who made it keeps them open.
#[derive(Debug)]
pub(super) struct Watch(Epoll);

impl Watch {
    /// Watches all of them.
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

    /// Waits until there is something to do, or for `timeout`; at which descriptors.
    pub(super) fn wait(
        &self,
        timeout: EpollTimeout,
    ) -> Result<impl Iterator<Item = usize> + use<>, Ended> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.0.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(cannot("wait for faults")(errno).into()),
        };
        let events = events.into_iter().take(count);
        Ok(events.map(|event| event.data() as usize))
    }
}
