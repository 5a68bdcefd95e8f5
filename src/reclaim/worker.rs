//! The worker thread of one VM: gives the core its queue and a clock, and ends the guest's link when the core fails.

use std::error::Error;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam::channel::RecvTimeoutError;
use rustix::process::setpriority_process;

use super::job::{Queue, WorkerHandle, queue};
use super::turn::Core;
use crate::engine::{EngineError, Link};
use crate::sample::Sampler;
use crate::share::Peers;
use crate::vm::Vm;

/// How nice workers are to the threads of guests. Under pressure a guest sleeps for each page that it swaps in, and
/// what takes pages away for it runs meanwhile. A worker that is not nice goes on for the rest of its turn when the page
/// has come, and the guest waits for a processor nearly as long as it waited for the disk. A guest that waits for
/// memory leaves its processor to the worker. With 10 guests gain little more, and beside other work on the machine
/// reclaim gets a tenth of a processor.
const NICE: i32 = 5;

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
            // No one is refused more niceness. Of 0 the kernel understands this thread, not its process.
            let _ = setpriority_process(None, NICE);
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

/// Runs until the worker is no longer wanted.
fn run(mut core: Core, queue: &Queue) -> Result<(), EngineError> {
    let mut first = None;
    loop {
        // The job that ended the sleep comes first; `recv_deadline` has taken it out of the queue.
        let mut jobs = first.take().into_iter().chain(queue.jobs.try_iter());
        let Some(until) = core.step(Instant::now(), &mut jobs)? else {
            return Ok(());
        };
        first = match queue.jobs.recv_deadline(until) {
            Ok(job) => Some(job),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
    }
}
