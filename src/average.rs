//! The exponential average of a level over a span of time, as a load average is: it costs two numbers and no history.
//!
//! An average that begins at zero is too low until about one span has passed. So it is divided by the weight of the
//! time that it has seen.

use std::time::Duration;

/// See the module text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Average {
    span: Duration,
    sum: f64,
    /// The weight of what is in the sum: 0 to 1.
    weight: f64,
}

impl Average {
    /// An average over `span` that has seen nothing yet.
    #[must_use]
    pub(crate) const fn over(span: Duration) -> Self {
        Self {
            span,
            sum: 0.0,
            weight: 0.0,
        }
    }

    /// Notes what the level was while `passed` went by.
    pub(crate) fn note(&mut self, level: f64, passed: Duration) {
        let kept = (-passed.as_secs_f64() / self.span.as_secs_f64()).exp();
        self.sum = self.sum * kept + level * (1.0 - kept);
        self.weight = self.weight * kept + (1.0 - kept);
    }

    /// The average; `None` while no time has passed.
    #[must_use]
    pub(crate) fn mean(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_is_the_level_from_the_start_and_follows_a_change_in_its_span() {
        let mut average = Average::over(Duration::from_secs(60));
        assert_eq!(average.mean(), None);
        average.note(0.5, Duration::from_secs(1));
        assert_eq!(average.mean(), Some(0.5));
        average.note(0.0, Duration::from_secs(3600));
        average.note(1.0, Duration::from_secs(60));
        let mean = average.mean().expect("an hour");
        assert!((mean - (1.0 - (-1.0_f64).exp())).abs() < 1e-9, "{mean}");
    }
}
