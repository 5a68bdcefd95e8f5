//! The stream behind the live page: a sample a second, and one at once.
//!
//! A status takes a look at every VM. If each open page had its own, a wall of screens would cost the daemon more than its
//! guests do; and a task that makes one a second would work for nobody at night. So the samples have no maker: a stream
//! whose latest sample is a second old makes the next, and the others, which wake for the same reason, find it. All
//! streams run in step like this, and where there is none, nothing is done.
//!
//! A client that does not read keeps its own stream waiting, and is given up as any other that is waited for
//! (`limit.rs`). The next sample that it gets is the newest: none is kept for it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::response::IntoResponse;
use axum::response::sse::{Event, Sse};
use futures_util::stream::unfold;
use tokio::select;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use super::Daemon;
use crate::view;

/// The time between samples.
const INTERVAL: Duration = Duration::from_secs(1);
/// The most streams at once: half of the connections of the address, so that others have room for their requests.
const MOST: usize = 8;
/// How soon a page tries again when its stream has broken off.
const RETRY: Duration = Duration::from_secs(1);

/// The samples of a daemon.
pub(super) struct Events {
    daemon: Arc<dyn Daemon>,
    latest: Mutex<Option<Sample>>,
    places: Arc<Semaphore>,
    stopping: watch::Receiver<()>,
}

/// A sample, as all streams send it.
#[derive(Clone)]
struct Sample {
    made: Instant,
    event: Event,
}

impl Events {
    /// The samples of `daemon`, to be sent until `stopping` has a value or its sender is gone.
    pub(super) fn new(daemon: Arc<dyn Daemon>, stopping: watch::Receiver<()>) -> Self {
        Self {
            daemon,
            latest: Mutex::new(None),
            places: Arc::new(Semaphore::new(MOST)),
            stopping,
        }
    }

    /// One more stream; `None` if there are as many as there may be.
    pub(super) fn stream(self: Arc<Self>) -> Option<impl IntoResponse> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let stopping = self.stopping.clone();
        let begin = (self, stopping, place, Instant::now());
        let stream = unfold(begin, async |(events, mut stopping, place, due)| {
            select! {
                () = sleep_until(due) => {}
                _ = stopping.changed() => return None,
            }
            let Sample { made, event } = events.latest();
            let next = (events, stopping, place, made + INTERVAL);
            Some((Ok::<_, Infallible>(event), next))
        });
        Some(Sse::new(stream))
    }

    /// The latest sample, or a new one if that is due.
    fn latest(&self) -> Sample {
        // Plain data, which is whole even if a thread panicked while it held the lock.
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let made = Instant::now();
        if let Some(sample) = latest.as_ref()
            && made < sample.made + INTERVAL
        {
            return sample.clone();
        }
        let text = view::event(&self.daemon.status().for_anybody());
        let event = Event::default().retry(RETRY).data(text);
        latest.insert(Sample { made, event }).clone()
    }
}
