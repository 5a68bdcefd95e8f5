//! A balloon agent that is a program of its own, in any language.
//!
//! **The problem.** An agent needs two things: a connection to the host, and pages of the guest that nobody uses. The
//! first is a socket with a documented protocol. The second only the guest's kernel has.
//!
//! **Why the naive way fails.** An agent that merely knows the token of a guest can name its pages, but not reserve
//! them: whatever it gives to the host, the guest may be using, and loses.
//!
//! **The structures.** [`OutsideAgent`] starts the program and is the kernel's side of its standard input and output,
//! over which the program asks for pages, one line a request, one line an answer. [`Pipe`] is the other end, for agents in
//! Rust. The program learns the rest from its environment: [`SOCKET`], [`TOKEN`], [`PAGES`], [`NAME`].
//!
//! | the agent writes | the guest answers |
//! |---|---|
//! | `pin N` | `ok` and up to N pages that nobody uses, as ` START+COUNT` for each run; fewer when it has no more |
//! | `pin N reclaim` | the same, and the kernel may reclaim pages for it, which can take time |
//! | `pin START+COUNT ...` | `ok` and those of these pages that nobody uses at this moment |
//! | `unpin START+COUNT ...` | `ok`: the guest uses these pages again |
//! | `total` | `ok` and the pages of RAM it has |
//! | `stats` | `ok` and its statistics, as ` TAG=VALUE` for each, with the tags of `STATS` |
//! | `free FROM N` | `ok`, the page at which to go on, or `end`, and up to N pages from FROM on that nobody uses |
//! | `free FROM N fresh` | the same, without those that the host has dropped since they came free |
//! | `dropped START+COUNT ...` | `ok`: the guest uses these free pages after others, because the host has dropped them |
//! | `reclaim N` | `ok` and how many pages it has made free, up to N |
//!
//! Whatever is wrong is answered with `error` and the reason. Unasked the guest says `relief N` when it is short of
//! memory, and it closes the pipe when the agent is to say `STOP` and end. Pages that are pinned when the program ends
//! are the guest's again.

mod lines;
mod pipe;
mod shown;

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use memvisor_wire::{Gfn, GfnRun, RunsExt, runs_of};

use crate::balloon::{AgentSettings, FreePages, PageSource};
use lines::{Ask, free_text, runs_text, stats_text};
pub use pipe::{Pipe, Unasked};
pub use shown::ShownPages;

/// Where the program finds the path of the balloon socket.
pub const SOCKET: &str = "MEMVISOR_BALLOON_SOCKET";
/// Where it finds the token, as hexadecimal digits after `0x`.
pub const TOKEN: &str = "MEMVISOR_BALLOON_TOKEN";
/// Where it finds how many pages of RAM its guest has.
pub const PAGES: &str = "MEMVISOR_BALLOON_PAGES";
/// Where it finds what its guest is called.
pub const NAME: &str = "MEMVISOR_BALLOON_NAME";

/// How long the program may take to say `STOP` and end, before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(10);
/// The longest line of a program, far more than the runs of a whole batch take.
const LONGEST_LINE: u64 = 1 << 20;

