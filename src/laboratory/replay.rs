//! Plays one side of a recording again, and says what the other side answers differently.
//!
//! A session never runs twice at the same times, and an agent never gives the same pages twice. So what is compared is
//! what a peer decides, and not what differs between any two runs:
//!
//! | of | is compared | is not |
//! |---|---|---|
//! | each message | which it is, in order | its time, its seq |
//! | `START` | versions, capabilities, total_pages | token, name |
//! | `GET_TARGET` | balloon_pages, total_pages; how many there are is not | |
//! | `STATS` | | values, how many there are |
//! | `LOCK`, `UNLOCK` | how many pages | which, in how many ranges |
//! | `RELIEF` | pages | |
//! | `STARTED` | capabilities, max_ranges, poll_interval_ms, balloon_max | vm |
//! | `TARGET` | pages, unless targets are ignored | doorbells: they come when a host has them |
//! | `LOCK_RESULT`, `UNLOCK_RESULT` | the status of each page; target, as before | how the runs are cut |
//! | `ERROR` | code | text |
//! | the map of free pages | how many pages the host has, unless targets are ignored; that it finds as many | which pages |

pub mod agent;
mod compare;
pub mod host;
mod lines;
mod shared;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use memvisor_wire::balloon::ToHost;

use super::tape::{Side, Tape};
use crate::vm::MAX_PAGES;

/// How long a peer may take for what it did in the recording.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a replay found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// How many messages of the other side were compared.
    pub compared: u32,
    /// What was different, each with the moment of the recording.
    pub differences: Vec<String>,
    /// Polls that came beside those of the recording.
    pub more_polls: u32,
    /// Polls of the recording that did not come.
    pub fewer_polls: u32,
    /// Whether the replay came to the end of the recording.
    pub is_complete: bool,
}

impl Report {
    /// Whether the other side did as it had done.
    #[must_use]
    pub const fn is_same(&self) -> bool {
        self.differences.is_empty() && self.is_complete
    }

    fn differs(&mut self, at: Duration, what: &str) {
        let moment = super::dump::moment(at);
        self.differences
            .push(format!("{} {what}", moment.trim_start()));
    }
}

/// The pages of the VM of a recording, of which each `START` names the same.
fn total_pages(tape: &Tape) -> u32 {
    let claimed = tape
        .heard()
        .find_map(|heard| match ToHost::decode(&heard.bytes) {
            Ok((_, ToHost::Start(start))) if heard.by == Side::Agent => Some(start.total_pages),
            _ => None,
        });
    let pages = claimed.and_then(|pages| u32::try_from(pages).ok());
    pages.filter(|pages| *pages <= MAX_PAGES).unwrap_or(1 << 16)
}

/// How fast a recording is replayed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speed {
    /// As it was recorded.
    Recorded,
    /// As fast as the other side answers.
    Fast,
}

/// The times of a recording, in the replay.
#[derive(Clone, Copy, Debug)]
struct Clock {
    speed: Speed,
    began: Instant,
}

impl Clock {
    fn new(speed: Speed) -> Self {
        let began = Instant::now();
        Self { speed, began }
    }

    /// How long until a moment of the recording.
    fn until(self, at: Duration) -> Duration {
        match self.speed {
            Speed::Recorded => at.saturating_sub(self.began.elapsed()),
            Speed::Fast => Duration::ZERO,
        }
    }
}
