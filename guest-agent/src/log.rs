//! The log of all commands, on standard error: one line for each event.
//!
//! Names, errors and reports of guests get into the log. A line break in them could forge events of the daemon,
//! and other control characters could change what a terminal shows. So every event is made one line here,
//! wherever its text comes from.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Stderr, Write};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::command::UsageError;

/// Logs what `MEMVISOR_LOG` asks for, or by default all events from `level` on.
///
/// # Errors
/// When `MEMVISOR_LOG` cannot be understood.
pub fn to_stderr(level: LevelFilter) -> Result<(), UsageError> {
    let filter = EnvFilter::builder()
        .with_default_directive(level.into())
        .with_env_var("MEMVISOR_LOG")
        .from_env()
        .map_err(|error| UsageError(format!("MEMVISOR_LOG: {error}")))?;
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Lines {
            to: io::stderr(),
            colours,
        })
        .with_ansi(colours)
        .init();
    Ok(())
}

/// Writes events as lines. Each call of `write` has one whole event.
struct Lines {
    to: Stderr,
    colours: bool,
}

impl Write for Lines {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        self.to
            .write_all(one_line(&text, self.colours).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The event with its control characters escaped, except for the line break at its end. With colours, escape
/// characters stay: they are the subscriber's own, because it has already escaped those in texts.
fn one_line(event: &str, colours: bool) -> Cow<'_, str> {
    let (text, end) = match event.strip_suffix('\n') {
        Some(text) => (text, "\n"),
        None => (event, ""),
    };
    let is_bad = |c: char| c.is_control() && !(colours && c == '\x1b');
    if !text.contains(is_bad) {
        return Cow::Borrowed(event);
    }
    let mut line = String::with_capacity(event.len() + 16);
    for c in text.chars() {
        if is_bad(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    Cow::Owned(line + end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_one_line_whatever_is_in_it() {
        let forged = "INFO refused a\nINFO host is up\r\t\x1b[2J\u{85}\n";
        let line = "INFO refused a\\nINFO host is up\\r\\t\\u{1b}[2J\\u{85}\n";
        assert_eq!(one_line(forged, false), line);
        assert_eq!(one_line("a\nb", false), "a\\nb");
        assert_eq!(
            one_line("\x1b[32mINFO\x1b[0m \u{e9}\n", true),
            "\x1b[32mINFO\x1b[0m \u{e9}\n"
        );
    }
}
