//! The worker thread of one VM: gives the core its queue and a clock, and ends the guest's link when the core fails.

use std::error::Error;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::RecvTimeoutError;
use rustix::process::{getpriority_process, setpriority_process};

use super::job::{Queue, WorkerHandle, queue};
use super::turn::Core;
use crate::engine::{EngineError, Link};
use crate::sample::Sampler;
use crate::share::Peers;
use crate::vm::Vm;

/// How nice workers are to the threads of guests. Under pressure a guest sleeps for each page that it swaps in, and
/// what takes pages away for it runs meanwhile. A worker that is not nice goes on for the rest of its turn when the page
/// has come, and the guest waits for a processor nearly as long as it waited for the disk. With 10 guests gain little
/// more, and beside other work on the machine reclaim gets a tenth of a processor.
const NICE: i32 = 5;
/// How long a worker is not nice after faults have waited for memory.
const HURRY: Duration = Duration::from_millis(100);

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    handle: WorkerHandle,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts the worker of `vm`. It neither scans nor samples until it is told how fast.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        vm: Arc<Vm>,
        link: Arc<Link>,
        peers: Arc<dyn Peers>,
        sampler: Sampler,
    ) -> std::io::Result<Self> {
        let (handle, queue) = queue();
        let name = format!("work-{}", vm.params.name);
        let thread = thread::Builder::new().name(name).spawn(move || {
            let core = Core::new(Arc::clone(&vm), peers, sampler, &queue, Instant::now());
            match run(core, &queue) {
                Ok(()) => return,
                Err(EngineError::Gone) => {}
                Err(error) => {
                    let error: &dyn Error = &error;
                    tracing::error!(vm = %vm.params.name, error, "the VM cannot go on");
                    vm.set_end_reason(&format!("its worker failed: {error}"));
                }
            }
            // The fault thread sees the end of the link and ends the VM.
            link.end(&vm.end_reason().unwrap_or_default());
        })?;
        Ok(Self { handle, thread })
    }

    /// How others reach it.
    #[must_use]
    pub const fn handle(&self) -> &WorkerHandle {
        &self.handle
    }

    /// Ends the worker and waits until it has ended. The link must have ended before: otherwise the worker may wait
    /// for its guest.
    ///
    /// # Panics
    /// When the worker panicked: the VM's pages may be in any state, and the daemon must not go on.
    pub fn join(self) {
        self.handle.end();
        self.thread.join().expect("a worker ends without panicking");
    }
}

/// How nice this thread is: as its process, or [`NICE`] if that is nicer.
///
/// Faults that wait for memory wait for the worker. A guest that waits leaves its own processor to it, but not those
/// on which other guests compute: there a nice worker gets a processor late, and each fault waits for that. So a worker
/// is nice only while nobody waits. To come back from being nice takes `CAP_SYS_NICE` or `RLIMIT_NICE`. A worker that
/// may not stays nice: most guests under pressure sleep for pages more than they compute.
#[derive(Debug)]
struct Niceness {
    /// How nice the thread is when it hurries: as it was at first.
    least: i32,
    /// Until when it is not nice. `None`: it is.
    hurry: Option<Instant>,
    /// Whether it was refused to come back.
    stays: bool,
}

impl Niceness {
    /// Has this thread be nice.
    fn new() -> Self {
        // Without a number, the kernel takes this thread, not its process.
        let least = getpriority_process(None).unwrap_or_default();
        // No one is refused more niceness.
        let _ = setpriority_process(None, least.max(NICE));
        Self {
            least,
            hurry: None,
            stays: false,
        }
    }

    /// Has this thread be as nice as it is to be at `now`.
    fn go_by(&mut self, is_waited_for: bool, now: Instant) {
        if is_waited_for && !self.stays {
            if self.hurry.is_none() && setpriority_process(None, self.least).is_err() {
                self.stays = true;
                return;
            }
            self.hurry = Some(now + HURRY);
        } else if self.hurry.is_some_and(|until| now >= until) {
            let _ = setpriority_process(None, self.least.max(NICE));
            self.hurry = None;
        }
    }
}

/// Runs until the worker is no longer wanted.
fn run(mut core: Core, queue: &Queue) -> Result<(), EngineError> {
    let mut first = None;
    let mut niceness = Niceness::new();
    loop {
        let now = Instant::now();
        niceness.go_by(core.is_waited_for(), now);
        // The job that ended the sleep comes first; `recv_deadline` has taken it out of the queue.
        let mut jobs = first.take().into_iter().chain(queue.jobs.try_iter());
        let Some(until) = core.step(now, &mut jobs)? else {
            return Ok(());
        };
        first = match queue.jobs.recv_deadline(until) {
            Ok(job) => Some(job),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How nice a thread was that began with `before`, and how nice it is then.
    fn go_through(before: i32) -> (i32, [i32; 6]) {
        let go = move || {
            let _ = setpriority_process(None, before);
            let before = getpriority_process(None).expect("always");
            let mut niceness = Niceness::new();
            let now = Instant::now();
            let mut after = |is_waited_for, passed| {
                niceness.go_by(is_waited_for, now + passed);
                getpriority_process(None).expect("always")
            };
            let then = [
                after(false, Duration::ZERO),
                after(true, Duration::ZERO),
                after(false, HURRY / 2),
                after(true, HURRY / 2),
                after(false, HURRY),
                after(false, HURRY * 3 / 2),
            ];
            (before, then)
        };
        // One that may not come back from being nice would slow down the tests after it.
        thread::spawn(go).join().expect("it does not panic")
    }

    /// Whether a thread that has become nicer may come back.
    fn may_come_back() -> bool {
        let go = || {
            let before = getpriority_process(None).expect("always");
            setpriority_process(None, before + 1).expect("always");
            setpriority_process(None, before).is_ok()
        };
        thread::spawn(go).join().expect("it does not panic")
    }

    #[test]
    fn worker_is_nice_until_faults_wait_and_again_some_time_after() {
        for asked in [0, 3, 10] {
            let (before, then) = go_through(asked);
            let nice = before.max(NICE);
            let hurried = if may_come_back() { before } else { nice };
            let expected = [nice, hurried, hurried, hurried, hurried, nice];
            assert_eq!(then, expected, "began with {before}");
        }
    }
}
