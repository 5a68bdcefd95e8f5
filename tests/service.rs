//! The host as a service of systemd: what the manager that started it is told.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use memvisor::settings::ConfigFile;

mod rig;

use rig::{Host, PATIENCE, host_command, names_all, scratch};

/// What a service manager hears.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a path of our own");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("more than 0");
        Self(socket)
    }

    fn hear(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("the host says something");
        String::from_utf8(buffer[..length].to_vec()).expect("text")
    }

    /// Hears out the host until it says what is `wanted`; what it said before.
    fn until(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            let said = self.hear();
            if wanted(&said) {
                return heard;
            }
            heard.push(said);
            assert!(heard.len() < 1000, "not among {heard:?}");
        }
    }
}

#[test]
fn host_tells_its_service_manager_how_it_is() {
    let dir = scratch();
    let socket = dir.path().join("notify");
    let manager = Manager::listen(&socket);
    let mut command = host_command(&dir, "mprotect", "16M", &[]);
    command.env("NOTIFY_SOCKET", &socket);
    command.env("WATCHDOG_USEC", "1000000");
    let host = Host::run(command, dir);
    manager.until(|said| said == "READY=1");
    // The policy thread goes on saying that it lives.
    for _ in 0..3 {
        manager.until(|said| said == "WATCHDOG=1");
    }
    let guest = host.guest("a", "--memory 32M --no-agent --workload stream,size=24M");
    let is_short = |said: &str| said.starts_with("STATUS=") && !said.contains("high");
    manager.until(|said| is_short(said) && said.contains("1 VMs"));
    drop(guest);
    host.stop();
    manager.until(|said| said == "STOPPING=1");
}

#[test]
fn sockets_are_listened_on_when_the_host_says_that_it_is_ready() {
    let dir = scratch();
    let socket = dir.path().join("notify");
    let run = dir.path().join("run");
    let manager = Manager::listen(&socket);
    let mut command = host_command(&dir, "mprotect", "16M", &[]);
    command.env("NOTIFY_SOCKET", &socket);
    let _process = rig::Process::start(command, "host", dir.path());
    let before = manager.until(|said| said == "READY=1");
    assert!(before.iter().all(|said| said != "WATCHDOG=1"), "{before:?}");
    for name in ["memory.sock", "balloon.sock"] {
        let connected = memvisor_wire::SeqPacket::connect(&run.join(name));
        assert!(connected.is_ok(), "{name}: {connected:?}");
    }
    let client = memvisor::control::Client::new(run.join("control.sock")).expect("a client");
    client.status().expect("the host answers");
}

#[test]
fn service_manager_that_asks_for_nonsense_is_refused() {
    let dir = scratch();
    let mut command = host_command(&dir, "mprotect", "16M", &[]);
    command.env("NOTIFY_SOCKET", dir.path().join("notify"));
    command.env("WATCHDOG_USEC", "1s");
    let mut host = rig::Process::start(command, "host", dir.path());
    host.fails(1, "WATCHDOG_USEC=1s number");
    names_all(&host.stderr(), "service manager");
}

#[test]
fn unit_and_configuration_file_of_the_package_are_valid() {
    let file = Path::new("packaging/host.toml");
    let config = ConfigFile::load(file).expect("valid");
    assert!(config.start.memory.is_some(), "a host needs a budget");

    let unit = fs::read_to_string("packaging/debian/memvisor.service").expect("readable");
    let unit = unit.replace("/usr/bin/memvisor", env!("CARGO_BIN_EXE_memvisor"));
    let dir = scratch();
    let path = dir.path().join("memvisor.service");
    fs::write(&path, unit).expect("written");
    let verified = (Command::new("systemd-analyze").args(["verify", "--man=no"]))
        .arg(&path)
        .output();
    match verified {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{said}");
        }
        Err(error) => eprintln!("SKIPPED: systemd-analyze: {error}"),
    }
}
