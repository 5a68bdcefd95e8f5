//! A listener whose places no client can take up, and whose connections do not wait for ever.
//!
//! Each connection costs a file descriptor and a task, so their number is limited. If connections beyond the limit had
//! to wait, a client that opens that many and sends nothing would silence the API. So would a client that sends a
//! byte now and then, since every part of an HTTP request lasts until its client ends it. Therefore:
//!
//! - A connection waits for its client for a bounded time: from its beginning, or from the last write to
//!   it, until there is something to write. One clock covers a header that does not end, a body, an answer
//!   that is not read, and a connection that is kept for later. What a client sends does not stop the clock.
//! - When there is no place for a new connection, the client with the most connections loses the one that has
//!   waited longest for it. So a flood costs the client that causes it, and the operator's few connections stay. A
//!   client is a process or, of a connection that comes by the network, a machine.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until};

/// What bounds the connections of a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The most connections at once.
    pub(super) connections: usize,
    /// How long a connection waits for its client.
    pub(super) patience: Duration,
}

/// A stream that knows who is at its other end.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// A number that no other client has.
    fn client(&self) -> u128;
}

impl Stream for UnixStream {
    fn client(&self) -> u128 {
        // A process that has gone already, or is in another namespace, has no number here.
        let process = self.peer_cred().ok().and_then(|peer| peer.pid());
        process.map_or(0, |pid| u128::from(pid.unsigned_abs()))
    }
}

impl Stream for TcpStream {
    fn client(&self) -> u128 {
        match self.peer_addr().map(|peer| peer.ip()) {
            Ok(IpAddr::V4(address)) => address.to_ipv6_mapped().to_bits(),
            Ok(IpAddr::V6(address)) => address.to_bits(),
            // It has gone already.
            Err(_) => 0,
        }
    }
}

/// Accepts every connection, and keeps them within limits.
pub(super) struct LimitedListener<L> {
    listener: L,
    patience: Duration,
    connections: Arc<Mutex<Connections>>,
}

impl<L> LimitedListener<L> {
    /// Serves `listener` within `limits`.
    pub(super) fn new(listener: L, limits: Limits) -> Self {
        Self {
            listener,
            patience: limits.patience,
            connections: Arc::new(Mutex::new(Connections::new(limits.connections))),
        }
    }
}

impl<L: Listener<Io: Stream>> Listener for LimitedListener<L> {
    type Io = LimitedStream<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, L::Addr) {
        // Gives the connections accepted before a turn, to be served or to close. Otherwise a full backlog would be
        // accepted first, and would close earlier connections before anything had looked at them.
        yield_now().await;
        // The trait's own method retries where accept(2) fails for a while, as for want of descriptors.
        let (stream, peer) = self.listener.accept().await;
        let (id, closed) = lock(&self.connections).open(stream.client(), Instant::now());
        let stream = LimitedStream {
            stream,
            id,
            patience: self.patience,
            clock: Box::pin(sleep_until(Instant::now() + self.patience)),
            closed,
            connections: Arc::clone(&self.connections),
        };
        (stream, peer)
    }

    fn local_addr(&self) -> io::Result<L::Addr> {
        self.listener.local_addr()
    }
}

/// A lock of plain data, which is whole even if a thread panicked while it held it.
fn lock(connections: &Mutex<Connections>) -> MutexGuard<'_, Connections> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The open connections.
struct Connections {
    most: usize,
    next: u64,
    open: BTreeMap<u64, Connection>,
}

struct Connection {
    client: u128,
    /// Since when it has waited for its client.
    since: Instant,
    /// Dropped to close the connection.
    _close: oneshot::Sender<()>,
}

impl Connections {
    fn new(most: usize) -> Self {
        Self {
            most,
            next: 0,
            open: BTreeMap::new(),
        }
    }

    /// Makes a place for a connection of `client`, if need be by closing another. Returns its number, and a
    /// receiver that ends when this connection is to close.
    fn open(&mut self, client: u128, since: Instant) -> (u64, oneshot::Receiver<()>) {
        let id = self.next;
        self.next += 1;
        let (_close, closed) = oneshot::channel();
        let connection = Connection {
            client,
            since,
            _close,
        };
        self.open.insert(id, connection);
        // The new connection takes part: if its own client has most, one of that client closes.
        while self.open.len() > self.most {
            self.close_one();
        }
        (id, closed)
    }

    /// Closes the connection that has waited longest, of a client that has the most.
    fn close_one(&mut self) {
        let mut count: BTreeMap<u128, usize> = BTreeMap::new();
        for connection in self.open.values() {
            *count.entry(connection.client).or_default() += 1;
        }
        let most = count.values().max().copied();
        let victim = self
            .open
            .iter()
            .filter(|(_, connection)| count.get(&connection.client).copied() == most)
            .min_by_key(|(id, connection)| (connection.since, **id))
            .map(|(id, _)| *id);
        if let Some(connection) = victim.and_then(|id| self.open.remove(&id)) {
            tracing::debug!(
                client = connection.client,
                "a connection makes room for another"
            );
        }
    }
}

/// A connection that gives its place back when it is dropped.
pub(super) struct LimitedStream<S> {
    stream: S,
    id: u64,
    patience: Duration,
    clock: Pin<Box<Sleep>>,
    closed: oneshot::Receiver<()>,
    connections: Arc<Mutex<Connections>>,
}

impl<S> LimitedStream<S> {
    /// `result`, or an end of the connection if `result` is to wait and the connection may wait no longer.
    fn or_end<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_pending() {
            // Polled only where the stream is not ready, which is also what has the clock wake this task.
            if self.clock.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            if Pin::new(&mut self.closed).poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        result
    }

    /// Starts the clock anew, because something was written.
    fn wait_anew(&mut self) {
        let now = Instant::now();
        self.clock.as_mut().reset(now + self.patience);
        if let Some(connection) = lock(&self.connections).open.get_mut(&self.id) {
            connection.since = now;
        }
    }
}

impl<S> Drop for LimitedStream<S> {
    fn drop(&mut self) {
        lock(&self.connections).open.remove(&self.id);
    }
}

impl<S: Stream> AsyncRead for LimitedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        // Checked here too, so that a client that sends byte by byte cannot keep the connection open.
        if self.clock.is_elapsed() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.or_end(cx, result)
    }
}

impl<S: Stream> AsyncWrite for LimitedStream<S> {
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

    /// The clients of the connections that are left, in the order of the connections' numbers.
    fn left(connections: &Connections) -> Vec<u128> {
        connections
            .open
            .values()
            .map(|connection| connection.client)
            .collect()
    }

    #[test]
    fn connection_that_has_waited_longest_makes_room() {
        let mut connections = Connections::new(2);
        let now = Instant::now();
        let (first, mut closed) = connections.open(1, now);
        connections.open(2, now);
        let later = now + Duration::from_secs(1);
        connections.open.get_mut(&first).expect("open").since = later;
        connections.open(3, later);
        assert_eq!(
            left(&connections),
            [1, 3],
            "the first was served in between"
        );
        closed.try_recv().expect_err("still open");
        connections.open(4, later);
        assert_eq!(left(&connections), [3, 4]);
        assert_eq!(closed.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn flood_of_one_client_takes_no_place_of_another() {
        let mut connections = Connections::new(4);
        let now = Instant::now();
        let (_, mut operator) = connections.open(7, now);
        for _ in 0..100 {
            connections.open(1, now + Duration::from_secs(1));
        }
        assert_eq!(left(&connections), [7, 1, 1, 1]);
        assert_eq!(
            operator.try_recv(),
            Err(oneshot::error::TryRecvError::Empty)
        );
    }
}
