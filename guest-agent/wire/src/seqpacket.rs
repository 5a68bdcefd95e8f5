//! Unix sockets that keep message boundaries.
//!
//! Both protocols send each message as one datagram over `SOCK_SEQPACKET`. A byte stream would need
//! framing, and a peer that lied about a length would then be out of step for ever. Here the kernel
//! keeps the boundaries, delivers in order, and says when the peer is gone.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::AT_FDCWD;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, bind, connect,
    getsockopt, listen, recv, send, setsockopt, socket, socketpair, sockopt,
};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use nix::sys::time::{TimeSpec, TimeVal};

/// The longest timeout that is set, because the kernel's timeouts have a limited range.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// What [`SeqPacket::recv`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A datagram.
    Message {
        /// The length that the peer sent. A shorter buffer holds only the beginning of the datagram.
        len: usize,
    },
    /// The peer has closed its end. The kernel reports an empty datagram in the same way, so an
    /// empty datagram ends a connection too; no message of ours is empty.
    Closed,
}

impl Received {
    pub(super) const fn of(len: usize) -> Self {
        match len {
            // No message of either protocol is empty, so nothing but the end has this length.
            0 => Self::Closed,
            len => Self::Message { len },
        }
    }
}

/// One end of a connection. Every call is safe from several threads at once.
#[derive(Debug)]
pub struct SeqPacket(OwnedFd);

impl SeqPacket {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// What `connect(2)` says, with the path: nobody listens, or the path is too long (107 bytes).
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = new_socket(SockType::SeqPacket)?;
        retry(|| connect(fd.as_raw_fd(), &UnixAddr::new(path)?))
            .map_err(|error| at_path(&error, "connect to", path))?;
        Ok(Self(fd))
    }

    /// Two connected ends.
    ///
    /// # Errors
    /// What `socketpair(2)` says: no descriptors left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (one, other) = socketpair(AddressFamily::Unix, kind, None, flags)?;
        Ok((Self(one), Self(other)))
    }

    /// Sends one datagram; waits while the peer's queue is full.
    ///
    /// # Errors
    /// `BrokenPipe` when the peer is gone; `WouldBlock` when a [send
    /// timeout](Self::set_send_timeout) passed; what else `send(2)` says.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        self.send_with(message, MsgFlags::empty())
    }

    /// As [`send`](Self::send), but never waits.
    ///
    /// # Errors
    /// `WouldBlock` when the peer's queue is full; else as [`send`](Self::send).
    pub fn try_send(&self, message: &[u8]) -> io::Result<()> {
        self.send_with(message, MsgFlags::MSG_DONTWAIT)
    }

    fn send_with(&self, message: &[u8], flags: MsgFlags) -> io::Result<()> {
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        retry(|| send(self.0.as_raw_fd(), message, flags)).map(drop)
    }

    /// Bounds how long [`send`](Self::send) waits for a peer that does not read.
    ///
    /// # Errors
    /// What `setsockopt(2)` says.
    pub fn set_send_timeout(&self, timeout: Duration) -> io::Result<()> {
        // The kernel reads zero as "for ever".
        let timeout = timeout.clamp(Duration::from_micros(1), MAX_TIMEOUT);
        let timeout = TimeVal::new(timeout.as_secs() as i64, timeout.subsec_micros().into());
        Ok(setsockopt(&self.0, sockopt::SendTimeout, &timeout)?)
    }

    /// Waits for one datagram and puts it at the start of `into`.
    ///
    /// # Errors
    /// What `recv(2)` says. A peer that has left is no error: [`Received::Closed`] comes after all that it has sent.
    pub fn recv(&self, into: &mut [u8]) -> io::Result<Received> {
        self.recv_with(into, MsgFlags::empty())
    }

    /// As [`recv`](Self::recv), but never waits; `None` when nothing has come.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn try_recv(&self, into: &mut [u8]) -> io::Result<Option<Received>> {
        match self.recv_with(into, MsgFlags::MSG_DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            received => received.map(Some),
        }
    }

    fn recv_with(&self, into: &mut [u8], flags: MsgFlags) -> io::Result<Received> {
        // TRUNC makes the kernel return the true length of a datagram that did not fit.
        let flags = flags | MsgFlags::MSG_TRUNC;
        retry(|| recv(self.0.as_raw_fd(), into, flags)).map(Received::of)
    }

    /// As [`recv`](Self::recv), but waits at most `timeout`; `None` when nothing came.
    ///
    /// # Errors
    /// What `ppoll(2)` or `recv(2)` says.
    pub fn recv_timeout(&self, into: &mut [u8], timeout: Duration) -> io::Result<Option<Received>> {
        match wait_readable([self.as_fd()], Some(timeout))? {
            [true] => self.recv(into).map(Some),
            [false] => Ok(None),
        }
    }

    /// The process at the other end, for which the kernel vouches: it was recorded when the ends were connected.
    ///
    /// # Errors
    /// What `getsockopt(2)` says.
    pub fn peer(&self) -> io::Result<UnixCredentials> {
        Ok(getsockopt(&self.0, sockopt::PeerCredentials)?)
    }
}

