//! A child that must not outlive its parent, however the parent ends.
//!
//! The parent holds the write end of a pipe that is the child's standard input and never writes. The
//! kernel closes it when the parent is gone, also after `kill -9`, and the child reads an end of file.
//! `PR_SET_PDEATHSIG` would be shorter but follows the parent's *thread*, and is lost if the parent
//! dies before the call.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::getpid;

/// How long this process may take to end in order once its parent is gone.
const GRACE: Duration = Duration::from_secs(5);

/// A watch on the parent.
#[derive(Debug)]
pub(super) struct Lifeline {
    cut: Arc<AtomicBool>,
}

impl Lifeline {
    /// Ends this process as SIGTERM does when standard input ends, and by SIGKILL if that is not
    /// enough.
    pub(super) fn watch() -> io::Result<Self> {
        let cut = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&cut);
        thread::Builder::new()
            .name("lifeline".to_owned())
            .spawn(move || {
                // The signal below is for the thread that waits for signals, never for this one.
                let _ = SigSet::all().thread_block();
                wait_for_end();
                seen.store(true, Ordering::Relaxed);
                let _ = kill(getpid(), Signal::SIGTERM);
                thread::sleep(GRACE);
                let _ = kill(getpid(), Signal::SIGKILL);
            })?;
        Ok(Self { cut })
    }

    /// Whether the parent is gone.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }
}

/// Reads until the end; an error means that nobody can be at the other side either.
fn wait_for_end() {
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
}
