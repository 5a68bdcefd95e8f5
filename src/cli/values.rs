//! Values of options: text to types, with an error that says what is allowed.

use std::num::NonZeroU32;
use std::time::Duration;

use memvisor_wire::vm_name::check_vm_name;

use crate::machine::{BudgetChoice, BudgetError};
use crate::settings::{Key, SettingError};
use crate::units::{Bytes, DURATIONS, PAGE_SIZE, parse_duration};

/// A size of memory: more than zero, in whole pages.
pub(super) fn memory(text: &str) -> Result<Bytes, String> {
    let bytes = size(text)?;
    if bytes.0 == 0 {
        return Err(format!(
            "`{text}` is no memory at all: at least {PAGE_SIZE}"
        ));
    }
    Ok(bytes)
}

/// The budget of a host: such a size, a part of the machine's memory, or `auto`.
pub(super) fn budget(text: &str) -> Result<BudgetChoice, String> {
    let is_number = text.ends_with(|last: char| last.is_ascii_digit());
    // What looks like a size and is none is told what is wrong with it.
    text.parse().or_else(|error: BudgetError| match is_number {
        true => memory(text).map(BudgetChoice::Size),
        false => Err(error.to_string()),
    })
}

/// A size in whole pages, which may be zero.
pub(super) fn size(text: &str) -> Result<Bytes, String> {
    let bytes: Bytes = text.parse().map_err(|error| format!("{error}"))?;
    if bytes.whole_pages().is_some() {
        return Ok(bytes);
    }
    Err(format!(
        "`{text}` is not a whole number of pages: use a multiple of {PAGE_SIZE}"
    ))
}

/// A size in whole MiB, as the number of them.
pub(super) fn mebibytes(text: &str) -> Result<String, String> {
    let bytes: Bytes = text.parse().map_err(|error| format!("{error}"))?;
    let mib = 1 << 20;
    if bytes.0.is_multiple_of(mib) {
        return Ok((bytes.0 / mib).to_string());
    }
    Err(format!(
        "`{text}` is not a whole number of MiB, such as 512M or 10G"
    ))
}

/// The name of a VM.
pub(super) fn name(text: &str) -> Result<String, String> {
    check_vm_name(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// A time such as `500ms`, `1.5s`, `2m` or `1h`; a bare number counts seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).filter(|time| !time.is_zero());
    time.ok_or_else(|| format!("`{text}` is not a time above 0: write {DURATIONS}"))
}

/// The help of an option that is a host setting.
pub(super) fn help(key: Key) -> String {
    let spec = key.spec();
    format!("{}: {}; {}", spec.name, spec.effect, spec.kind.allowed())
}

/// A parser for values of a host setting. It checks a value, which stays text.
pub(super) fn setting(key: Key) -> impl Fn(&str) -> Result<String, SettingError> + Clone {
    move |text| key.read(text).map(|_| text.to_owned())
}

/// `NAME=VALUE` of a host setting.
pub(super) fn pair(text: &str) -> Result<(Key, String), String> {
    let pair = text.split_once('=');
    let (name, value) = pair.ok_or_else(|| format!("`{text}` is not NAME=VALUE"))?;
    let key = Key::find(name.trim()).map_err(|error| error.to_string())?;
    let value = setting(key)(value).map_err(|error| error.to_string())?;
    Ok((key, value))
}

/// A balloon: a size, or `auto` to let the policy decide.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BalloonSize(pub(super) Option<Bytes>);

/// Reads a size as pages that move in a second.
pub(super) fn pages_per_second(text: &str) -> Result<NonZeroU32, String> {
    let pages = size(text)?.pages().0;
    let pages = u32::try_from(pages).ok().and_then(NonZeroU32::new);
    pages.ok_or_else(|| {
        format!("`{text}` is no rate: write what comes in a second, from 4K to less than 16T")
    })
}

/// Reads a [`BalloonSize`].
pub(super) fn balloon(text: &str) -> Result<BalloonSize, String> {
    if text == "auto" {
        return Ok(BalloonSize(None));
    }
    let bytes = size(text).map_err(|error| format!("{error}, or auto"))?;
    Ok(BalloonSize(Some(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_above_zero() {
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        for text in ["", "0s", "1d"] {
            let error = duration(text).expect_err(text);
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn memory_must_be_whole_pages_and_not_nothing() {
        assert_eq!(memory("256M"), Ok(Bytes::from_mib(256)));
        assert!(memory("0").expect_err("nothing").contains("at least 4096"));
        assert!(
            memory("5000")
                .expect_err("a rest")
                .contains("multiple of 4096")
        );
        assert_eq!(size("0"), Ok(Bytes(0)));
    }
}
