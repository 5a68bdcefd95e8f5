//! Sizes and times as people write them.

use std::time::Duration;

use memvisor_wire::PAGE_SIZE;

/// What [`parse_bytes`] accepts, for messages.
pub const SIZES: &str = "a number of at least one page with B, K, M, G or T, such as 256M";

/// What [`parse_duration`] accepts, for messages.
pub const DURATIONS: &str = "a number with us, ms, s, m or h, such as 10s, at most 1000h";

const LONGEST: Duration = Duration::from_secs(1000 * 3600);

/// Splits `12.5M` into its number and its unit.
fn split(text: &str) -> Option<(f64, String)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.to_ascii_lowercase()))
}

/// Reads a number of bytes; units are binary.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let bytes = number * 2f64.powi(shift);
    (bytes >= 1.0 && bytes < 2f64.powi(52)).then_some(bytes as u64)
}

/// Reads a size of memory and rounds it down to whole pages; `None` for less than one page.
#[must_use]
pub fn parse_pages(text: &str) -> Option<u32> {
    let pages = u32::try_from(parse_bytes(text)? / PAGE_SIZE as u64).ok()?;
    (pages > 0).then_some(pages)
}

/// Reads a time span, such as `10s` or `500ms`; `None` for a number without a unit.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let seconds = match unit.as_str() {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return None,
    };
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    (duration <= LONGEST).then_some(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_parse_with_units_and_refuse_the_rest() {
        for (text, pages) in [("4096", 1), ("8k", 2), ("1.5MiB", 384), ("1g", 1 << 18)] {
            assert_eq!(parse_pages(text), Some(pages), "{text}");
        }
        for text in [
            "", "0", "4095", "M", "-1M", "1.2.3M", "12Q", "99999T", "1e3M",
        ] {
            assert_eq!(parse_pages(text), None, "{text}");
        }
    }

    #[test]
    fn durations_parse_with_units_and_refuse_the_rest() {
        for (text, millis) in [("10s", 10_000), ("1.5ms", 1), ("2m", 120_000), ("0s", 0)] {
            let found = parse_duration(text).expect(text);
            assert_eq!(found.as_millis(), millis, "{text}");
        }
        for text in ["", "10", "s", "-1s", "1001h", "1d"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
