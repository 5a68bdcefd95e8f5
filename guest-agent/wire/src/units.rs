//! Sizes and times as people write them: one grammar for command lines, workloads, settings and files.
//!
//! A quantity is a decimal number, perhaps spaces, and perhaps a unit, whose case does not matter. What a bare number
//! counts, and which sizes and times make sense, is up to the caller.
//!
//! No crate has this grammar. `humantime` takes whole numbers only, but a setting shows a time as `0.05 min` and must
//! take back what it shows. `bytesize` counts a K as 1000 bytes. `parse-size` takes `1e3` and `1_0` for sizes and
//! knows no pages. None of them splits `50%`.

use std::time::Duration;

use crate::PAGE_SIZE;

/// What [`parse_bytes`] accepts, for messages.
pub const SIZES: &str = "a number with B, K, M, G, T or pages, such as 256M or 1.5GiB";

/// What [`parse_duration`] accepts, for messages.
pub const DURATIONS: &str = "a number with us, ms, s, m or h, such as 10s or 1.5h";

/// Splits `12.5 M` into its number and its unit, which may be empty. `None` if it does not begin with a number.
#[must_use]
pub fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let mut parts = number.splitn(2, '.');
    let is_number = parts.all(|digits| !digits.is_empty() && !digits.contains('.'));
    is_number.then(|| (number, unit.trim_start()))
}

/// Reads a number of bytes; units are binary, and a bare number counts bytes. A fraction of a byte is dropped.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let unit: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        "p" | "page" | "pages" => PAGE_SIZE as u64,
        _ => return None,
    };
    // Whole numbers are multiplied as such, because a float does not hold all of 64 bits.
    if !number.contains('.') {
        return number.parse::<u64>().ok()?.checked_mul(unit);
    }
    let bytes = number.parse::<f64>().ok()? * unit as f64;
    (bytes < 2f64.powi(63)).then_some(bytes as u64)
}

/// Reads a size of memory and rounds it down to whole pages; `None` for less than one page.
#[must_use]
pub fn parse_pages(text: &str) -> Option<u32> {
    let pages = u32::try_from(parse_bytes(text)? / PAGE_SIZE as u64).ok()?;
    (pages > 0).then_some(pages)
}

/// Whether a text says that the most of something has no bounds: `none`, or in ESX's words `unlimited` or -1.
#[must_use]
pub fn is_unlimited(text: &str) -> bool {
    text == "none" || text == "-1" || text.eq_ignore_ascii_case("unlimited")
}

/// Reads a time span, such as `10s`, `500ms` or `1.5h`; a bare number counts seconds.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse_duration_in(text, "s")
}

/// Reads a time span; a bare number counts `bare`, which is one of the units.
#[must_use]
pub fn parse_duration_in(text: &str, bare: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let unit = if unit.is_empty() { bare } else { unit };
    let unit = match unit.to_ascii_lowercase().as_str() {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units_and_fractions() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("8k", 8192),
            ("512M", 512 << 20),
            ("1.5GiB", 3 << 29),
            (" 64 kib ", 64 << 10),
            ("2t", 2 << 40),
            ("500 pages", 500 << 12),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        assert_eq!((parse_pages("4097"), parse_pages("4095")), (Some(1), None));
        assert_eq!(parse_pages("99999T"), None);
    }

    #[test]
    fn times_have_units_and_fractions_and_bare_ones_count_as_told() {
        for (text, micros) in [
            ("10s", 10_000_000),
            ("1.5ms", 1500),
            ("3us", 3),
            ("2m", 120_000_000),
            ("0.05 min", 3_000_000),
            ("1H", 3_600_000_000),
            ("0s", 0),
            ("7", 7_000_000),
        ] {
            let time = Duration::from_micros(micros);
            assert_eq!(parse_duration(text), Some(time), "{text}");
        }
        let minutes = parse_duration_in("0.5", "min");
        assert_eq!(minutes, Some(Duration::from_secs(30)));
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "",
            "M",
            "s",
            "-5M",
            "+1",
            "1.2.3G",
            ".5M",
            "5.M",
            "1e3M",
            "infM",
            "1_0",
            "12Q",
            "1d",
            "1M s",
            "99999999999T",
            "99999999.9T",
            "5000000000000000 pages",
            "99999999999999999999999h",
        ] {
            assert_eq!(parse_bytes(text), None, "{text}");
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
