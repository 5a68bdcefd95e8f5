//! The fault handler: a guest thread that may not access a page asks the daemon and waits, unless it may
//! serve itself ([`Inline`]). It is the handler of SIGSEGV, and of an inline guest's SIGBUS, which is what
//! its userfaultfd raises.
//!
//! It runs on the faulting thread, at any instruction of the guest, so it may only do what is
//! async-signal-safe: system calls and atomics. An address outside RAM
//! is a real crash of the guest: the handler puts the previous one back and returns, the access
//! faults again, and the process dies as it would have without us. A signal that somebody sent is no
//! access that could fault again, so the process is ended by the signal at once.

use std::io;
use std::ptr;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use crate::protocol::Gfn;
use crate::protocol::claims::Stood;
use crate::protocol::memory::Fault;

use super::channels::Channels;
use super::inline::{Inline, Step};
use super::mapping::obey;
use super::ram::RamMap;
use super::table::SharedTable;

/// What the handler needs. One guest is one process, so there is one for the process.
#[derive(Debug)]
pub(super) struct Hardware {
    pub(super) map: RamMap,
    pub(super) channels: Channels,
    /// Held by who asks for pages to be attached: the daemon does so for one thread at a time.
    pub(super) attaching: Mutex<()>,
    /// What its threads may do without the daemon.
    pub(super) inline: Option<Inline<SharedTable>>,
}

static HARDWARE: OnceLock<Hardware> = OnceLock::new();
static PREVIOUS: [OnceLock<Saved>; SIGNALS.len()] = [const { OnceLock::new() }; SIGNALS.len()];

/// What an access that is not allowed raises.
const SIGNALS: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

struct Saved(libc::sigaction);

/// Hands the hardware to the handler and installs it.
///
/// # Errors
/// `AlreadyExists` when the process is a guest already; what `sigaction(2)` says.
pub(super) fn install(hardware: Hardware) -> io::Result<&'static Hardware> {
    if HARDWARE.set(hardware).is_err() {
        let error = "this process is a guest already: one process can be one guest";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, error));
    }
    let hardware = HARDWARE
        .get()
        .ok_or_else(|| io::Error::other("set just above"))?;
    let signals = if hardware.inline.is_some() { 2 } else { 1 };
    for (signal, previous) in SIGNALS.into_iter().zip(&PREVIOUS).take(signals) {
        previous.get_or_init(|| Saved(current_action(signal)));
        let mut action = current_action(signal);
        action.sa_sigaction = on_fault as *const () as usize;
        // SA_NODEFER: several threads fault at once, and each waits inside its own handler.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        set_action(signal, &action)?;
    }
    Ok(hardware)
}

fn current_action(signal: libc::c_int) -> libc::sigaction {
    // SAFETY: all-zero bytes are a valid `sigaction`: SIG_DFL, no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with a null new action the call only writes the current one into `action`, which is
    // a valid place for it. It can fail only for a bad signal number, and then leaves SIG_DFL.
    unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) };
    action
}

fn set_action(signal: libc::c_int, action: &libc::sigaction) -> io::Result<()> {
    // SAFETY: `action` is valid and outlives the call; a null old action is allowed. The handler it
    // names is async-signal-safe (module text) or was installed before us.
    let done = unsafe { libc::sigaction(signal, action, ptr::null_mut()) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let errno = nix::errno::Errno::last_raw();
    // SAFETY: the kernel passes an SA_SIGINFO handler a siginfo that is valid until it returns.
    let info = unsafe { &*info };
    if info.si_code <= 0 {
        die(signal);
    }
    // SAFETY: a siginfo of a SIGSEGV or SIGBUS that the kernel raised holds an address.
    let address = unsafe { info.si_addr() } as usize;
    // Other codes of SIGBUS tell of broken memory.
    let is_access = signal == libc::SIGSEGV || info.si_code == libc::BUS_ADRERR;
    let fault = HARDWARE
        .get()
        .filter(|_| is_access)
        .and_then(|hardware| hardware.map.gfn_of(address).map(|gfn| (hardware, gfn)));
    match fault {
        Some((hardware, gfn)) => serve(hardware, gfn, is_write(context)),
        // Not ours. Returning retries the access, now under the previous handler.
        None => {
            for (ours, previous) in SIGNALS.into_iter().zip(&PREVIOUS) {
                if let Some(Saved(previous)) = previous.get().filter(|_| ours == signal) {
                    let _ = set_action(signal, previous);
                }
            }
        }
    }
    nix::errno::Errno::set_raw(errno);
}

/// Ends the process by a signal that was sent (`si_code` of 0 and below), as it would without a
/// handler. The signal is raised again, because there is no access that could raise it.
fn die(signal: libc::c_int) {
    // SAFETY: all-zero bytes are a valid `sigaction`: SIG_DFL, no flags, an empty mask.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    let _ = set_action(signal, &default);
    // SAFETY: raise(3) is async-signal-safe and touches no memory of ours.
    unsafe { libc::raise(signal) };
}

/// Gets access to `gfn`: by itself if it may, or else by asking the daemon, which sees for how long then.
fn serve(hardware: &Hardware, gfn: Gfn, write: bool) {
    let Some(inline) = &hardware.inline else {
        return ask(hardware, gfn, write);
    };
    let began = Instant::now();
    let mut stood = None;
    let mut step = inline.begin(gfn, write);
    loop {
        step = match step {
            Step::Claimed(work) => {
                stood = Some(work.stood());
                inline.go_on(&hardware.map, work)
            }
            Step::Sleep { at, word } => {
                inline.table().sleep(at, word);
                stood = Some(Stood::Asleep);
                Step::Access
            }
            Step::Tell => {
                // If the daemon is gone, the next question finds that out.
                let _ = hardware.channels.take().send(Fault::Credits);
                Step::Access
            }
            Step::Access => break,
            Step::Ask => return ask(hardware, gfn, write),
        };
    }
    if let Some(stood) = stood {
        inline.stood(stood, began.elapsed());
    }
}

/// Asks the daemon for access to `gfn` and does what it says.
fn ask(hardware: &Hardware, gfn: Gfn, write: bool) {
    let channel = hardware.channels.take();
    let fault = if write {
        Fault::Write(gfn)
    } else {
        Fault::Read(gfn)
    };
    if !channel.send(fault) {
        wait_for_the_end();
    }
    let Some(reply) = channel.reply() else {
        wait_for_the_end();
    };
    if let Some(done) = obey(&hardware.map, reply)
        && !channel.send(done)
    {
        wait_for_the_end();
    }
}

/// The daemon is gone. The memory thread sees the same, says why and ends the process; a thread
/// that cannot go on without its page waits for that.
fn wait_for_the_end() -> ! {
    loop {
        // SAFETY: pause(2) has no arguments and touches no memory.
        unsafe { libc::pause() };
    }
}

/// Whether the access was a write. The processor tells; where we do not know how to ask it, every
/// fault counts as a write, which costs a needless copy at worst.
#[cfg(target_arch = "x86_64")]
fn is_write(context: *mut libc::c_void) -> bool {
    const PAGE_FAULT_WRITE: i64 = 1 << 1;
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid ucontext as the third argument of an SA_SIGINFO handler, and
    // REG_ERR is inside its register array.
    let error = unsafe { (*context).uc_mcontext.gregs[libc::REG_ERR as usize] };
    error & PAGE_FAULT_WRITE != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn is_write(_context: *mut libc::c_void) -> bool {
    true
}
