//! Averages of a level over the latest 1, 5 and 15 minutes, as esxtop shows them of the overcommitment.

use std::time::{Duration, Instant};

use crate::average::Average;
use crate::telemetry::Overcommit;

/// The averages of one level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Averages {
    /// When the level was noted last, and what it was.
    latest: Option<(Instant, f64)>,
    spans: [Average; 3],
}

impl Default for Averages {
    fn default() -> Self {
        let minutes = |minutes: u64| Average::over(Duration::from_secs(60 * minutes));
        Self {
            latest: None,
            spans: [1, 5, 15].map(minutes),
        }
    }
}

impl Averages {
    /// Notes the level from now on.
    pub(super) fn note(&mut self, now: Instant, level: f64) {
        if let Some((since, was)) = self.latest {
            let passed = now.saturating_duration_since(since);
            for average in &mut self.spans {
                // The level that held until now, not the new one: nothing is known of how long that will hold.
                average.note(was, passed);
            }
        }
        self.latest = Some((now, level));
    }

    /// The level now and its averages, in percent.
    pub(super) fn status(&self) -> Overcommit {
        let now = self.latest.map_or(0.0, |(_, level)| level);
        let mean = |average: Average| average.mean().unwrap_or(now);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a level is not negative, and the cast saturates"
        )]
        let percent = |level: f64| (level * 100.0).round() as u64;
        let [one, five, fifteen] = self.spans.map(mean).map(percent);
        Overcommit {
            now_percent: percent(now),
            one_minute_percent: one,
            five_minutes_percent: five,
            fifteen_minutes_percent: fifteen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(averages: &Averages) -> [u64; 4] {
        let status = averages.status();
        [
            status.now_percent,
            status.one_minute_percent,
            status.five_minutes_percent,
            status.fifteen_minutes_percent,
        ]
    }

    #[test]
    fn averages_of_a_constant_level_are_the_level_from_the_start() {
        let (start, mut averages) = (Instant::now(), Averages::default());
        assert_eq!(shown(&averages), [0; 4]);
        for second in 0..3 {
            averages.note(start + Duration::from_secs(second), 0.5);
            assert_eq!(shown(&averages), [50; 4]);
        }
    }

    #[test]
    fn averages_follow_a_change_each_in_its_span() {
        let (start, mut averages) = (Instant::now(), Averages::default());
        for quarter in 0..4 * 3600 {
            averages.note(start + Duration::from_millis(250) * quarter, 0.0);
        }
        let change = start + Duration::from_secs(3600);
        for quarter in 0..=4 * 60 {
            averages.note(change + Duration::from_millis(250) * quarter, 1.0);
        }
        // 1 - 1/e, 1 - e^(-1/5), and 1 - e^(-1/15) divided by the weight of little more than an hour.
        assert_eq!(shown(&averages), [100, 63, 18, 7]);
    }
}
