//! Numbers of recordings as people read them.

use jiff::Timestamp;

/// A number in its unit: `12.5 MiB`, `3.2 ms`, `61.4 %`.
#[must_use]
pub(super) fn number(value: f64, unit: &str) -> String {
    let (base, per) = match unit.split_once('/') {
        Some((base, per)) => (base, format!("/{per}")),
        None => (unit, String::new()),
    };
    let steps: &[(f64, &str)] = match base {
        "bytes" => &[
            ((1_u64 << 30) as f64, " GiB"),
            ((1_u64 << 20) as f64, " MiB"),
            (1024.0, " KiB"),
            (0.0, " B"),
        ],
        "seconds" => &[(1.0, " s"), (1e-3, " ms"), (0.0, " us")],
        "ratio" if value.abs() < 2.0 => return format!("{:.1} %{per}", value * 100.0),
        "ratio" => return format!("{value:.2} times{per}"),
        _ => {
            let unit = if unit.is_empty() {
                String::new()
            } else {
                format!(" {unit}")
            };
            return format!("{}{unit}", plain(value));
        }
    };
    let step = steps.iter().find(|(least, _)| value.abs() >= *least);
    let (least, name) = step.copied().unwrap_or((1.0, ""));
    let by = match (least, base) {
        (0.0, "seconds") => 1e-6,
        (0.0, _) => 1.0,
        (least, _) => least,
    };
    format!("{:.1}{name}{per}", value / by)
}

/// A moment, in seconds since 1970, as a date and time of day in UTC; as it is if it is no moment of a calendar.
#[must_use]
pub(super) fn date(unix_s: u64) -> String {
    let moment = i64::try_from(unix_s).ok();
    let moment = moment.and_then(|seconds| Timestamp::from_second(seconds).ok());
    moment.map_or_else(
        || format!("{unix_s} s after 1970"),
        |moment| moment.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    )
}

/// A number without a unit: three digits are enough.
fn plain(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59 UTC"),
            (1_735_689_600, "2025-01-01 00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
            (u64::MAX, "18446744073709551615 s after 1970"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn numbers_have_the_prefix_of_their_size() {
        for (value, unit, text) in [
            (0.0, "bytes", "0.0 B"),
            (1536.0, "bytes", "1.5 KiB"),
            (-3.0 * 1_048_576.0, "bytes/s", "-3.0 MiB/s"),
            (0.614, "ratio", "61.4 %"),
            (3.5, "ratio", "3.50 times"),
            (0.0032, "seconds", "3.2 ms"),
            (0.000_004, "seconds", "4.0 us"),
            (2.0, "seconds/s", "2.0 s/s"),
            (12_345.6, "operations/s", "12346 operations/s"),
            (2.0, "", "2.00"),
        ] {
            assert_eq!(number(value, unit), text);
        }
    }
}