/// A program that is the agent of this guest. Dropping it tells the program to leave.
#[derive(Debug)]
pub struct OutsideAgent {
    child: Child,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread that answers the program shares with the handle.
#[derive(Debug)]
struct Shared {
    /// `None` once the program was told to leave.
    input: Mutex<Option<ChildStdin>>,
    pinned: Mutex<Pinned>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Pinned {
    pages: BTreeSet<u32>,
    /// Pages that were unpinned since the start.
    returned: u64,
}

impl OutsideAgent {
    /// Starts `command` by the shell as the agent of the guest behind `source`, for the host at `socket`.
    ///
    /// # Errors
    /// When the process or a thread cannot be started.
    pub fn start(
        command: &str,
        settings: &AgentSettings,
        socket: &PathBuf,
        source: Arc<dyn PageSource>,
    ) -> io::Result<Self> {
        let mut child = Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .env(SOCKET, socket)
            .env(TOKEN, format!("{:#018x}", settings.token))
            .env(PAGES, source.total_pages().to_string())
            .env(NAME, &settings.name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let shared = Arc::new(Shared {
            input: Mutex::new(child.stdin.take()),
            pinned: Mutex::default(),
            changed: Condvar::new(),
        });
        let (output, theirs) = (child.stdout.take(), Arc::clone(&shared));
        let serve = move || theirs.serve(output, source.as_ref());
        let thread = thread::Builder::new().name("outside".into()).spawn(serve)?;
        Ok(Self {
            child,
            shared,
            thread: Some(thread),
        })
    }

    /// Tells the program that the guest is short of `pages` pages, and waits until it has unpinned some or `timeout` has
    /// passed. Returns how many.
    #[must_use]
    pub fn relieve(&self, pages: u64, timeout: Duration) -> u64 {
        let before = self.shared.pinned().returned;
        if self.shared.say(&format!("relief {pages}\n")).is_err() {
            return 0;
        }
        let none = |pinned: &mut Pinned| pinned.returned == before;
        let wait = (self.shared.changed).wait_timeout_while(self.shared.pinned(), timeout, none);
        let (pinned, _) = wait.unwrap_or_else(PoisonError::into_inner);
        pinned.returned - before
    }

    /// How the program ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Tells the program to leave, and does not wait for its end.
    pub fn hang_up(&self) {
        let end = Instant::now() + GRACE;
        while !self.close_input() && Instant::now() < end {
            thread::sleep(LOOK);
        }
    }

    /// Closes the program's input unless an answer is being written to it; whether it is closed.
    fn close_input(&self) -> bool {
        // Not waited for: the thread that answers may be stuck in a write to a program that does not read.
        let input = self.shared.input.try_lock();
        input.is_ok_and(|mut input| {
            *input = None;
            true
        })
    }

    /// Tells the program to leave, and waits for its end; kills it if that takes too long.
    pub fn leave(&mut self) -> Option<ExitStatus> {
        let end = Instant::now() + GRACE;
        loop {
            self.close_input();
            match self.ended() {
                None if Instant::now() < end => thread::sleep(LOOK),
                None => break,
                ended => return ended,
            }
        }
        tracing::warn!("the balloon agent does not leave: it is killed");
        self.kill()
    }

    /// Ends the program at once.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        // It may have ended in between.
        let _ = self.child.kill();
        self.child.wait().ok()
    }
}

impl Drop for OutsideAgent {
    fn drop(&mut self) {
        self.leave();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that answers the balloon agent has panicked");
        }
    }
}

impl Shared {
    fn pinned(&self) -> MutexGuard<'_, Pinned> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, line: &str) -> io::Result<()> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *input {
            Some(input) => input.write_all(line.as_bytes()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Answers the program until it ends or is told to leave, and then takes its pages back.
    fn serve(&self, output: Option<ChildStdout>, source: &dyn PageSource) {
        let mut output = output.map(BufReader::new);
        while let Some(output) = &mut output {
            let mut line = String::new();
            let read = output.by_ref().take(LONGEST_LINE).read_line(&mut line);
            if !matches!(read, Ok(1..)) {
                break;
            }
            let answer = match line.trim_end().parse::<Ask>() {
                Ok(ask) => self.answer(ask, source),
                Err(error) => Err(error),
            };
            let answer = match answer {
                Ok(text) => format!("ok{text}\n"),
                Err(error) => format!("error {error}\n"),
            };
            // A program that has been told to leave may still return pages, and reads no answers.
            let _ = self.say(&answer);
        }
        let left = runs_of(self.pinned().pages.iter().copied().map(Gfn));
        if !left.is_empty() {
            self.unpin(&left, source);
        }
    }

    fn answer(&self, ask: Ask, source: &dyn PageSource) -> Result<String, String> {
        match ask {
            Ask::Pin { max, reclaim } => Ok(self.lent(&source.allocate(max, reclaim))),
            Ask::PinFree(runs) => Ok(self.lent(&free_pages(source)?.pin(&runs))),
            Ask::Unpin(runs) => {
                let pinned = self.pinned();
                let mut pages = runs.iter().flat_map(|run| run.iter());
                if let Some(page) = pages.find(|gfn| !pinned.pages.contains(&gfn.0)) {
                    return Err(format!("page {} is not pinned", page.0));
                }
                drop(pinned);
                self.unpin(&runs, source);
                Ok(String::new())
            }
            Ask::Total => Ok(format!(" {}", source.total_pages())),
            Ask::Stats => Ok(stats_text(&source.stats())),
            Ask::Free { from, max, fresh } => {
                let (runs, next) = free_pages(source)?.list(from, max, fresh);
                Ok(free_text(&runs, next))
            }
            Ask::Dropped(runs) => {
                free_pages(source)?.dropped(&runs);
                Ok(String::new())
            }
            Ask::Reclaim(max) => Ok(format!(" {}", free_pages(source)?.reclaim(max))),
        }
    }

    /// Notes that the program has these pages; they as text.
    fn lent(&self, runs: &[GfnRun]) -> String {
        let gfns = runs.iter().flat_map(|run| run.iter());
        self.pinned().pages.extend(gfns.map(|gfn| gfn.0));
        self.changed.notify_all();
        runs_text(runs)
    }

    fn unpin(&self, runs: &[GfnRun], source: &dyn PageSource) {
        source.release(runs);
        let mut pinned = self.pinned();
        for gfn in runs.iter().flat_map(|run| run.iter()) {
            pinned.pages.remove(&gfn.0);
        }
        pinned.returned += runs.pages();
        self.changed.notify_all();
    }
}

/// The free pages of the guest.
fn free_pages(source: &dyn PageSource) -> Result<&dyn FreePages, String> {
    let free = source.free_pages();
    free.ok_or_else(|| "this guest cannot list its free pages".to_owned())
}

#[cfg(test)]
mod tests {
    use memvisor_wire::balloon::Stat;

    use super::*;

