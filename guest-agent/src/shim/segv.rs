//! The fault handler: a guest thread that may not access a page asks the daemon and waits, unless it may
//! serve the fault itself ([`Inline`]). It handles SIGSEGV and, in an inline guest, the SIGBUS that its
//! userfaultfd raises.
//!
//! The handler runs on the faulting thread, at any instruction of the guest, so it may only do what is
//! async-signal-safe: system calls and atomics. A fault at an address outside RAM is a real crash of the
//! guest: the handler restores the previous handler and returns, the access faults again, and the process
//! dies as it would have without us. A signal that somebody sent has no access that could fault again, so
//! the handler lets this signal end the process at once.

use std::io;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use memvisor_wire::Gfn;
use memvisor_wire::claims::StallCause;
use memvisor_wire::memory::Fault;
use memvisor_wire::sys::SharedTable;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

use super::channels::{Channels, futex_wait};
use super::inline::{Inline, Step};
use super::mapping::{Mapping, obey};
use super::ram::RamMap;

/// What the handler needs. One guest is one process, so there is one for the process.
#[derive(Debug)]
pub(super) struct Hardware {
    pub(super) map: RamMap,
    pub(super) channels: Channels,
    /// Held by the thread that asks for pages to be attached: the daemon attaches for one thread at a time.
    pub(super) attaching: Mutex<()>,
    /// What guest threads may do without the daemon; `None` if the daemon serves all faults.
    pub(super) inline: Option<Inline<SharedTable>>,
}

static HARDWARE: OnceLock<Hardware> = OnceLock::new();
/// The previous actions of SIGSEGV and SIGBUS.
static PREVIOUS: [OnceLock<SigAction>; 2] = [const { OnceLock::new() }; 2];

/// The place of the previous action of this signal, which is SIGSEGV or SIGBUS.
fn previous_of(signal: Signal) -> &'static OnceLock<SigAction> {
    &PREVIOUS[usize::from(signal == Signal::SIGBUS)]
}

/// Hands the hardware to the handler and installs it.
///
/// # Errors
/// `AlreadyExists` when the process is a guest already; what `sigaction(2)` says.
pub(super) fn install(hardware: Hardware) -> io::Result<&'static Hardware> {
    let error = "this process is a guest already: one process can be one guest";
    HARDWARE
        .set(hardware)
        .map_err(|_| io::Error::new(io::ErrorKind::AlreadyExists, error))?;
    let hardware = HARDWARE
        .get()
        .ok_or_else(|| io::Error::other("set just above"))?;
    let bus = hardware.inline.as_ref().map(|_| Signal::SIGBUS);
    // SA_NODEFER: several threads fault at once, and each waits inside its own handler.
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_NODEFER;
    let action = SigAction::new(SigHandler::SigAction(on_fault), flags, SigSet::empty());
    for signal in [Signal::SIGSEGV].into_iter().chain(bus) {
        // A fault outside RAM before the next line is done is retried until the handler finds the previous action.
        let before = set_action(signal, &action)?;
        previous_of(signal).get_or_init(|| before);
    }
    Ok(hardware)
}

/// Sets the action of a signal. Returns the previous one.
fn set_action(signal: Signal, action: &SigAction) -> nix::Result<SigAction> {
    // SAFETY: the action's handler is ours and async-signal-safe (module text), or was installed before us, or is the
    // kernel's default.
    unsafe { sigaction(signal, action) }
}

extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // Kept, because the interrupted code may be about to read it.
    let errno = nix::errno::Errno::last_raw();
    let Ok(signal) = Signal::try_from(signal) else {
        return;
    };
    // SAFETY: the kernel passes an SA_SIGINFO handler a siginfo that is valid until it returns.
    let info = unsafe { &*info };
    if info.si_code <= 0 {
        die(signal);
    }
    // SAFETY: a siginfo of a SIGSEGV or SIGBUS that the kernel raised holds an address.
    let address = unsafe { info.si_addr() } as usize;
    // Other codes of SIGBUS report broken memory, which we cannot serve.
    let is_access = signal == Signal::SIGSEGV || info.si_code == libc::BUS_ADRERR;
    if is_access
        && let Some(hardware) = HARDWARE.get()
        && let Some(gfn) = hardware.map.linear.gfn_of(address)
    {
        serve(hardware, gfn, is_write(context));
    } else if let Some(previous) = previous_of(signal).get() {
        // Not ours. Returning retries the access, now under the previous handler.
        let _ = set_action(signal, previous);
    }
    nix::errno::Errno::set_raw(errno);
}

/// Ends the process by a signal that somebody sent (`si_code` of 0 and below), as that signal would
/// without a handler. The signal is raised again, because no access will raise it.
fn die(signal: Signal) {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // Errors are ignored: neither call fails for a signal that exists.
    let _ = set_action(signal, &default);
    let _ = raise(signal);
}

/// Gets access to `gfn`: by itself if it may, or else by asking the daemon. Only the time of faults that it serves by
/// itself is added up here, because the daemon sees how long the others take.
fn serve(hardware: &Hardware, gfn: Gfn, write: bool) {
    let Some(inline) = &hardware.inline else {
        return ask(hardware, gfn, write);
    };
    let began = Instant::now();
    let mut cause = None;
    let mut step = inline.begin(gfn, write);
    loop {
        step = match step {
            Step::Claimed(work) => {
                cause = Some(work.stall_cause());
                inline.go_on(&hardware.map, work)
            }
            Step::Sleep { at, word } => {
                futex_wait(inline.table().word(at), word);
                // Not begun anew here: the access that is tried again finds the page, or faults and looks at the offer
                // again.
                cause = Some(StallCause::Asleep);
                Step::Access
            }
            Step::Report => {
                // If the daemon is gone, the next question finds that out.
                let _ = hardware.channels.take().send(Fault::Credits);
                Step::Access
            }
            Step::Access => break,
            Step::Ask(touched) => {
                ask(hardware, gfn, write);
                if let Some(touched) = touched {
                    inline.was_served(touched, Mapping::pages(&hardware.map));
                }
                return;
            }
        };
    }
    if let Some(cause) = cause {
        inline.claimer().add_stall(cause, began.elapsed());
    }
}

/// Asks the daemon for access to `gfn` and does what it says.
fn ask(hardware: &Hardware, gfn: Gfn, write: bool) {
    // Kept until DONE is sent: the daemon expects it over the channel of its reply.
    let channel = hardware.channels.take();
    let fault = if write {
        Fault::Write(gfn)
    } else {
        Fault::Read(gfn)
    };
    let Some(reply) = channel.ask(fault) else {
        wait_for_the_end();
    };
    if let Some(done) = obey(&hardware.map, reply)
        && !channel.send(done)
    {
        wait_for_the_end();
    }
}

/// Waits for the end of the process, because the daemon is gone. The memory thread sees the same, says
/// why and ends the process.
fn wait_for_the_end() -> ! {
    loop {
        // SAFETY: pause(2) has no arguments and touches no memory.
        unsafe { libc::pause() };
    }
}

/// Whether the access was a write. The processor tells. On processors that we do not know how to ask,
/// every fault counts as a write, which at worst costs a needless copy of a shared page.
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
