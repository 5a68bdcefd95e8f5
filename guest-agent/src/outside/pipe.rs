//! The agent's end: a guest on standard input and output, as a source of pages.

use std::io::{self, BufRead, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use memvisor_wire::balloon::Stat;
use memvisor_wire::{Gfn, GfnRun};

use super::lines::{Ask, parse_free, parse_runs, parse_stats};
use super::shown::ShownPages;
use crate::balloon::{FreePages, PageSource, Settled};

/// What a guest says unasked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unasked {
    /// It is short of memory: so many pages would help.
    Relief(u64),
    /// The agent should leave: its guest ends.
    Leave,
}

/// A guest at the other end of a pair of pipes.
pub struct Pipe {
    line: Mutex<Line>,
    /// Whether the guest lists free pages, once it was asked.
    lists_free: OnceLock<bool>,
    /// The map that is shared with the host, if one is.
    shown: Mutex<Option<ShownPages>>,
}

struct Line {
    answers: Receiver<String>,
    output: Box<dyn Write + Send>,
    /// The latest answer to `total`.
    total: u64,
}

impl std::fmt::Debug for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipe").finish_non_exhaustive()
    }
}

impl Pipe {
    /// Speaks with a guest. What the guest says unasked is sent to the receiver that is returned; the last of it is
    /// [`Unasked::Leave`].
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn new(
        input: impl BufRead + Send + 'static,
        output: impl Write + Send + 'static,
    ) -> io::Result<(Self, Receiver<Unasked>)> {
        let (answer, answers) = channel();
        let (say, unasked) = channel();
        let read = move || read(input, &answer, &say);
        thread::Builder::new().name("guest".into()).spawn(read)?;
        let line = Mutex::new(Line {
            answers,
            output: Box::new(output),
            total: 0,
        });
        let pipe = Self {
            line,
            lists_free: OnceLock::new(),
            shown: Mutex::default(),
        };
        Ok((pipe, unasked))
    }

    fn shown(&self) -> MutexGuard<'_, Option<ShownPages>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest's answer, whether it refuses or not; nothing if it is gone.
    fn exchange(&self, ask: &Ask) -> Option<String> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.output.write_all(ask.line().as_bytes()).ok()?;
        line.output.flush().ok()?;
        line.answers.recv().ok()
    }

    /// The pages that it answers; none if it is gone or refuses.
    fn runs(&self, ask: &Ask) -> Vec<GfnRun> {
        let answer = self.ask(ask).unwrap_or_default();
        let words: Vec<&str> = answer.split_whitespace().collect();
        parse_runs(&words).unwrap_or_default()
    }

    /// Lets the guest use these pages, if there are any.
    fn give_back(&self, runs: &[GfnRun]) {
        if !runs.is_empty() {
            self.release(runs);
        }
    }

    /// The guest's answer; nothing if it is gone or refuses.
    fn ask(&self, ask: &Ask) -> Option<String> {
        let answer = self.exchange(ask)?;
        match answer.strip_prefix("ok") {
            Some(rest) => Some(rest.to_owned()),
            None => {
                tracing::error!(%answer, "the guest refuses");
                None
            }
        }
    }
}

fn read(input: impl BufRead, answer: &Sender<String>, say: &Sender<Unasked>) {
    for line in input.lines().map_while(Result::ok) {
        let relief = line.strip_prefix("relief ").and_then(|n| n.parse().ok());
        // A receiver that is gone wants to know no more.
        let _ = match relief {
            Some(pages) => say.send(Unasked::Relief(pages)).ok(),
            None => answer.send(line).ok(),
        };
    }
    let _ = say.send(Unasked::Leave);
}

impl PageSource for Pipe {
    fn total_pages(&self) -> u64 {
        let total = self.ask(&Ask::Total).and_then(|it| it.trim().parse().ok());
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.total = total.unwrap_or(line.total);
        line.total
    }

    fn allocate(&self, max: u32, may_reclaim: bool) -> Vec<GfnRun> {
        let reclaim = may_reclaim;
        self.runs(&Ask::Pin { max, reclaim })
    }

    fn release(&self, runs: &[GfnRun]) {
        self.ask(&Ask::Unpin(runs.to_vec()));
    }

    fn stats(&self) -> Vec<Stat> {
        let answer = self.ask(&Ask::Stats).unwrap_or_default();
        parse_stats(&answer.split_whitespace().collect::<Vec<_>>())
    }

    fn free_pages(&self) -> Option<&dyn FreePages> {
        let lists = || {
            let (from, max, fresh) = (Gfn(0), 0, false);
            let answer = self.exchange(&Ask::Free { from, max, fresh });
            answer.is_some_and(|answer| answer.starts_with("ok"))
        };
        self.lists_free.get_or_init(lists).then_some(self)
    }
}

impl FreePages for Pipe {
    fn list(&self, from: Gfn, max: u32, fresh: bool) -> (Vec<GfnRun>, Option<Gfn>) {
        let answer = self.ask(&Ask::Free { from, max, fresh });
        let answer = answer.unwrap_or_default();
        let words: Vec<&str> = answer.split_whitespace().collect();
        parse_free(&words).unwrap_or_default()
    }

    fn pin(&self, runs: &[GfnRun]) -> Vec<GfnRun> {
        match runs {
            // Without pages it would be no line.
            [] => Vec::new(),
            runs => self.runs(&Ask::PinFree(runs.to_vec())),
        }
    }

    fn dropped(&self, runs: &[GfnRun]) {
        self.ask(&Ask::Dropped(runs.to_vec()));
    }

    fn reclaim(&self, max: u32) -> u32 {
        if let Some(shown) = &mut *self.shown() {
            return shown.more(max, self);
        }
        let answer = self.ask(&Ask::Reclaim(max)).unwrap_or_default();
        answer.trim().parse().unwrap_or(0)
    }

    fn show(&self, map: OwnedFd) -> io::Result<()> {
        let pages = u32::try_from(self.total_pages()).map_err(io::Error::other)?;
        *self.shown() = Some(ShownPages::new(&map, pages)?);
        Ok(())
    }

    fn settle(&self) -> Settled {
        let settled = self.shown().as_mut().map(ShownPages::settle);
        let (settled, back) = settled.unwrap_or_default();
        self.give_back(&back);
        settled
    }

    fn hide(&self) {
        let hidden = self.shown().take().map(ShownPages::hide);
        self.give_back(&hidden.unwrap_or_default());
    }
}
