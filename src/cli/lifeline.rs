//! A child that must not outlive its parent, however the parent ends.
//!
//! The child's standard input is a pipe. The parent holds its write end and never writes. When the parent is
//! gone, even after `kill -9`, the kernel closes that end, and the child reads an end of file.
//! `PR_SET_PDEATHSIG` would be shorter, but it follows the *thread* of the parent, and it is lost if the
//! parent dies before the call.

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
    /// Once standard input ends, ends this process by SIGTERM, and by SIGKILL if that is not enough.
    pub(super) fn watch() -> io::Result<Self> {
        let cut = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&cut);
        thread::Builder::new()
            .name("lifeline".to_owned())
            .spawn(move || {
                // The signal below is for the thread that waits for signals, never for this one.
                let _ = SigSet::all().thread_block();
                wait_for_end();
                // Before the signal: whoever it wakes asks why.
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

/// Reads until the end. An error counts as the end, because it means that the other side is gone too.
fn wait_for_end() {
    // An error means the same as the end: nobody holds the other side any more.
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
}
