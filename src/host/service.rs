//! Tells the service manager, systemd, how the host is: `sd_notify(3)` as a few lines.
//!
//! A manager that starts a service cannot see when it serves, nor that one of its threads hangs. So it names a
//! datagram socket in the environment, and the service says `READY=1` there once guests can connect, `STOPPING=1`
//! when it ends, and `WATCHDOG=1` again and again: a service that misses its time is killed and started anew.
//! The policy thread says it, since that thread looks after every VM: a host whose policy hangs reclaims nothing,
//! though its sockets still answer.
//!
//! Whoever listens must not be able to hold up the policy. So that thread sends nothing that would have to wait; what
//! did not get through is sent again after the next plan. The crate for this protocol, sd-notify, waits.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::policy::FreeState;
use crate::throttle::Throttle;

/// The shortest time between two `STATUS=` lines: systemd passes each on to all that watch the service.
const STATUS_PERIOD: Duration = Duration::from_secs(1);

/// How long the main thread tries to get through to the manager, and how often.
const INSISTENCE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(20);

/// What is not sent is tried again after each plan.
static FAILURES: Throttle = Throttle::new(1, Duration::from_secs(60));

/// The service manager that wants to be told.
#[derive(Debug)]
pub(super) struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// The longest time between two signs of life that the manager suffers.
    patience: Option<Duration>,
}

impl Manager {
    /// The one that started this process; `None` if none did that wants to be told.
    ///
    /// # Errors
    /// What it asks for cannot be understood or done.
    pub(super) fn of_environment() -> io::Result<Option<Self>> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let Some(at) = set("NOTIFY_SOCKET") else {
            return Ok(None);
        };
        let patience = patience(
            set("WATCHDOG_USEC").as_deref(),
            set("WATCHDOG_PID").as_deref(),
        )?;
        Self::at(&at, patience).map(Some)
    }

    fn at(at: &OsStr, patience: Option<Duration>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // As sd_notify(3) has it, `@` begins a name that is no path.
        let address = match at.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(at)?,
        };
        Ok(Self {
            socket,
            address,
            patience,
        })
    }

    /// Sends assignments such as `WATCHDOG=1`, one a line, unless that would have to wait. Whether they got through.
    fn tell(&self, assignments: &str) -> bool {
        let sent = (self.socket).send_to_addr(assignments.as_bytes(), &self.address);
        if let Err(error) = &sent {
            FAILURES.line(|unsaid| {
                tracing::warn!(assignments, %error, unsaid, "the service manager was not told");
            });
        }
        sent.is_ok()
    }

    /// The same, but tries for a while: what is said only once must not be lost because the manager is busy.
    pub(super) fn insist(&self, assignments: &str) {
        let end = Instant::now() + INSISTENCE;
        while !self.tell(assignments) && Instant::now() < end {
            thread::sleep(RETRY);
        }
    }
}

/// The time that `WATCHDOG_USEC` gives, unless `WATCHDOG_PID` says that it is meant for another process.
fn patience(micros: Option<&OsStr>, pid: Option<&OsStr>) -> io::Result<Option<Duration>> {
    let number = |name: &str, text: &OsStr| {
        let number = text.to_str().and_then(|text| text.parse::<u64>().ok());
        let why = || io::Error::other(format!("{name}={} is not a number", text.display()));
        number.ok_or_else(why)
    };
    let Some(micros) = micros else {
        return Ok(None);
    };
    let micros = number("WATCHDOG_USEC", micros)?;
    let pid = pid.map(|pid| number("WATCHDOG_PID", pid)).transpose()?;
    let ours = pid.is_none_or(|pid| pid == u64::from(process::id()));
    Ok((ours && micros > 0).then_some(Duration::from_micros(micros)))
}

/// The signs of life of the policy thread.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    manager: Option<Arc<Manager>>,
    alive: Option<Instant>,
    status: Option<(Instant, FreeState, usize)>,
}

impl Pulse {
    pub(super) fn new(manager: Option<Arc<Manager>>) -> Self {
        Self {
            manager,
            ..Self::default()
        }
    }

