//! What a host serves to Prometheus: the numbers of its status, in a text that a strict reader takes.

mod rig;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};

use memvisor::telemetry::metrics::openmetrics;
use memvisor::telemetry::{HostStatus, VmStatus};
use rig::openmetrics::{Sample, get, parse, scrape};
use rig::{Host, PATIENCE, Process, engines, eventually, host_command, names_all, scratch};

/// The samples without those that move by themselves.
fn still(text: &str) -> BTreeMap<Sample, f64> {
    let mut samples = parse(text);
    samples.retain(|(name, labels), _| {
        let moves = ["uptime", "overcommit", "referenced"];
        let recent = labels.contains_key("window");
        !recent && !moves.iter().any(|word| name.contains(word))
    });
    samples
}

/// Checks some of the samples of a VM by hand.
fn check_vm(samples: &BTreeMap<Sample, f64>, vm: &VmStatus) {
    let value = |name: &str, label: Option<(&str, &str)>| {
        let labels = [("vm", vm.name.as_str())].into_iter().chain(label);
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        samples[&(format!("memvisor_vm_{name}"), labels.collect())]
    };
    #[expect(clippy::cast_precision_loss, reason = "sizes of small guests")]
    let number = |count: u64| count as f64;
    for (home, pages) in vm.homes.each() {
        assert_eq!(
            value("memory_bytes", Some(("home", home))),
            number(pages.bytes().0),
            "{home}"
        );
    }
    assert_eq!(
        value("consumed_bytes", None),
        number(vm.consumed_pages.bytes().0)
    );
    let zip = value("evicted_pages_total", Some(("how", "to_zip")));
    assert_eq!(zip, number(vm.evict.to_zip));
    assert_eq!(
        value("swap_out_bytes_total", None),
        number(vm.swap.out_bytes.0)
    );
    let blocked = value("stall_seconds_total", Some(("cause", "blocked")));
    assert_eq!((blocked * 1e6).round(), number(vm.stalls.blocked_us));
}

#[test]
fn host_under_pressure_serves_the_numbers_of_its_status() {
    for engine in engines() {
        // Scans fast, to be at rest soon.
        let args = ["--http", "127.0.0.1:0", "--share-scan-time", "0.01"];
        let host = Host::quiet(engine, "80M", &args);
        let names = ["a", "b"];
        let guests = names.map(|name| {
            let seed = name.as_bytes()[0];
            host.guest(
                name,
                &format!("--seed {seed} --memory 64M --workload idle,size=56M"),
            )
        });
        let address = host.http_address();
        let ls = || -> Vec<VmStatus> {
            let mut ls = Process::start(host.command("vm ls --json"), "ls", host.path());
            assert_eq!(ls.wait(PATIENCE).code(), Some(0));
            serde_json::from_str(&ls.stdout()).expect("JSON")
        };
        // While they move, each answer is right in itself.
        eventually("the guests are under pressure", PATIENCE, || {
            let samples = parse(&scrape(address));
            let sum = |name: &str| -> f64 {
                let named = samples.iter().filter(|((found, _), _)| found == name);
                named.map(|(_, value)| value).sum()
            };
            assert_eq!(
                sum("memvisor_vm_memory_bytes"),
                sum("memvisor_vm_configured_bytes")
            );
            let taken = sum("memvisor_vm_evicted_pages_total") + sum("memvisor_vm_balloon_bytes");
            (taken > 0.0).then_some(())
        });
        assert_eq!(get(address, "/healthz").1, "ok\n");
        host.rest(&names, PATIENCE);
        let (samples, vms) = eventually("nothing moves between two looks", PATIENCE, || {
            let before: HostStatus = host.status();
            let (samples, vms) = (still(&scrape(address)), ls());
            let after = host.status();
            let is_still = still(&openmetrics(&before)) == still(&openmetrics(&after));
            if is_still {
                assert_eq!(samples, still(&openmetrics(&before)));
            }
            is_still.then_some((samples, vms))
        });
        assert_eq!(vms.len(), 2);
        vms.iter().for_each(|vm| check_vm(&samples, vm));
        guests.into_iter().for_each(|guest| drop(guest.stop()));
        host.stop();
    }
}

#[test]
fn host_refuses_an_address_that_it_cannot_have() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("bound").to_string();
    for (address, code, words) in [
        (taken.as_str(), 1, format!("{taken} in use")),
        ("192.0.2.1:9464", 1, "192.0.2.1:9464 assign".to_owned()),
        (
            "::1:9464x",
            2,
            "--http ::1:9464x 127.0.0.1:9464 [::1]:9464".to_owned(),
        ),
    ] {
        let dir = scratch();
        let command = host_command(&dir, "mprotect", "16M", &["--http", address]);
        Process::start(command, "host", dir.path()).fails(code, &words);
    }
}

#[test]
fn host_warns_of_an_address_that_others_reach_and_serves_none_unless_told() {
    let host = Host::start("mprotect", "16M", &["--http", "0.0.0.0:0"]);
    let port = host.http_address().port();
    parse(&scrape(SocketAddr::from(([127, 0, 0, 1], port))));
    let log = host.stop();
    let warning = log
        .lines()
        .find(|line| line.contains(" WARN "))
        .expect("a warning");
    names_all(warning, "loopback whoever 0.0.0.0");
    let host = Host::start("mprotect", "16M", &[]);
    assert!(host.descriptors("socket:").len() > 1);
    let tcp = std::fs::read_to_string(format!("/proc/{}/net/tcp", host.pid())).expect("readable");
    let sockets = host.descriptors("socket:");
    let inodes = sockets
        .iter()
        .filter_map(|path| std::fs::read_link(path).ok());
    for inode in inodes {
        let inode = inode
            .to_string_lossy()
            .replace("socket:[", " ")
            .replace(']', " ");
        assert!(!tcp.contains(&inode), "a socket of TCP: {inode}");
    }
    let log = host.stop();
    assert!(!log.contains("/metrics"), "{log}");
}
