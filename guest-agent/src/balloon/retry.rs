//! When to dial again, and what to log about it.
//!
//! A host that restarts is back soon, and a host that is gone comes back some day. A host that refuses
//! this agent, because ballooning is switched off or because it is asked for the wrong VM, may change
//! its mind while the guest runs. So an agent never gives up. To keep it from filling the guest's log,
//! it logs the same reason only once.

use std::time::Duration;

use memvisor_wire::balloon::ErrorCode;

use super::link::LinkError;

/// The first pause before a new connection. Each pause is twice the one before, up to a longest one.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause for a host that is gone: six attempts a minute.
const LONGEST: Duration = Duration::from_secs(10);
/// The longest pause for a host that refuses: it is there, and rarely changes its mind.
const LONGEST_REFUSED: Duration = Duration::from_secs(30);

/// The level of the next log line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LogLevel {
    /// The host works and does not want this agent: nothing is wrong here.
    Info,
    /// Something is wrong.
    Warn,
    /// The same reason was logged before.
    Nothing,
}

/// The pauses of one agent.
#[derive(Debug)]
pub(super) struct Retry {
    pause: Duration,
    said: Option<String>,
}

impl Retry {
    pub(super) const fn new() -> Self {
        Self {
            pause: FIRST,
            said: None,
        }
    }

    /// Begins anew, because a connection was made.
    pub(super) fn connected(&mut self) {
        *self = Self::new();
    }

    /// How long to pause after this error, and how to log it.
    pub(super) fn after(&mut self, error: &LinkError) -> (Duration, LogLevel) {
        let refused = match error {
            LinkError::Refused { code, .. } => Some(*code),
            _ => None,
        };
        let (longest, level) = match refused {
            Some(ErrorCode::Refused) => (LONGEST_REFUSED, LogLevel::Info),
            _ => (LONGEST, LogLevel::Warn),
        };
        // Asking again soon is useless: one of the two sides must be replaced first.
        if refused == Some(ErrorCode::Version) {
            self.pause = longest;
        }
        let pause = self.pause.min(longest);
        self.pause = (pause * 2).min(longest);
        let text = error.to_string();
        if self.said.as_ref() == Some(&text) {
            return (pause, LogLevel::Nothing);
        }
        self.said = Some(text);
        (pause, level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: ErrorCode, text: &str) -> LinkError {
        let text = text.to_owned();
        LinkError::Refused { code, text }
    }

    fn pauses(retry: &mut Retry, error: &LinkError) -> Vec<u128> {
        (0..12).map(|_| retry.after(error).0.as_millis()).collect()
    }

    #[test]
    fn refused_agent_says_why_once_and_asks_twice_a_minute_in_the_end() {
        let mut retry = Retry::new();
        let disabled = refused(ErrorCode::Refused, "ballooning is disabled");
        assert_eq!(retry.after(&disabled).1, LogLevel::Info);
        for _ in 0..100 {
            assert_eq!(retry.after(&disabled).1, LogLevel::Nothing);
        }
        assert_eq!(retry.after(&disabled).0, LONGEST_REFUSED);
        let other = refused(ErrorCode::Refused, "the VM has an agent");
        assert_eq!(
            retry.after(&other).1,
            LogLevel::Info,
            "another reason is news"
        );
    }

    #[test]
    fn pause_doubles_up_to_the_longest_and_begins_anew_after_a_connection() {
        let mut retry = Retry::new();
        let gone = LinkError::Closed;
        assert_eq!(retry.after(&gone), (FIRST, LogLevel::Warn));
        let expected = [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000];
        assert_eq!(pauses(&mut retry, &gone)[..8], expected);
        retry.connected();
        assert_eq!(retry.after(&gone), (FIRST, LogLevel::Warn));
    }

    #[test]
    fn version_that_does_not_fit_is_not_asked_again_soon() {
        let mut retry = Retry::new();
        let version = refused(ErrorCode::Version, "2 and 1");
        assert_eq!(retry.after(&version), (LONGEST, LogLevel::Warn));
    }

    #[test]
    fn host_that_goes_after_it_refused_is_asked_more_often_again() {
        let mut retry = Retry::new();
        pauses(&mut retry, &refused(ErrorCode::Refused, "no"));
        assert_eq!(retry.after(&LinkError::Closed), (LONGEST, LogLevel::Warn));
    }
}
