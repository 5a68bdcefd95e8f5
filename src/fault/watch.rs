//! What a fault thread waits for.

use std::os::fd::{AsFd, BorrowedFd};

use memvisor_guest_agent::shim::SeqPacket;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::ended::{Ended, kernel};
use crate::engine::Link;
use crate::sys::Uffd;

const BELL: u64 = 0;
const LINK: u64 = 1;
const UFFD: u64 = 2;
const FIRST_CHANNEL: u64 = 3;

/// Events taken from the kernel at once: more than one guest's descriptors.
const EVENTS: usize = 32;

/// What there is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wakeup {
    /// The bell of the VM was rung.
    Bell,
    /// The socket of the memory thread is closed.
    HangUp,
    /// There are faults on the userfaultfd.
    Faults,
    /// There is a message on the channel of this number.
    Message(usize),
}

/// The descriptors of one guest; who made it keeps them open.
#[derive(Debug)]
pub(super) struct Watch(Epoll);

impl Watch {
    /// Watches all of them.
    pub(super) fn new(
        bell: Option<BorrowedFd<'_>>,
        link: &Link,
        uffd: Option<&Uffd>,
        sockets: &[SeqPacket],
    ) -> Result<Self, Ended> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(kernel("make an epoll"))?;
        let watch = |fd: BorrowedFd<'_>, flags, token| {
            epoll
                .add(fd, EpollEvent::new(flags, token))
                .map_err(kernel("watch a guest"))
        };
        if let Some(bell) = bell {
            watch(bell, EpollFlags::EPOLLIN, BELL)?;
        }
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

    /// Waits until there is something to do, or for `timeout`: then there is nothing.
    pub(super) fn wait(
        &self,
        timeout: EpollTimeout,
    ) -> Result<impl Iterator<Item = Wakeup> + use<>, Ended> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.0.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(kernel("wait for faults")(errno)),
        };
        Ok(events
            .into_iter()
            .take(count)
            .map(|event| wakeup_of(event.data())))
    }
}

fn wakeup_of(token: u64) -> Wakeup {
    match token {
        BELL => Wakeup::Bell,
        LINK => Wakeup::HangUp,
        UFFD => Wakeup::Faults,
        token => Wakeup::Message(usize::try_from(token - FIRST_CHANNEL).unwrap_or(usize::MAX)),
    }
}
