//! The thread that serves the control API.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use memvisor_wire::listen_privately;
use nix::sys::signal::SigSet;
use nix::sys::socket::SockType;
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::limit::{LimitedListener, Limits};
use super::routes::router;
use super::{Daemon, http};

/// More connections than a screen and a few scripts need; each costs the daemon a file descriptor that a guest
/// might need. A client sends its request when it connects, and reads the answer when it comes: the seconds are
/// for a client that was stopped in between.
const LIMITS: Limits = Limits {
    connections: 32,
    patience: Duration::from_secs(10),
};

/// The same of an address. Each client asks for little and closes.
const HTTP_LIMITS: Limits = Limits {
    connections: 16,
    patience: Duration::from_secs(10),
};

/// How long answers under way may take once the server is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Why the control API cannot be served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Somebody answers on the socket already.
    #[error("a daemon is already serving `{path}`")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something is at the path that is no socket.
    #[error("`{path}` exists and is not a socket")]
    NotSocket {
        /// The path.
        path: PathBuf,
    },
    /// The address cannot be listened at: it is in use, or is none of this machine.
    #[error("cannot serve metrics at {address}")]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A running control server; dropping it stops it.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    http: Option<SocketAddr>,
}

impl Server {
    /// Serves `daemon` on a Unix socket at `path`, which only this user may open, and what may only be read at the
    /// address `http`, if that is given.
    ///
    /// A socket that nobody answers on is replaced. That is safe only for a caller that holds the runtime directory:
    /// without its lock two daemons could replace each other's socket.
    ///
    /// # Errors
    /// [`ServeError`] if the socket or the thread cannot be made.
    pub fn start(
        path: &Path,
        http: Option<SocketAddr>,
        daemon: Arc<dyn Daemon>,
    ) -> Result<Self, ServeError> {
        Self::within([LIMITS, HTTP_LIMITS], path, http, daemon)
    }

    /// The address of `http`, with the port that the kernel chose for port 0.
    #[must_use]
    pub const fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    pub(super) fn within(
        limits: [Limits; 2],
        path: &Path,
        http: Option<SocketAddr>,
        daemon: Arc<dyn Daemon>,
    ) -> Result<Self, ServeError> {
        let failed = |action| io_error(action, path);
        let http = http.map(listen_at).transpose()?;
        let (http, address) = http.unzip();
        clear(path)?;
        let listener = listen_privately(path, SockType::Stream).map_err(failed("listen at"))?;
        // The runtime takes it over as it is, and one accept that waits would keep all clients waiting.
        listener.set_nonblocking(true).map_err(failed("set up"))?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed("make a runtime for"))?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                // Signals are for the main thread, which waits for them.
                let _ = SigSet::all().thread_block();
                if let Err(error) =
                    runtime.block_on(serve((listener, http), limits, daemon, stopped))
                {
                    tracing::error!(%error, "the control API has ended");
                }
            })
            .map_err(failed("start a thread for"))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
            http: address,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The receiver is gone only if the thread has ended, which is what we want.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("the control thread had panicked");
        }
    }
}

async fn serve(
    (control, http): (StdListener, Option<StdTcpListener>),
    [control_limits, http_limits]: [Limits; 2],
    daemon: Arc<dyn Daemon>,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    // A second channel, because the time for answers under way is measured from here: axum does not tell when it
    // begins.
    let (begin, begun) = watch::channel(());
    let until = |mut begun: watch::Receiver<()>| async move {
        let _ = begun.changed().await;
    };
    let control = LimitedListener::new(UnixListener::from_std(control)?, control_limits);
    let control = axum::serve(control, router(Arc::clone(&daemon)));
    let control = control.with_graceful_shutdown(until(begun.clone()));
    let http = async move {
        let Some(listener) = http else { return Ok(()) };
        let listener = TcpListener::from_std(listener)?;
        let router = http::router(daemon, listener.local_addr()?, begun.clone());
        let served = axum::serve(LimitedListener::new(listener, http_limits), router);
        served.with_graceful_shutdown(until(begun)).await
    };
    let both = async { tokio::try_join!(control.into_future(), http) };
    let mut both = std::pin::pin!(both);
    tokio::select! {
        ended = &mut both => return ended.map(drop),
        _ = stopped => {}
    }
    drop(begin);
    // A client that does not read its answer is cut off when the runtime is dropped.
    let ended = timeout(STOP_GRACE, both).await;
    ended.map_or(Ok(()), |ended| ended.map(drop))
}

/// Listens at `address`; the address with the port that the kernel chose for port 0.
fn listen_at(address: SocketAddr) -> Result<(StdTcpListener, SocketAddr), ServeError> {
    let listen = || {
        let listener = StdTcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    listen().map_err(|source| ServeError::Http { address, source })
}

/// Removes the socket of a daemon that is gone.
fn clear(path: &Path) -> Result<(), ServeError> {
    let path_owned = || path.to_owned();
    // Links are not followed: what they lead to is not ours to remove.
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(io_error("examine", path))?,
    };
    if !found.file_type().is_socket() {
        return Err(ServeError::NotSocket { path: path_owned() });
    }
    match StdStream::connect(path) {
        Ok(_) => Err(ServeError::InUse { path: path_owned() }),
        // Nobody listens: its daemon was killed and left it.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io_error("remove", path))
        }
        Err(error) => Err(io_error("connect to", path)(error)),
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServeError {
    let path = path.to_owned();
    move |source| ServeError::Io {
        action,
        path,
        source,
    }
}
