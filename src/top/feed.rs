//! Where samples come from: a running host, or a recording.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::TopError;
use super::fields::{HOST, place};
use super::recording::{self, RecordingError};
use super::sample::Sample;
use crate::control::{Client, ClientError};
use crate::telemetry::{HostStatus, Rates};

/// Samples that are kept for graphs: ten minutes at a screen a second.
const HISTORY_MAX: usize = 600;

/// How fast and how slowly a recording is replayed: 1/16 to 64 times.
const DOUBLINGS: (i32, i32) = (-4, 6);

/// The least and the most time between two samples of a replay.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(60));

const UP: usize = place(HOST, "up");

/// Asks a running host.
pub(super) struct Live<'a> {
    client: &'a Client,
    earlier: Option<Box<HostStatus>>,
}

impl<'a> Live<'a> {
    pub(super) const fn new(client: &'a Client) -> Self {
        Self {
            client,
            earlier: None,
        }
    }

    /// The status now, and the rates since it was asked for before; none the first time.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(super) fn next(&mut self) -> Result<(&HostStatus, Option<Rates>), ClientError> {
        let status = self.client.status()?;
        let earlier = self.earlier.as_deref();
        let rates = earlier.map(|earlier| Rates::between(earlier, &status));
        let status: &HostStatus = self.earlier.insert(Box::new(status));
        Ok((status, rates))
    }

    /// The same as a sample.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(super) fn sample(&mut self) -> Result<Sample, ClientError> {
        let (status, rates) = self.next()?;
        Ok(Sample::of(status, rates.as_ref(), Timestamp::now()))
    }
}

/// Shows a recording.
pub(super) struct Replay {
    samples: Vec<Sample>,
    at: usize,
    playing: bool,
    doublings: i32,
}

impl Replay {
    /// # Errors
    /// [`RecordingError`].
    pub(super) fn open(path: &Path) -> Result<Self, RecordingError> {
        Ok(Self::new(recording::read(path)?))
    }

    fn new(samples: Vec<Sample>) -> Self {
        Self {
            samples,
            at: 0,
            playing: true,
            doublings: 0,
        }
    }

    /// Goes to a sample that far away, or as far as there are some; at the last one it pauses.
    pub(super) fn step(&mut self, by: isize) {
        let last = self.samples.len().saturating_sub(1);
        self.at = self.at.saturating_add_signed(by).min(last);
        self.playing &= self.at < last;
    }

    fn pause(&mut self) {
        self.playing = !self.playing;
    }

    fn faster(&mut self, faster: bool) {
        let by = if faster { 1 } else { -1 };
        self.doublings = (self.doublings + by).clamp(DOUBLINGS.0, DOUBLINGS.1);
    }

    /// Until the next sample; `None` while it pauses.
    fn time(&self) -> Option<Duration> {
        let next = self.samples.get(self.at + 1).filter(|_| self.playing)?;
        let now = &self.samples[self.at];
        // The age of the daemon has milliseconds, times have seconds.
        let by_age = next
            .host(UP)
            .zip(now.host(UP))
            .map(|(next, now)| next - now);
        let by_time = next.at.duration_since(now.at).as_secs_f64();
        let seconds = by_age.filter(|seconds| *seconds > 0.0).unwrap_or(by_time);
        let time = Duration::try_from_secs_f64(seconds / 2_f64.powi(self.doublings));
        Some(time.unwrap_or(PAUSE.0).clamp(PAUSE.0, PAUSE.1))
    }

    fn progress(&self) -> String {
        let speed = match self.doublings {
            slower @ ..0 => format!("x1/{}", 1 << -slower),
            faster => format!("x{}", 1 << faster),
        };
        let now = self.samples[self.at].at.strftime("%Y-%m-%d %H:%M:%S");
        let paused = if self.playing { "" } else { " paused" };
        format!(
            "{now} {}/{} {speed}{paused}",
            self.at + 1,
            self.samples.len()
        )
    }
}

/// Either of them, with what was seen so far.
pub(super) enum Feed<'a> {
    Live(Live<'a>, Vec<Sample>),
    Replay(Replay),
}

