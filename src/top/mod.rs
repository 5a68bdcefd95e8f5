//! `memvisor top`: the memory screen of esxtop for this host.
//!
//! Whoever watches a host looks at the same few numbers as a screen, as a recording, as a line in a script. If each of
//! these formatted the status by itself, names and numbers would drift apart, and a recording could not be shown as the
//! host was. So there is one table of numbers (`fields`), and a *sample* of them (`sample`) is all that a screen is drawn
//! from:
//!
//! ```text
//! status, rates --+                    +--> pages (view) --> grid --> terminal, text, picture
//!                 +--> sample, history-+
//! recording ------+                    +--> recording (batch)
//! ```
//!
//! What keys do (`view`) knows neither terminal nor daemon. Pages are pure functions from samples to a grid of characters
//! (`screen`), and are tested as such. [`Terminal`] knows escape sequences and nothing about memory. `program` joins them and
//! waits for a key, a signal or the next interval.

mod bar;
mod batch;
mod config;
#[cfg(test)]
mod document;
mod feed;
mod fields;
mod header;
mod help;
mod keys;
mod picker;
mod picture;
mod pools;
mod program;
#[doc(hidden)]
pub mod readers;
mod recording;
mod sample;
mod screen;
mod table;
mod terminal;
mod view;
mod vm_page;
mod words;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use memvisor_wire::signals::{ENDING, Event, Signals};
use nix::sys::signal::Signal;
use ratatui::buffer::Buffer;
use thiserror::Error;

pub use config::ConfigError;
pub use picture::{SCREEN as PICTURE, write as write_picture};
pub use recording::RecordingError;
pub use screen::Screen;
pub use terminal::Terminal;

use self::batch::Batch;
use self::config::Config;
use self::feed::{Feed, Live, Replay};
use self::fields::Shown as _;
use self::program::full_screen;
use self::sample::Sample;
use self::view::View;
use crate::control::{Client, ClientError};
use crate::telemetry::{HostStatus, Rates, Savings};

/// Time between two screens unless another is chosen.
const INTERVAL: Duration = Duration::from_secs(1);

/// What `top` shows, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mode {
    /// A screen of its own, until the user ends it.
    Screen,
    /// One screen as text.
    Once,
    /// A line of JSON for each sample.
    Json,
    /// A recording.
    Batch,
    /// A recording on a screen of its own.
    Replay(PathBuf),
    /// One screen as an SVG picture.
    Picture(PathBuf),
}

/// How `top` runs.
#[derive(Clone, Debug)]
pub struct TopOptions {
    /// What it shows.
    pub mode: Mode,
    /// Time between two samples; `None` for what the configuration says.
    pub interval: Option<Duration>,
    /// How many samples; `None` for any number.
    pub count: Option<u64>,
    /// The file of the configuration; `None` for the usual one.
    pub config: Option<PathBuf>,
    /// Why a VM has the memory it has, as text for people.
    pub explain: fn(&Client, &str) -> Result<String, String>,
}