    /// Far more than a shell takes to start on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[derive(Default)]
    struct Pages(Mutex<Vec<GfnRun>>);

    impl PageSource for Pages {
        fn total_pages(&self) -> u64 {
            64
        }
        fn allocate(&self, max: u32, _may_reclaim: bool) -> Vec<GfnRun> {
            vec![GfnRun::new(Gfn(8), max)]
        }
        fn release(&self, runs: &[GfnRun]) {
            self.0.lock().expect("no panic").extend(runs);
        }
        fn stats(&self) -> Vec<Stat> {
            vec![]
        }
    }

    fn start(command: &str) -> (OutsideAgent, Arc<Pages>) {
        let settings = AgentSettings::new(7, "web".into());
        let pages = Arc::new(Pages::default());
        let source: Arc<dyn PageSource> = Arc::<Pages>::clone(&pages);
        let agent = OutsideAgent::start(command, &settings, &"/x/b".into(), source);
        (agent.expect("sh is there"), pages)
    }

    #[test]
    fn program_gets_pages_and_relief_wakes_it() {
        let program = r#"sh -c '
            [ "$MEMVISOR_BALLOON_TOKEN $MEMVISOR_BALLOON_PAGES" = "0x0000000000000007 64" ] || exit 3
            echo "unpin 8+1"; read word rest; [ "$word" = error ] || exit 4
            echo "pin 4"; read -r one; read -r other
            [ "$one" = "ok 8+4" ] || [ "$other" = "ok 8+4" ] || exit 5
            [ "$one" = "relief 2" ] || [ "$other" = "relief 2" ] || exit 6
            echo "unpin 8+2"; while read -r line; do [ "$line" = ok ] || exit 7; done; exit 9'"#;
        let (mut agent, pages) = start(program);
        let none = |pinned: &mut Pinned| pinned.pages.is_empty();
        let pinned = agent.shared.pinned();
        drop((agent.shared.changed).wait_timeout_while(pinned, PATIENCE, none));
        // Whether before or after the answer: a program that has asked reads on until there is one.
        assert_eq!(agent.relieve(2, PATIENCE), 2);
        // Perhaps before the program has been answered.
        let status = agent.leave().expect("it ends");
        assert_eq!(status.code(), Some(9), "{status}");
        drop(agent);
        let released = pages.0.lock().expect("no panic").clone();
        let expected = [GfnRun::new(Gfn(8), 2), GfnRun::new(Gfn(10), 2)];
        assert_eq!(
            released, expected,
            "what it did not return comes back at its end"
        );
    }

    #[test]
    fn program_that_dies_leaves_its_pages_to_the_guest() {
        let (mut agent, pages) = start("sh -c 'echo pin 3; read line; kill -9 $$'");
        let thread = agent.thread.take().expect("it runs");
        thread.join().expect("no panic");
        assert_eq!(*pages.0.lock().expect("no panic"), [GfnRun::new(Gfn(8), 3)]);
        assert!(agent.leave().is_some());
    }

    #[test]
    fn pipe_and_guest_understand_each_other() {
        let (theirs, input) = io::pipe().expect("a pipe");
        let (output, ours) = io::pipe().expect("a pipe");
        let guest = thread::spawn(move || {
            let (mut lines, mut say) = (BufReader::new(output).lines(), input);
            let mut answer = |expected: &str, text: &str| {
                assert_eq!(lines.next().expect("a line").expect("text"), expected);
                say.write_all(text.as_bytes()).expect("it reads");
            };
            answer("pin 4096 reclaim", "relief 9\nok 5+2 9+1\n");
            answer("unpin 5+2", "error no\n");
            answer("total", "ok 77\n");
            answer("stats", "ok 4=1 5=2\n");
            answer("free 0 0", "ok end\n");
            answer("free 3 9 fresh", "ok 12 5+2 9+1\n");
            answer("pin 5+2 9+1", "ok 5+2\n");
            answer("dropped 5+2", "ok\n");
            answer("reclaim 4", "ok 3\n");
        });
        let (pipe, unasked) = Pipe::new(BufReader::new(theirs), ours).expect("a thread");
        let runs = [GfnRun::new(Gfn(5), 2), GfnRun::new(Gfn(9), 1)];
        assert_eq!(pipe.allocate(4096, true), runs);
        pipe.release(&runs[..1]);
        assert_eq!(pipe.total_pages(), 77);
        assert_eq!(pipe.stats().len(), 2);
        let free = pipe.free_pages().expect("it lists them");
        assert_eq!(free.list(Gfn(3), 9, true), (runs.to_vec(), Some(Gfn(12))));
        assert_eq!(free.pin(&runs), runs[..1]);
        free.dropped(&runs[..1]);
        assert_eq!(free.reclaim(4), 3);
        guest.join().expect("no panic");
        assert_eq!(unasked.recv(), Ok(Unasked::Relief(9)));
        assert_eq!(unasked.recv(), Ok(Unasked::Leave));
        assert_eq!(pipe.total_pages(), 77, "the latest one");
    }
}