impl Feed<'_> {
    /// What was seen so far, the latest last.
    pub(super) fn history(&self) -> &[Sample] {
        match self {
            Self::Live(_, history) => history,
            Self::Replay(replay) => {
                let seen = &replay.samples[..=replay.at];
                &seen[seen.len().saturating_sub(HISTORY_MAX)..]
            }
        }
    }

    /// Takes another sample of a host.
    ///
    /// # Errors
    /// [`TopError::Client`].
    pub(super) fn look(&mut self) -> Result<(), TopError> {
        if let Self::Live(live, history) = self {
            history.push(live.sample()?);
            if history.len() > HISTORY_MAX {
                history.remove(0);
            }
        }
        Ok(())
    }

    /// What is due after the time: the next sample.
    ///
    /// # Errors
    /// [`TopError::Client`].
    pub(super) fn advance(&mut self) -> Result<(), TopError> {
        match self {
            Self::Live(..) => self.look(),
            Self::Replay(replay) => {
                replay.step(1);
                Ok(())
            }
        }
    }

    /// Time from one sample to the next; `None` if there is none to be waited for.
    pub(super) fn time(&self, interval: Duration) -> Option<Duration> {
        match self {
            Self::Live(..) => Some(interval),
            Self::Replay(replay) => replay.time(),
        }
    }

    /// A replay, on which some keys act.
    pub(super) const fn replay(&mut self) -> Option<&mut Replay> {
        match self {
            Self::Live(..) => None,
            Self::Replay(replay) => Some(replay),
        }
    }

    /// The client, which can ask why.
    pub(super) const fn client(&self) -> Option<&Client> {
        match self {
            Self::Live(live, _) => Some(live.client),
            Self::Replay(_) => None,
        }
    }

    /// How far a replay is.
    pub(super) fn progress(&self) -> Option<String> {
        match self {
            Self::Live(..) => None,
            Self::Replay(replay) => Some(replay.progress()),
        }
    }
}

impl Replay {
    /// What a key asks for: to pause or go on, to go to another sample, to be faster or slower.
    pub(super) fn obey(&mut self, action: super::view::Action) {
        use super::view::Action;
        match action {
            Action::Refresh => self.pause(),
            Action::Step(by) => {
                self.step(by);
                self.playing = false;
            }
            Action::Faster(faster) => self.faster(faster),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::sample;
    use super::super::view::Action;
    use super::*;

    fn replay() -> Replay {
        let samples = (0..3).map(|second| {
            let mut sample = sample(second * 5);
            sample.host[UP] = None;
            sample
        });
        Replay::new(samples.collect())
    }

    #[test]
    fn replay_takes_the_time_it_took_and_pauses_at_its_end() {
        let mut replay = replay();
        assert_eq!(replay.time(), Some(Duration::from_secs(5)));
        replay.samples[0].host[UP] = Some(10.0);
        replay.samples[1].host[UP] = Some(10.5);
        assert_eq!(replay.time(), Some(Duration::from_millis(500)));
        replay.obey(Action::Faster(true));
        assert_eq!(replay.time(), Some(Duration::from_millis(250)));
        replay.step(1);
        assert!(
            replay.progress().ends_with(" 2/3 x2"),
            "{}",
            replay.progress()
        );
        replay.step(1);
        assert_eq!(replay.time(), None);
        assert!(
            replay.progress().ends_with(" 3/3 x2 paused"),
            "{}",
            replay.progress()
        );
    }

    #[test]
    fn keys_pause_a_replay_and_step_through_it_to_its_ends() {
        let mut replay = replay();
        replay.obey(Action::Refresh);
        assert_eq!(replay.time(), None);
        replay.obey(Action::Step(1));
        assert_eq!(replay.at, 1);
        replay.obey(Action::Step(-9));
        assert_eq!(replay.at, 0);
        for _ in 0..20 {
            replay.obey(Action::Faster(false));
        }
        assert!(replay.progress().contains("x1/16"), "{}", replay.progress());
        let feed = Feed::Replay(replay);
        assert_eq!(feed.history().len(), 1);
    }
}
