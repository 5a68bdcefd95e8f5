//! `top` on a screen of its own: waits for a key, a signal or the next sample, and draws.

use std::time::{Duration, Instant};

use memvisor_wire::signals::{ENDING, Event, Signals};
use nix::sys::signal::Signal;

use super::config::Config;
use super::feed::Feed;
use super::view::{Action, View};
use super::{INTERVAL, Terminal, TopError, TopOptions};
use crate::chain::chain;

/// Time between two questions why a VM has its memory: each has the daemon plan several times.
const WHY_EVERY: Duration = Duration::from_secs(3);

/// What the user sees on a screen of its own, and what is needed for that.
struct FullScreen<'a> {
    feed: Feed<'a>,
    view: View,
    terminal: Terminal,
    options: &'a TopOptions,
    /// When the daemon is asked why next.
    why_due: Instant,
}

/// Draws on a screen of its own until `q` is typed or a signal comes.
pub(super) fn full_screen(
    mut feed: Feed<'_>,
    config: Config,
    options: &TopOptions,
) -> Result<Option<Signal>, TopError> {
    if let Some(trouble) = Terminal::trouble() {
        return Err(TopError::NoScreen(trouble));
    }
    // The first sample before the screen: whoever has no host sees why not at once.
    feed.look()?;
    let watched = ENDING
        .into_iter()
        .chain([Signal::SIGWINCH, Signal::SIGTSTP]);
    let signals = Signals::block(watched)?;
    let mut view = View::new(config);
    view.config.interval = options.interval.or(view.config.interval);
    let mut program = FullScreen {
        feed,
        view,
        terminal: Terminal::open(true)?,
        options,
        why_due: Instant::now(),
    };
    program.run(&signals)
}

impl FullScreen<'_> {
    fn run(&mut self, signals: &Signals) -> Result<Option<Signal>, TopError> {
        let mut shown = 1;
        let mut since = Instant::now();
        loop {
            self.draw()?;
            let due = self.due(since);
            match signals.wait(self.terminal.keyboard(), due)? {
                Event::Timeout if Instant::now() >= self.sample_due(since) => {
                    if self.options.count.is_some_and(|count| shown >= count) {
                        return Ok(None);
                    }
                    since = Instant::now();
                    shown += 1;
                    self.feed.advance()?;
                }
                Event::Timeout => {}
                Event::Signal(Signal::SIGWINCH) => {}
                Event::Signal(Signal::SIGTSTP) => self.terminal.suspend()?,
                Event::Signal(signal) => return Ok(Some(signal)),
                Event::Readable => {
                    for key in self.terminal.keys()? {
                        let Some(sample) = self.feed.history().last() else {
                            continue;
                        };
                        match self.view.key(key, sample) {
                            Action::Quit => return Ok(None),
                            action => since = self.act(action, since)?,
                        }
                    }
                }
            }
        }
    }

    /// When the next sample is due: far away if a replay pauses.
    fn sample_due(&self, since: Instant) -> Instant {
        const FAR: Duration = Duration::from_secs(3600);
        let interval = self.view.config.interval.unwrap_or(INTERVAL);
        since + self.feed.time(interval).unwrap_or(FAR)
    }

    /// When to wake up: for the next sample, or to ask why.
    fn due(&self, since: Instant) -> Instant {
        let due = self.sample_due(since);
        if self.view.vm().is_some() {
            due.min(self.why_due)
        } else {
            due
        }
    }

    fn draw(&mut self) -> Result<(), TopError> {
        self.ask_why();
        self.view.progress = self.feed.progress();
        let drawn = self.view.draw(self.feed.history(), self.terminal.screen());
        Ok(self.terminal.draw(&drawn)?)
    }

    /// Asks why the VM that is shown has its memory, if it is time to.
    fn ask_why(&mut self) {
        let sample = self.feed.history().last();
        let vm = self.view.vm().and_then(|id| sample?.vm(id));
        let Some(name) = vm.map(|vm| vm.name.clone()) else {
            return;
        };
        let now = Instant::now();
        let known = self.view.why.as_ref().is_some_and(|(of, _)| *of == name);
        if known && now < self.why_due {
            return;
        }
        self.why_due = now + WHY_EVERY;
        let text = match self.feed.client() {
            // A VM that has just ended has no reasons; the next sample shows that.
            Some(client) => (self.options.explain)(client, &name).unwrap_or_else(|error| error),
            None => "A recording has no reasons.".to_owned(),
        };
        self.view.why = Some((name, text));
    }

    /// Does what the view cannot; returns since when the next sample is waited for.
    fn act(&mut self, action: Action, since: Instant) -> Result<Instant, TopError> {
        match (action, self.feed.replay()) {
            (Action::Save, _) => {
                let saved = self.view.config.save(self.options.config.as_deref());
                self.view.note = Some(match saved {
                    Ok(path) => format!("written to {}", path.display()),
                    Err(error) => chain(&error),
                });
            }
            (Action::Refresh | Action::Step(_) | Action::Faster(_), Some(replay)) => {
                replay.obey(action);
                return Ok(Instant::now());
            }
            (Action::Refresh, None) => {
                self.feed.look()?;
                return Ok(Instant::now());
            }
            (Action::Step(_) | Action::Faster(_), None) => {
                self.view.note = Some("that key is for recordings: --replay FILE".to_owned());
            }
            (Action::Draw | Action::Quit, _) => {}
        }
        Ok(since)
    }
}