impl From<OwnedFd> for SeqPacket {
    /// Takes over a descriptor that came in a message. If it is no such socket, every call returns an error.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket that others connect to. Its path is removed when it is dropped.
#[derive(Debug)]
pub struct SeqPacketListener {
    listener: UnixListener,
    path: PathBuf,
}

impl SeqPacketListener {
    /// [`listen_privately`] at `path`.
    ///
    /// # Errors
    /// What `bind(2)` says, with the path.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = listen_privately(path, SockType::SeqPacket)?;
        let path = path.to_owned();
        Ok(Self { listener, path })
    }

    /// Waits for the next connection. To wait for other things as well, call [`wait_readable`] first.
    ///
    /// # Errors
    /// What `accept(2)` says: no descriptors left.
    pub fn accept(&self) -> io::Result<SeqPacket> {
        // Not nix: its `accept` hands out a descriptor without an owner.
        let (accepted, _) = self.listener.accept()?;
        Ok(SeqPacket(accepted.into()))
    }
}

/// Listens at `path`, where only this user can connect. `path` must not exist: only the owner of the directory knows
/// whether a socket that was left there is stale.
///
/// `bind` gives the path the mode of the descriptor, less the bits of the umask. The umask belongs to the whole process
/// and may have any value. So the descriptor's mode is set first, and the path never allows more than that. Afterwards
/// the path gets back those bits of the user that the umask has taken away.
///
/// # Errors
/// What `bind(2)` and `chmod(2)` say, with the path.
pub fn listen_privately(path: &Path, kind: SockType) -> io::Result<UnixListener> {
    let private = Mode::S_IRUSR | Mode::S_IWUSR;
    let fd = new_socket(kind)?;
    fchmod(&fd, private)?;
    UnixAddr::new(path)
        .and_then(|addr| bind(fd.as_raw_fd(), &addr))
        .and_then(|()| fchmodat(AT_FDCWD, path, private, FchmodatFlags::FollowSymlink))
        .map_err(|errno| at_path(&errno.into(), "listen at", path))?;
    listen(&fd, Backlog::MAXALLOWABLE)?;
    Ok(fd.into())
}

impl AsFd for SeqPacketListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for SeqPacketListener {
    fn drop(&mut self) {
        // Ignored: somebody may have cleaned the directory already, and there is nobody to tell.
        let _ = fs::remove_file(&self.path);
    }
}

/// Waits until one of `fds` can be read without blocking or its peer is gone, and returns which ones.
/// All are `false` when `timeout` passed first; `None` waits for ever.
///
/// # Errors
/// What `ppoll(2)` says. An interrupted wait is continued.
pub fn wait_readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut polled = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    retry(|| {
        // Reckoned anew each time, because a signal that ends the wait must not make it longer.
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        ppoll(&mut polled, left.map(TimeSpec::from), None)
    })?;
    // A hang-up or an error counts too: the caller learns of it when it reads. `None` stands for an event that nix does
    // not know.
    Ok(polled.map(|fd| fd.any() != Some(false)))
}

/// Makes `call` again after a signal, and after ECONNRESET, by which the kernel says once that the peer has left with
/// messages unread. A call that receives then gets what the peer sent before it left, and one that sends gets EPIPE.
/// Async-signal-safe if `call` is.
pub(super) fn retry<T, E: Into<io::Error>>(
    mut call: impl FnMut() -> Result<T, E>,
) -> io::Result<T> {
    const PASSING: [io::ErrorKind; 2] =
        [io::ErrorKind::Interrupted, io::ErrorKind::ConnectionReset];
    loop {
        match call().map_err(Into::into) {
            Err(error) if PASSING.contains(&error.kind()) => {}
            done => return done,
        }
    }
}

fn new_socket(kind: SockType) -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)
}

