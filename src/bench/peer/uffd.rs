//! The least that a fault can cost with userfaultfd: a loop that answers each fault by copying the same page.
//! There is no page table, no accounting and no store; the guest is an ordinary one.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use memvisor_wire::memory::{Engine, MAX_MESSAGE, Message, Welcome};
use memvisor_wire::{Doorbell, Received, SeqPacket, SeqPacketListener, wait_readable};

use super::super::driven::{DrivenGuest, DrivenOptions};
use super::super::{BenchError, Setup};
use crate::sys::{Memfd, Uffd};
use crate::units::PageBuf;

/// A guest and the loop that serves it.
#[derive(Debug)]
pub(crate) struct BareUffd {
    driven: DrivenGuest,
    bell: Arc<Doorbell>,
    thread: JoinHandle<io::Result<()>>,
}

impl BareUffd {
    /// Starts both.
    pub(crate) fn start(setup: &Setup<'_>, pages: u32) -> Result<Self, BenchError> {
        let io = BenchError::io("serve a guest with a bare userfaultfd");
        let path = setup.subdirectory("uffd")?.join("bare.sock");
        // A round before may have left it.
        let _ = std::fs::remove_file(&path);
        let listener = SeqPacketListener::bind(&path).map_err(&io)?;
        let bell = Arc::new(Doorbell::new().map_err(&io)?);
        let stop = Arc::clone(&bell);
        let serve = move || serve(&listener, pages, &stop);
        let builder = thread::Builder::new().name("bare-uffd".to_owned());
        let thread = builder.spawn(serve).map_err(&io)?;
        // The thread waits for a guest, and would wait for ever for one that did not start.
        let driven = Self::guest(setup, &path, pages).inspect_err(|_| bell.ring())?;
        Ok(Self {
            driven,
            bell,
            thread,
        })
    }

    fn guest(setup: &Setup<'_>, path: &Path, pages: u32) -> Result<DrivenGuest, BenchError> {
        let options = DrivenOptions {
            name: "bare".to_owned(),
            pages,
            memory_socket: path.to_owned(),
            inline: false,
        };
        DrivenGuest::start(&setup.program, &options)
    }

    pub(crate) const fn driven(&mut self) -> &mut DrivenGuest {
        &mut self.driven
    }

    /// Ends both.
    pub(crate) fn stop(self) -> Result<(), BenchError> {
        // The guest first: it could wait for a page that nobody brings any more.
        drop(self.driven);
        self.bell.ring();
        let served = self
            .thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("it panicked")));
        served.map_err(BenchError::io("serve a guest with a bare userfaultfd"))
    }
}

fn serve(listener: &SeqPacketListener, pages: u32, stop: &Doorbell) -> io::Result<()> {
    let [told, _] = wait_readable([stop.as_fd(), listener.as_fd()], None)?;
    if told {
        return Ok(());
    }
    let socket = listener.accept()?;
    let (uffd, _channels) = handshake(&socket, pages)?;
    let page = PageBuf([0x5a; crate::units::PAGE_SIZE]);
    let mut faults = Vec::new();
    loop {
        let [told, _] = wait_readable([stop.as_fd(), uffd.as_fd()], None)?;
        if told {
            return Ok(());
        }
        uffd.read_faults(&mut faults)?;
        for fault in faults.drain(..) {
            uffd.copy(fault.address & !(crate::units::PAGE_SIZE as u64 - 1), &page)?;
        }
    }
}

/// The daemon's side of a power-on, for a guest that can be trusted. The fault channels are kept open and never used.
fn handshake(socket: &SeqPacket, pages: u32) -> io::Result<(Uffd, Vec<SeqPacket>)> {
    let mut buffer = [0; MAX_MESSAGE];
    let wrong = |what: &str| io::Error::other(format!("{what} of a guest is not as expected"));
    socket.recv_with_fds(&mut buffer)?;
    let ram = Memfd::create("memvisor-bench-bare", pages)?;
    let pool = Memfd::create("memvisor-bench-pool", 1)?;
    let pool_fd = pool.read_only()?;
    let welcome = Message::Welcome(Welcome {
        vm: 1,
        engine: Engine::Uffd,
        token: 0,
        pool_frames: 1,
        arena_pages: None,
    });
    socket.send_with_fds(&welcome.encode(), &[ram.as_fd(), pool_fd.as_fd()])?;
    let (received, mut fds) = socket.recv_with_fds(&mut buffer)?;
    let Received::Message { len } = received else {
        return Err(wrong("READY"));
    };
    let (Ok(Message::Ready(ready)), false) = (
        Message::decode(&buffer[..len.min(MAX_MESSAGE)]),
        fds.is_empty(),
    ) else {
        return Err(wrong("READY"));
    };
    let uffd = Uffd::from_guest(fds.swap_remove(0))?;
    let pairs: io::Result<Vec<_>> = (0..ready.channels).map(|_| SeqPacket::pair()).collect();
    let (ours, theirs): (Vec<_>, Vec<_>) = pairs?.into_iter().unzip();
    let theirs: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
    socket.send_with_fds(&Message::Go.encode(), &theirs)?;
    Ok((uffd, ours))
}