    /// Called after each plan, with the state of free memory and the number of VMs.
    pub(super) fn beat(&mut self, now: Instant, state: FreeState, vms: usize) {
        let Some(manager) = &self.manager else { return };
        let since = |at: Instant| now.saturating_duration_since(at);
        // Half of it, as sd_watchdog_enabled(3) advises.
        let is_due = |patience| self.alive.is_none_or(|at| since(at) >= patience / 2);
        if manager.patience.is_some_and(is_due) && manager.tell("WATCHDOG=1") {
            self.alive = Some(now);
        }
        let is_news = self
            .status
            .is_none_or(|(at, ..)| since(at) >= STATUS_PERIOD)
            && self
                .status
                .is_none_or(|(_, old, count)| (old, count) != (state, vms));
        if is_news && manager.tell(&format!("STATUS=Free memory is {state}; {vms} VMs.")) {
            self.status = Some((now, state, vms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(patience: Option<Duration>) -> (UnixDatagram, Arc<Manager>) {
        let name = format!("memvisor-test-{}-{:?}", process::id(), Instant::now());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let socket = UnixDatagram::bind_addr(&address).expect("nobody else's");
        socket.set_nonblocking(true).expect("possible");
        let manager = Manager::at(OsStr::new(&format!("@{name}")), patience).expect("a socket");
        (socket, Arc::new(manager))
    }

    fn told(socket: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 256];
        let mut told = Vec::new();
        while let Ok(length) = socket.recv(&mut buffer) {
            told.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        told
    }

    #[test]
    fn pulse_beats_at_half_of_the_managers_patience_and_tells_what_is_new() {
        let (socket, manager) = manager(Some(Duration::from_secs(4)));
        let mut pulse = Pulse::new(Some(manager));
        let start = Instant::now();
        let mut beat = |millis, state, vms| {
            pulse.beat(start + Duration::from_millis(millis), state, vms);
            told(&socket)
        };
        let status = |state, vms| format!("STATUS=Free memory is {state}; {vms} VMs.");
        let alive = || "WATCHDOG=1".to_owned();
        assert_eq!(beat(0, FreeState::High, 0), [alive(), status("high", 0)]);
        assert_eq!(beat(500, FreeState::Soft, 1), [""; 0], "too soon");
        assert_eq!(beat(1000, FreeState::Hard, 1), [status("hard", 1)]);
        assert_eq!(beat(1999, FreeState::Hard, 1), [""; 0]);
        assert_eq!(beat(2000, FreeState::Hard, 1), [alive()]);
        assert_eq!(beat(3000, FreeState::Hard, 1), [""; 0]);
        assert_eq!(beat(4200, FreeState::Hard, 2), [alive(), status("hard", 2)]);
    }

    #[test]
    fn manager_that_does_not_read_is_not_waited_for_and_told_later() {
        let (socket, manager) = manager(Some(Duration::from_secs(4)));
        while manager.tell("READY=1") {}
        let mut pulse = Pulse::new(Some(manager));
        let now = Instant::now();
        pulse.beat(now, FreeState::High, 0);
        assert!(told(&socket).iter().all(|it| it == "READY=1"));
        pulse.beat(now, FreeState::High, 0);
        assert_eq!(told(&socket)[0], "WATCHDOG=1");
    }

    #[test]
    fn patience_is_for_the_process_that_it_names() {
        let read = |micros: &str, pid: Option<&str>| {
            patience(Some(OsStr::new(micros)), pid.map(OsStr::new)).map_err(|it| it.to_string())
        };
        let own = process::id().to_string();
        let half = Ok(Some(Duration::from_millis(500)));
        assert_eq!(patience(None, None).expect("nothing is asked for"), None);
        assert_eq!(read("500000", None), half);
        assert_eq!(read("500000", Some(&own)), half);
        assert_eq!(read("500000", Some("1")), Ok(None));
        assert_eq!(read("0", None), Ok(None));
        let error = read("1s", None).expect_err("no number");
        assert_eq!(error, "WATCHDOG_USEC=1s is not a number");
    }
}
