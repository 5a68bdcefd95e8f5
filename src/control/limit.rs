//! A listener of which nobody can take all places, and whose connections do not wait for ever.
//!
//! Each connection costs a file descriptor and a task, so there is a most. If the ones beyond it waited,
//! whoever opens as many as there may be and says nothing would silence the API; so would one who sends a
//! byte now and then, since none of HTTP's parts has an end until its client says so. Therefore:
//!
//! - A connection waits for its client for a bounded time: from its beginning, or from the last that was
//!   written to it, until there is something to write. That covers a header that does not end, a body, an
//!   answer that is not read and a connection that is kept for later, with one clock. What a client sends
//!   does not stop the clock.
//! - When there is no place for a new connection, one of the process that has most is closed, the one
//!   that has waited longest for its client. A flood of one process so costs that process; the operator's
//!   few connections are not the ones to go.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until};

/// What bounds the connections of a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The most at once.
    pub(super) connections: usize,
    /// How long one waits for its client.
    pub(super) patience: Duration,
}

/// Accepts every connection, and keeps them within limits.
pub(super) struct LimitedListener {
    listener: UnixListener,
    patience: Duration,
    places: Arc<Mutex<Places>>,
}

impl LimitedListener {
    /// Serves `listener` within `limits`.
    pub(super) fn new(listener: UnixListener, limits: Limits) -> Self {
        Self {
            listener,
            patience: limits.patience,
            places: Arc::new(Mutex::new(Places::new(limits.connections))),
        }
    }
}

impl Listener for LimitedListener {
    type Io = LimitedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (LimitedStream, SocketAddr) {
        // Those accepted before have their turn, to be served or to close: else a full backlog
        // would be accepted first, and close what has come before it was looked at.
        yield_now().await;
        // The trait's own method retries where accept(2) fails for a while, as for want of descriptors.
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        // Who has gone already, or is in another namespace, has no number.
        let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let (id, closed) = lock(&self.places).open(process.unwrap_or(0), Instant::now());
        let stream = LimitedStream {
            stream,
            id,
            patience: self.patience,
            clock: Box::pin(sleep_until(Instant::now() + self.patience)),
            closed,
            places: Arc::clone(&self.places),
        };
        (stream, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A lock of plain data, which is whole even if a thread panicked while it held it.
fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The connections there are.
struct Places {
    most: usize,
    next: u64,
    open: BTreeMap<u64, Place>,
}

struct Place {
    process: i32,
    /// Since when it has waited for its client.
    since: Instant,
    /// Dropped to close the connection.
    _close: oneshot::Sender<()>,
}

impl Places {
    fn new(most: usize) -> Self {
        Self {
            most,
            next: 0,
            open: BTreeMap::new(),
        }
    }

    /// A place for a connection of `process`, whoever has to go: its number, and what says that it has to
    /// go itself.
    fn open(&mut self, process: i32, since: Instant) -> (u64, oneshot::Receiver<()>) {
        let id = self.next;
        self.next += 1;
        let (_close, closed) = oneshot::channel();
        let place = Place {
            process,
            since,
            _close,
        };
        self.open.insert(id, place);
        while self.open.len() > self.most {
            self.close_one();
        }
        (id, closed)
    }

    /// Closes the connection that has waited longest, of a process that has most.
    fn close_one(&mut self) {
        let mut count: BTreeMap<i32, usize> = BTreeMap::new();
        for place in self.open.values() {
            *count.entry(place.process).or_default() += 1;
        }
        let most = count.values().max().copied();
        let victim = self
            .open
            .iter()
            .filter(|(_, place)| count.get(&place.process).copied() == most)
            .min_by_key(|(id, place)| (place.since, **id))
            .map(|(id, _)| *id);
        if let Some(place) = victim.and_then(|id| self.open.remove(&id)) {
            tracing::debug!(
                process = place.process,
                "a connection makes room for another"
            );
        }
    }
}

/// A connection that gives its place back when it is dropped.
pub(super) struct LimitedStream {
    stream: UnixStream,
    id: u64,
    patience: Duration,
    clock: Pin<Box<Sleep>>,
    closed: oneshot::Receiver<()>,
    places: Arc<Mutex<Places>>,
}

impl LimitedStream {
    /// `result`, unless it has to wait and this connection is to wait no more.
    fn or_end<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_pending() {
            if self.clock.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            if Pin::new(&mut self.closed).poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        result
    }

    /// Something was written: from now on it waits for its client anew.
    fn wait_anew(&mut self) {
        let now = Instant::now();
        self.clock.as_mut().reset(now + self.patience);
        if let Some(place) = lock(&self.places).open.get_mut(&self.id) {
            place.since = now;
        }
    }
}

impl Drop for LimitedStream {
    fn drop(&mut self) {
        lock(&self.places).open.remove(&self.id);
    }
}

impl AsyncRead for LimitedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        // A client that sends byte by byte keeps nothing open.
        if self.clock.is_elapsed() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.or_end(cx, result)
    }
}

impl AsyncWrite for LimitedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(_)) = result {
            self.wait_anew();
        }
        self.or_end(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The processes whose connections are left, by their numbers.
    fn left(places: &Places) -> Vec<i32> {
        places.open.values().map(|place| place.process).collect()
    }

    #[test]
    fn connection_that_has_waited_longest_makes_room() {
        let mut places = Places::new(2);
        let now = Instant::now();
        let (first, mut closed) = places.open(1, now);
        places.open(2, now);
        let later = now + Duration::from_secs(1);
        places.open.get_mut(&first).expect("open").since = later;
        places.open(3, later);
        assert_eq!(left(&places), [1, 3], "the first was served in between");
        closed.try_recv().expect_err("still open");
        places.open(4, later);
        assert_eq!(left(&places), [3, 4]);
        assert_eq!(closed.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn flood_of_one_process_takes_no_place_of_another() {
        let mut places = Places::new(4);
        let now = Instant::now();
        let (_, mut operator) = places.open(7, now);
        for _ in 0..100 {
            places.open(1, now + Duration::from_secs(1));
        }
        assert_eq!(left(&places), [7, 1, 1, 1]);
        assert_eq!(
            operator.try_recv(),
            Err(oneshot::error::TryRecvError::Empty)
        );
    }
}
