//! Power-on: the handshake with the daemon, which ends with RAM mapped.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use memvisor_wire::memory::{
    Engine, Fault, Hello, MAX_ATTACH, MAX_CHANNELS, MAX_REPORT, Message, Ready, Reply, Welcome,
};
use memvisor_wire::sys::{SharedTable, uffd};
use memvisor_wire::system_error::{SystemError, cannot};
use memvisor_wire::{Gfn, GfnRun, SeqPacket, privacy};
use thiserror::Error;

use super::Memory;
use super::channels::Channels;
use super::inline::Inline;
use super::memory_thread::{self, SessionEnd, order};
use super::ram::RamMap;
use super::segv::{self, Hardware};
use super::table::map_table;

/// Why a guest could not be powered on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PowerOnError {
    /// No daemon listens.
    #[error("no host answers; start one with `memvisor host`")]
    Connect(#[source] io::Error),
    /// The daemon refused the guest or ended the handshake.
    #[error("power-on failed")]
    Session(#[from] SessionEnd),
    /// A daemon listens but says nothing: it is stopped or hangs.
    #[error("the host does not answer: nothing came within {0:?}")]
    Silent(Duration),
    /// A signal came before the daemon's answer.
    #[error("interrupted while the host did not answer")]
    Interrupted,
    /// The kernel denied something the guest needs.
    #[error(transparent)]
    Kernel(#[from] SystemError),
}

/// Guest RAM, backed by the host. Cheap to copy; lives as long as the process.
#[derive(Clone, Copy, Debug)]
pub struct Ram(&'static Hardware);

impl Memory for Ram {
    fn pages(&self) -> u32 {
        self.0.map.linear.pages()
    }

    fn read(&self, gfn: Gfn, at: usize, into: &mut [u8]) {
        self.0.map.linear.read(gfn, at, into);
    }

    fn write(&self, gfn: Gfn, at: usize, from: &[u8]) {
        self.0.map.linear.write(gfn, at, from);
    }

    fn attach(&self, pages: GfnRun, source: Gfn) -> u32 {
        let one = &self.0.attaching;
        let _one = one.lock().unwrap_or_else(PoisonError::into_inner);
        let mut attached = 0;
        while attached < pages.count {
            let part = (pages.count - attached).min(MAX_ATTACH);
            let at = |gfn: Gfn| Gfn(gfn.0.saturating_add(attached));
            let (pages, source) = (GfnRun::new(at(pages.start), part), at(source));
            let question = Fault::Attach { pages, source };
            let Some(Reply::Attached(got)) = self.0.channels.take().ask(question) else {
                // The daemon is gone, which the memory thread will report.
                break;
            };
            attached += got.min(part);
            // The host attaches up to the first page that it cannot, so the parts behind it are not worth asking for.
            if got < part {
                break;
            }
        }
        attached
    }
}

impl Ram {
    /// The homes that `gfn` has had lately, as the daemon remembers them. A guest that found wrong bytes
    /// asks for them. `None` when the daemon is gone.
    #[must_use]
    pub fn history(&self, gfn: Gfn) -> Option<String> {
        let mut text = [0; MAX_REPORT];
        let channel = self.0.channels.take();
        let text = channel.ask_into(Fault::History(gfn), &mut text)?;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// A guest that is powered on.
#[derive(Debug)]
pub struct PoweredOn {
    /// Its RAM.
    pub ram: Ram,
    /// What the daemon said about the guest.
    pub welcome: Welcome,
    socket: SeqPacket,
}

/// Powers a guest on: connects to the daemon at `memory_socket` and maps RAM.
///
/// `Hello::uffd` is set here. Before each message of the daemon, `wait` is called with the socket; it must wait until
/// the socket is readable, or fail. Once this function has returned, threads may touch RAM, provided that
/// [`PoweredOn::serve`] runs in a thread of its own.
///
/// # Errors
/// [`PowerOnError`]: no daemon, refused (the daemon's reason is the source), or the kernel's reason.
pub fn power_on(
    memory_socket: &Path,
    mut hello: Hello,
    wait: impl Fn(BorrowedFd<'_>) -> Result<(), PowerOnError>,
) -> Result<PoweredOn, PowerOnError> {
    // Ignored: without /proc a core dump holds RAM too, but that is no reason not to power on.
    let _ = privacy::keep_out_of_dumps();
    let socket = SeqPacket::connect(memory_socket).map_err(PowerOnError::Connect)?;
    // Opened before HELLO, which must say whether this kernel and this user can.
    let uffd = uffd::open();
    hello.uffd = uffd.is_ok();
    let pages = hello.pages;
    socket
        .send(&Message::Hello(hello).encode())
        .map_err(cannot("send HELLO"))?;
    wait(socket.as_fd())?;
    let (welcome, fds) = welcome(&socket)?;
    // Not earlier: a daemon of the same user must first open what it reads of this process, and it has done so before
    // it sends WELCOME.
    privacy::close_to_others().map_err(cannot("close this process to others"))?;
    let mut fds = fds.into_iter();
    let (Some(ram), Some(pool)) = (fds.next(), fds.next()) else {
        return Err(NO_FDS.into());
    };
    let inline = inline(pages, &welcome, fds.collect())?;
    let uffd = match (welcome.engine, &inline) {
        (Engine::Uffd, None) => Some(uffd),
        // Another descriptor: features are negotiated once, and only WELCOME says that faults shall be signals.
        (Engine::Uffd, Some(_)) => Some(uffd::open_for_signals()),
        (Engine::Mprotect, _) => None,
    };
    let uffd = uffd.transpose().map_err(cannot("open a userfaultfd"))?;
    let map = RamMap::new(pages, welcome.pool_frames, ram, pool, uffd).map_err(cannot(
        "map guest RAM (is the guest larger than the address space?)",
    ))?;
    let ready = Ready {
        base: map.linear.address(Gfn(0)) as u64,
        channels: MAX_CHANNELS as u16,
    };
    let fds: Vec<_> = map.uffd().into_iter().collect();
    socket
        .send_with_fds(&Message::Ready(ready).encode(), &fds)
        .map_err(cannot("send READY"))?;
    wait(socket.as_fd())?;
    // After GO, which brings the channels over which the handler asks. No thread touches RAM before.
    let hardware = segv::install(Hardware {
        map,
        channels: go(&socket)?,
        attaching: Mutex::default(),
        inline,
    })
    .map_err(cannot("handle SIGSEGV"))?;
    Ok(PoweredOn {
        ram: Ram(hardware),
        welcome,
        socket,
    })
}

/// Receives the answer to READY, with the fault channels.
fn go(socket: &SeqPacket) -> Result<Channels, SessionEnd> {
    match memory_thread::receive(socket)? {
        (Message::Go, fds) => Channels::over(fds).ok_or(order(
            "GO with another number of descriptors",
            "GO with the fault channels",
        )),
        (other, _) => Err(order(other.name(), "GO")),
    }
}

const NO_FDS: SessionEnd = order(
    "WELCOME with another number of descriptors",
    "WELCOME with RAM and pool, and for an inline guest claim table, arena and swap file",
);

/// What the threads of the guest may do by themselves, if the daemon lets them.
fn inline(
    pages: u32,
    welcome: &Welcome,
    shared: Vec<OwnedFd>,
) -> Result<Option<Inline<SharedTable>>, PowerOnError> {
    match (welcome.arena_pages, <[OwnedFd; 3]>::try_from(shared)) {
        (None, Err(none)) if none.is_empty() => Ok(None),
        (Some(arena_pages), Ok([claims, arena, swap])) => {
            let table = map_table(pages, &claims).map_err(cannot("map the claim table"))?;
            let swap = Box::new(File::from(swap));
            Ok(Some(Inline::new(table, swap, arena.into(), arena_pages)))
        }
        _ => Err(NO_FDS.into()),
    }
}

/// Receives the answer to HELLO, and its descriptors.
fn welcome(socket: &SeqPacket) -> Result<(Welcome, Vec<OwnedFd>), SessionEnd> {
    match memory_thread::receive(socket)? {
        (Message::Welcome(welcome), fds) => Ok((welcome, fds)),
        (other, _) => Err(order(other.name(), "WELCOME")),
    }
}

impl PoweredOn {
    /// The memory thread: executes the daemon's commands until the session ends, and returns why it ended.
    ///
    /// Run it in a thread that never touches guest RAM. End the process when it returns, because guest
    /// threads that wait for a page then wait for ever.
    pub fn serve(self) -> SessionEnd {
        memory_thread::run(&self.socket, &self.ram.0.map)
    }
}