fn at_path(error: &io::Error, what: &str, path: &Path) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot {what} {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    #[test]
    fn recv_keeps_boundaries_and_reports_the_true_length() {
        let (one, other) = SeqPacket::pair().unwrap();
        one.send(b"first").unwrap();
        one.send(b"the second").unwrap();

        let mut buffer = [0; 6];
        assert_eq!(
            other.recv(&mut buffer).unwrap(),
            Received::Message { len: 5 }
        );
        assert_eq!(&buffer[..5], b"first");
        assert_eq!(
            other.recv(&mut buffer).unwrap(),
            Received::Message { len: 10 }
        );
        assert_eq!(&buffer, b"the se");
    }

    #[test]
    fn recv_after_the_peer_left_is_closed() {
        let (one, other) = SeqPacket::pair().unwrap();
        other.send(b"never read").unwrap();
        drop(one);

        for _ in 0..2 {
            let error = other.send(b"more").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
        assert_eq!(other.recv(&mut [0; 6]).unwrap(), Received::Closed);
    }

    #[test]
    fn last_words_of_a_peer_that_left_with_messages_unread_are_heard() {
        let receive: [fn(&SeqPacket) -> Received; 2] = [
            |socket| socket.recv(&mut [0; 6]).unwrap(),
            |socket| socket.recv_with_fds(&mut [0; 6]).unwrap().0,
        ];
        for receive in receive {
            let (one, other) = SeqPacket::pair().unwrap();
            other.send(b"never read").unwrap();
            one.send(b"why").unwrap();
            drop(one);
            assert_eq!(receive(&other), Received::Message { len: 3 });
            assert_eq!(receive(&other), Received::Closed);
        }
    }

    #[test]
    fn recv_timeout_without_a_message_is_none() {
        let (one, other) = SeqPacket::pair().unwrap();
        let mut buffer = [0; 6];
        assert_eq!(other.recv_timeout(&mut buffer, SHORT).unwrap(), None);
        one.send(b"now").unwrap();
        assert!(other.recv_timeout(&mut buffer, SHORT).unwrap().is_some());
    }

    #[test]
    fn try_calls_never_wait() {
        let (one, other) = SeqPacket::pair().unwrap();
        let mut buffer = [0; 6];
        assert_eq!(other.try_recv(&mut buffer).unwrap(), None);
        let error = loop {
            if let Err(error) = one.try_send(&[7; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(other.try_recv(&mut buffer).unwrap().is_some());
        drop(other);
        let error = one.try_send(b"more").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(one.try_recv(&mut buffer).unwrap(), Some(Received::Closed));
    }

    #[test]
    fn send_to_a_peer_that_does_not_read_times_out() {
        let (one, _other) = SeqPacket::pair().unwrap();
        one.set_send_timeout(SHORT).unwrap();
        let error = std::iter::repeat_with(|| one.send(&[7; 4096]))
            .find_map(Result::err)
            .expect("the queue of a socket is finite");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn listener_accepts_names_the_peer_and_removes_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("balloon.sock");
        let listener = SeqPacketListener::bind(&path).unwrap();
        let taken = SeqPacketListener::bind(&path).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert!(taken.to_string().contains("balloon.sock"), "{taken}");

        let client = SeqPacket::connect(&path).unwrap();
        let server = listener.accept().unwrap();
        assert_eq!(server.peer().unwrap().pid(), nix::unistd::getpid().as_raw());
        client.send(b"hello").unwrap();
        assert!(server.recv_timeout(&mut [0; 8], SHORT).unwrap().is_some());

        drop(listener);
        assert!(!path.exists());
        let error = SeqPacket::connect(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    /// The umask belongs to the whole process, so each umask is tried in a process of its own.
    #[test]
    fn sockets_are_private_whatever_the_umask() {
        const WHERE: &str = "MEMVISOR_TEST_SOCKET_DIR";
        if let Some(dir) = std::env::var_os(WHERE) {
            let path = Path::new(&dir).join("socket");
            let fd = listen_privately(&path, SockType::Stream).unwrap();
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            drop(fd);
            return;
        }
        for umask in ["0000", "0022", "0177", "0777"] {
            let dir = tempfile::tempdir().unwrap();
            let test = "seqpacket::tests::sockets_are_private_whatever_the_umask";
            let script = format!("umask {umask} && exec \"$0\" --exact {test}");
            let output = Command::new("sh")
                .args(["-c", &script])
                .arg(std::env::current_exe().unwrap())
                .env(WHERE, dir.path())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && text.contains("1 passed"),
                "{umask}: {text}"
            );
        }
    }

    #[test]
    fn wait_readable_says_which_one() {
        let (one, other) = SeqPacket::pair().unwrap();
        let (_idle, quiet) = SeqPacket::pair().unwrap();
        one.send(b"x").unwrap();
        let ready = wait_readable([quiet.as_fd(), other.as_fd()], None).unwrap();
        assert_eq!(ready, [false, true]);
    }
}
