//! The two sockets of guests: accept, and give each connection a thread.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use memvisor_wire::{Doorbell, SeqPacket, SeqPacketListener, wait_readable};

use super::balloon;
use super::daemon::Host;
use super::session;
use crate::runtime_dir::RuntimeDir;
use crate::throttle::Throttle;

/// Connections served at once on one socket. Each has a thread and a handful of descriptors. A host runs
/// dozens of guests, and a flood of connections must not use up the machine's threads.
const MAX_CONNECTIONS: u32 = 1024;
/// How long to leave accepting alone when the daemon is out of descriptors or connections.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepting is tried again each [`PAUSE`], for as long as the daemon is short of descriptors or threads.
static REFUSALS: Throttle = Throttle::new(1, Duration::from_secs(10));

/// The threads that accept.
#[derive(Debug)]
pub(super) struct Listeners {
    bells: Vec<Arc<Doorbell>>,
    threads: Vec<JoinHandle<()>>,
}

type Serve = fn(&Arc<Host>, SeqPacket);

impl Listeners {
    pub(super) fn start(host: &Arc<Host>, dir: &RuntimeDir) -> io::Result<Self> {
        let mut listeners = Self {
            bells: Vec::new(),
            threads: Vec::new(),
        };
        let sockets: [(_, _, Serve); 2] = [
            ("memory", dir.memory_socket(), session::run),
            ("balloon", dir.balloon_socket(), balloon::run),
        ];
        for (name, path, serve) in sockets {
            let listener = SeqPacketListener::bind(&path)?;
            let bell = Arc::new(Doorbell::new()?);
            listeners.bells.push(Arc::clone(&bell));
            let host = Arc::clone(host);
            let accept = move || accept(&host, name, &listener, &bell, serve);
            listeners
                .threads
                .push(thread::Builder::new().name(name.to_owned()).spawn(accept)?);
        }
        Ok(listeners)
    }

    /// Takes no more connections; the sockets are gone when it returns.
    pub(super) fn stop(self) {
        self.bells.iter().for_each(|bell| bell.ring());
        for thread in self.threads {
            // A panic was printed when it happened, and the daemon is ending.
            let _ = thread.join();
        }
    }
}

fn accept(
    host: &Arc<Host>,
    name: &str,
    listener: &SeqPacketListener,
    bell: &Doorbell,
    serve: Serve,
) {
    let connections = Arc::new(AtomicU32::new(0));
    loop {
        let ready = wait_readable([bell.as_fd(), listener.as_fd()], None);
        // Asked after each wait, because the bell says no more than that something has changed.
        if host.members.is_closed() || ready.is_err() {
            return;
        }
        // Relaxed: only this thread raises the number. An end that is seen late delays a connection, no more.
        if connections.load(Ordering::Relaxed) < MAX_CONNECTIONS {
            match listener
                .accept()
                .and_then(|socket| spawn(host, name, socket, &connections, serve))
            {
                Ok(()) => continue,
                Err(error) => REFUSALS.line(|unsaid| {
                    tracing::error!(socket = name, %error, unsaid, "cannot take a connection");
                }),
            }
        }
        // Full, or out of descriptors: leaves the rest in the backlog for a moment. The bell ends the wait.
        let _ = wait_readable([bell.as_fd()], Some(PAUSE));
    }
}

fn spawn(
    host: &Arc<Host>,
    name: &str,
    socket: SeqPacket,
    connections: &Arc<AtomicU32>,
    serve: Serve,
) -> io::Result<()> {
    // Counted before the thread exists. If it cannot be made, dropping the closure takes it off again.
    let (host, count) = (Arc::clone(host), Connection::new(connections));
    thread::Builder::new()
        .name(format!("{name}-conn"))
        .spawn(move || {
            let _count = count;
            serve(&host, socket);
        })?;
    Ok(())
}

/// Counts a connection for as long as it lives, however its thread ends.
struct Connection(Arc<AtomicU32>);

impl Connection {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
