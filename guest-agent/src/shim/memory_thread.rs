//! The memory thread: executes the daemon's remap commands, one at a time, and acknowledges them.
//!
//! It never touches guest RAM: a page that it touched might wait for this very thread.

use std::io;
use std::os::fd::OwnedFd;

use memvisor_wire::memory::{Ack, MAX_MESSAGE, Message};
use memvisor_wire::{DecodeError, Received, SeqPacket};

use super::mapping::execute;
use super::ram::RamMap;

/// Why the session with the daemon ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionEnd {
    /// The daemon closed the connection or died.
    #[error("the host closed the session")]
    Closed,
    /// The daemon said why it ends the session.
    #[error("the host ended the session: {0}")]
    Ended(String),
    /// The daemon sent a message that breaks the format.
    #[error("the host sent a message that cannot be understood")]
    Message(#[source] DecodeError),
    /// The daemon sent a message at the wrong time or without what belongs to it.
    #[error("the host sent {got} where {wanted} is expected")]
    Order {
        /// What came.
        got: &'static str,
        /// What should have come.
        wanted: &'static str,
    },
    /// The socket failed.
    #[error("the socket to the host failed")]
    Socket(#[source] io::Error),
}

/// The end of a session in which `got` came where `wanted` was due.
pub(super) const fn order(got: &'static str, wanted: &'static str) -> SessionEnd {
    SessionEnd::Order { got, wanted }
}

/// Serves commands until the session ends.
pub(super) fn run(socket: &SeqPacket, map: &RamMap) -> SessionEnd {
    let wanted = "COMMAND or POOL";
    loop {
        let ack = match receive(socket) {
            Ok((Message::Command(command), _)) => execute(map, &command),
            Ok((Message::Pool { seq }, mut fds)) => {
                let Some(pool) = fds.pop() else {
                    return order("POOL without a descriptor", wanted);
                };
                map.set_pool(pool);
                Ack::of(seq)
            }
            Ok((other, _)) => return order(other.name(), wanted),
            Err(end) => return end,
        };
        // A host that hangs up during a command may have said why. So a broken pipe is not the end
        // yet: the next receive returns the host's last message, or says that there is none.
        if let Err(error) = socket.send(&Message::Ack(ack).encode())
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            return SessionEnd::Socket(error);
        }
    }
}

/// Waits for one message of the connection, and the descriptors that come with it. An ERROR of the daemon ends the
/// session.
pub(super) fn receive(socket: &SeqPacket) -> Result<(Message, Vec<OwnedFd>), SessionEnd> {
    let mut buffer = [0; MAX_MESSAGE];
    let (received, fds) = socket
        .recv_with_fds(&mut buffer)
        .map_err(SessionEnd::Socket)?;
    let Received::Message { len } = received else {
        return Err(SessionEnd::Closed);
    };
    // `len` is what the daemon sent: a message that was cut is longer than the buffer, and does not decode.
    match Message::decode(&buffer[..len.min(MAX_MESSAGE)]) {
        Ok(Message::Error(text)) => Err(SessionEnd::Ended(text)),
        message => Ok((message.map_err(SessionEnd::Message)?, fds)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};

    use memvisor_wire::memory::{Command, Op};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::socket::{Shutdown, shutdown};

    use super::*;

    /// Why the session ends for a shim whose host gives a command, says `last`, if anything, and hangs up before the
    /// command is acknowledged.
    fn after_unanswered_command(last: Option<&Message>) -> SessionEnd {
        let file = || {
            let fd = memfd_create(c"ram", MFdFlags::MFD_CLOEXEC).expect("a file");
            nix::unistd::ftruncate(&fd, 1 << 20).expect("it grows");
            fd
        };
        let map = RamMap::new(4, 4, file(), file(), None).expect("a mapping");
        let (host, guest) = SeqPacket::pair().expect("a pair");
        let command = Command {
            seq: 0,
            op: Op::Freeze,
            runs: Vec::new(),
        };
        let first = Message::Command(command);
        for message in [Some(&first), last].into_iter().flatten() {
            host.send(&message.encode()).expect("send");
        }
        shutdown(host.as_fd().as_raw_fd(), Shutdown::Both).expect("hang up");
        run(&guest, &map)
    }

    #[test]
    fn last_words_of_a_host_that_hangs_up_on_a_command_are_heard() {
        let last = Message::Error("the host shuts down".to_owned());
        let end = after_unanswered_command(Some(&last));
        assert!(
            matches!(&end, SessionEnd::Ended(why) if why == "the host shuts down"),
            "{end}"
        );
        let end = after_unanswered_command(None);
        assert!(matches!(end, SessionEnd::Closed), "{end}");
    }
}
