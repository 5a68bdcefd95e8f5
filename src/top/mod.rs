//! `memvisor top`: the memory screen of esxtop for this host.
//!
//! A screen is a pure function of two snapshots ([`render()`]). So it can be tested as text, and a recorded
//! snapshot is drawn like a live one. [`Terminal`] knows escape sequences and nothing about memory. [`run`]
//! joins the two and waits for a key, a signal or the next interval.

mod bar;
mod render;
mod table;
mod terminal;

use std::io;
use std::time::{Duration, Instant};

use memvisor_wire::signals::{ENDING, Event, Signals};
use nix::sys::signal::Signal;
use thiserror::Error;

pub use render::{Screen, render, summary};
pub use terminal::Terminal;

use crate::control::{Client, ClientError};
use crate::telemetry::{HostStatus, Rates};

/// How `top` runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TopOptions {
    /// Time between two screens.
    pub interval: Duration,
    /// Whether to end after one screen.
    pub once: bool,
    /// Whether to print a line of JSON instead of each screen.
    pub json: bool,
}

/// Why `top` ended although nobody asked it to.
#[derive(Debug, Error)]
pub enum TopError {
    /// The daemon does not answer.
    #[error("cannot get the status of the host")]
    Client(#[from] ClientError),
    /// The terminal, or a signal descriptor, cannot be used.
    #[error("cannot draw the screen")]
    Io(#[from] io::Error),
}

/// Draws until `q` is typed or a signal comes, or only once if so chosen; returns the signal.
///
/// # Errors
/// [`TopError`]; the terminal is restored by then.
pub fn run(client: &Client, options: TopOptions) -> Result<Option<Signal>, TopError> {
    let signals = Signals::block(ENDING)?;
    let live = !options.once && !options.json;
    let mut terminal = Terminal::open(live)?;
    let mut earlier: Option<HostStatus> = None;
    loop {
        let due = Instant::now() + options.interval;
        let status = client.status()?;
        let rates = earlier.as_ref().map(|old| Rates::between(old, &status));
        let text = if options.json {
            json_line(&status, rates.as_ref())
        } else {
            render(&status, rates.as_ref(), terminal.screen())
        };
        terminal.draw(&text)?;
        if options.once {
            return Ok(None);
        }
        earlier = Some(status);
        match pause(&signals, &mut terminal, due)? {
            Pause::Over => {}
            Pause::Quit => return Ok(None),
            Pause::Signal(signal) => return Ok(Some(signal)),
        }
    }
}

enum Pause {
    Over,
    Quit,
    Signal(Signal),
}

/// Waits for the next screen, or for a reason not to draw it.
fn pause(signals: &Signals, terminal: &mut Terminal, due: Instant) -> io::Result<Pause> {
    loop {
        match signals.wait(terminal.keyboard(), due)? {
            Event::Timeout => return Ok(Pause::Over),
            Event::Signal(signal) => return Ok(Pause::Signal(signal)),
            Event::Readable if terminal.quit_typed()? => return Ok(Pause::Quit),
            Event::Readable => {}
        }
    }
}

fn json_line(status: &HostStatus, rates: Option<&Rates>) -> String {
    format!(
        "{}\n",
        serde_json::json!({ "status": status, "rates": rates })
    )
}
