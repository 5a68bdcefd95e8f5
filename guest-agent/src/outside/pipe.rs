//! The agent's end: a guest on standard input and output, as a source of pages.

use std::io::{BufRead, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use memvisor_wire::GfnRun;
use memvisor_wire::balloon::Stat;

use super::lines::{Ask, parse_runs, parse_stats};
use crate::balloon::PageSource;

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
    ) -> std::io::Result<(Self, Receiver<Unasked>)> {
        let (answer, answers) = channel();
        let (say, unasked) = channel();
        let read = move || read(input, &answer, &say);
        thread::Builder::new().name("guest".into()).spawn(read)?;
        let line = Mutex::new(Line {
            answers,
            output: Box::new(output),
            total: 0,
        });
        Ok((Self { line }, unasked))
    }

    /// The guest's answer; nothing if it is gone or refuses.
    fn ask(&self, ask: &Ask) -> Option<String> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.output.write_all(ask.line().as_bytes()).ok()?;
        line.output.flush().ok()?;
        let answer = line.answers.recv().ok()?;
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
        let answer = self.ask(&Ask::Pin { max, reclaim }).unwrap_or_default();
        let words: Vec<&str> = answer.split_whitespace().collect();
        parse_runs(&words).unwrap_or_default()
    }

    fn release(&self, runs: &[GfnRun]) {
        self.ask(&Ask::Unpin(runs.to_vec()));
    }

    fn stats(&self) -> Vec<Stat> {
        let answer = self.ask(&Ask::Stats).unwrap_or_default();
        parse_stats(&answer.split_whitespace().collect::<Vec<_>>())
    }
}