/// Why `top` ended although nobody asked it to.
#[derive(Debug, Error)]
pub enum TopError {
    /// The daemon does not answer.
    #[error("cannot get the status of the host")]
    Client(#[from] ClientError),
    /// The terminal, the output, or a signal descriptor, cannot be used.
    #[error("cannot draw the screen")]
    Io(#[from] io::Error),
    /// There is no terminal for a full screen.
    #[error("{0}: use --once for one screen as text, --batch for CSV, or --json")]
    NoScreen(String),
    /// The picture cannot be written.
    #[error("cannot write the picture `{path}`")]
    Picture {
        /// Where it was to go.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The recording cannot be shown.
    #[error(transparent)]
    Recording(#[from] RecordingError),
}

/// Draws `status` as `top` does, on a screen that only the key `q` ends. Without `rates`, those that the daemon measured are shown.
#[must_use]
pub fn draw(status: &HostStatus, rates: Option<&Rates>, screen: Screen) -> Buffer {
    let sample = Sample::of(status, rates, Timestamp::now());
    let mut view = View::new(Config::default());
    view.note = Some("q ends".to_owned());
    view.draw(&[sample], screen)
}

/// One line that says how the host is, for logs and pipes.
#[must_use]
pub fn summary(status: &HostStatus) -> String {
    let savings = Savings::of(status);
    let mib = |pages: crate::units::Pages| {
        let unit = fields::Unit::Memory;
        unit.write(pages.shown(unit))
    };
    format!(
        "{} VM{}, {} of {} MiB used, state {}; saved MiB: {} sharing, {} zero, {} compression, \
         {} swap, {} balloon; {} MiB resident",
        status.vms.len(),
        if status.vms.len() == 1 { "" } else { "s" },
        mib(status.used_pages),
        mib(status.budget_pages),
        status.free_state,
        mib(savings.sharing_pages),
        mib(savings.zero_pages),
        mib(savings.compression_pages),
        mib(savings.swap_pages),
        mib(savings.balloon_pages),
        mib(status.totals.homes.resident_pages),
    )
}

/// Shows the host until the user or a signal ends it, or as often as was chosen; returns the signal.
///
/// # Errors
/// [`TopError`]; the terminal is restored by then.
pub fn run(client: &Client, options: &TopOptions) -> Result<Option<Signal>, TopError> {
    // What scripts read does not depend on what a user likes to see.
    let config = || Config::load(options.config.as_deref());
    match &options.mode {
        Mode::Screen => full_screen(
            Feed::Live(Live::new(client), Vec::new()),
            config()?,
            options,
        ),
        Mode::Replay(path) => full_screen(Feed::Replay(Replay::open(path)?), config()?, options),
        Mode::Once => {
            let mut terminal = Terminal::open(false)?;
            let sample = Live::new(client).sample()?;
            let screen = terminal.screen();
            terminal.draw(&View::new(config()?).draw(&[sample], screen))?;
            Ok(None)
        }
        Mode::Picture(path) => {
            let sample = Live::new(client).sample()?;
            let drawn = View::new(config()?).draw(&[sample], PICTURE);
            write_picture(&drawn, path).map_err(|source| TopError::Picture {
                path: path.clone(),
                source,
            })?;
            Ok(None)
        }
        Mode::Json => each(client, options, |status, rates| {
            print(&json_line(status, rates))
        }),
        Mode::Batch => {
            let mut batch = None;
            each(client, options, |status, rates| {
                record(&mut batch, &Sample::of(status, rates, Timestamp::now()))
            })
        }
    }
}

/// Shows each sample until a signal comes.
fn each(
    client: &Client,
    options: &TopOptions,
    mut show: impl FnMut(&HostStatus, Option<&Rates>) -> io::Result<()>,
) -> Result<Option<Signal>, TopError> {
    let signals = Signals::block(ENDING)?;
    let interval = options.interval.unwrap_or(INTERVAL);
    let mut live = Live::new(client);
    let mut shown = 0;
    loop {
        let due = Instant::now() + interval;
        let (status, rates) = live.next()?;
        show(status, rates.as_ref())?;
        shown += 1;
        if options.count.is_some_and(|count| shown >= count) {
            return Ok(None);
        }
        if let Event::Signal(signal) = signals.wait(None, due)? {
            return Ok(Some(signal));
        }
    }
}

fn json_line(status: &HostStatus, rates: Option<&Rates>) -> String {
    format!(
        "{}\n",
        serde_json::json!({ "status": status, "rates": rates })
    )
}

/// Writes a sample behind the others, the headings before the first.
fn record(batch: &mut Option<Batch<io::Stdout>>, sample: &Sample) -> io::Result<()> {
    let batch = match batch {
        Some(batch) => batch,
        None => {
            let host = nix::unistd::gethostname().unwrap_or_default();
            let host = host.to_string_lossy().replace(['\\', '"'], "?");
            batch.insert(Batch::begin(io::stdout(), &host, sample)?)
        }
    };
    for name in batch.add(sample)? {
        tracing::warn!("VM {name} has started and is not recorded: the first line fixes the VMs");
    }
    Ok(())
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    io::Write::write_all(&mut out, text.as_bytes())?;
    io::Write::flush(&mut out)
}

#[cfg(test)]
mod tests;
