//! What a host serves to Prometheus: the numbers of its status, in a text that a strict reader takes.

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use memvisor::telemetry::metrics::{CONTENT_TYPE, openmetrics};
use memvisor::telemetry::{HostStatus, VmStatus};
use rig::{Host, PATIENCE, Process, engines, eventually, host_command, names_all, scratch};

/// A name and labels.
type Sample = (String, BTreeMap<String, String>);

/// A family of samples, while its lines are read.
#[derive(Default)]
struct Family {
    name: String,
    kind: String,
    unit: String,
    help: bool,
}

impl Family {
    /// The name that its samples have by OpenMetrics 1.0.
    fn sample(&self) -> String {
        let suffix = match self.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            "gauge" | "stateset" => "",
            kind => panic!("no type `{kind}` is expected"),
        };
        format!("{}{suffix}", self.name)
    }
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    first && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Takes `{name="value",...}` off the beginning.
fn labels<'a>(line: &str, mut rest: &'a str) -> (BTreeMap<String, String>, &'a str) {
    let mut labels = BTreeMap::new();
    rest = rest.strip_prefix('{').expect(line);
    loop {
        let (name, value) = rest.split_once("=\"").expect(line);
        assert!(is_name(name), "{line}");
        let mut text = String::new();
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next().expect(line) {
                (at, '"') => break at,
                (_, '\\') => text.push(match chars.next().expect(line).1 {
                    'n' => '\n',
                    escaped @ ('\\' | '"') => escaped,
                    other => panic!("\\{other}: {line}"),
                }),
                (_, other) => text.push(other),
            }
        };
        assert!(
            labels.insert(name.to_owned(), text).is_none(),
            "twice: {line}"
        );
        rest = &value[end + 1..];
        match rest.split_at(1) {
            (",", more) => rest = more,
            ("}", more) => return (labels, more),
            _ => panic!("{line}"),
        }
    }
}

/// Reads a line that is a sample of `family`.
fn sample(line: &str, family: &Family) -> (Sample, f64) {
    let end = line.find(['{', ' ']).expect(line);
    let (name, rest) = line.split_at(end);
    assert_eq!(name, family.sample(), "{line}");
    let (labels, rest) = if rest.starts_with('{') {
        labels(line, rest)
    } else {
        (BTreeMap::new(), rest)
    };
    let value = rest.strip_prefix(' ').expect(line);
    assert!(
        value
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.'),
        "neither sign nor exponent: {line}"
    );
    let number: f64 = value.parse().expect(line);
    match family.kind.as_str() {
        "info" => assert_eq!(number, 1.0, "{line}"),
        "stateset" => assert!(
            number == 0.0 || number == 1.0 && labels.contains_key(name),
            "{line}"
        ),
        _ => {}
    }
    ((name.to_owned(), labels), number)
}

/// Reads OpenMetrics 1.0, and panics at whatever is not exactly that.
fn parse(text: &str) -> BTreeMap<Sample, f64> {
    let lines = text.strip_suffix("# EOF\n").expect("an end");
    assert!(lines.is_empty() || lines.ends_with('\n'));
    let (mut samples, mut seen) = (BTreeMap::new(), BTreeSet::new());
    let mut family = Family::default();
    let mut has_samples = false;
    for line in lines.lines() {
        let Some(about) = line.strip_prefix("# ") else {
            let (sample, value) = sample(line, &family);
            assert!(family.help, "{line}");
            assert!(samples.insert(sample, value).is_none(), "twice: {line}");
            has_samples = true;
            continue;
        };
        let (word, rest) = about.split_once(' ').expect(line);
        let (name, rest) = rest.split_once(' ').expect(line);
        if word == "TYPE" {
            assert!(
                is_name(name) && seen.insert(name.to_owned()),
                "no name, or twice: {line}"
            );
            family = Family {
                name: name.to_owned(),
                kind: rest.to_owned(),
                ..Family::default()
            };
            has_samples = false;
        }
        assert!(name == family.name && !has_samples, "out of place: {line}");
        match word {
            "TYPE" => {}
            "UNIT" => {
                assert!(
                    family.unit.is_empty() && name.ends_with(&format!("_{rest}")),
                    "{line}"
                );
                assert!(
                    ["counter", "gauge"].contains(&family.kind.as_str()),
                    "{line}"
                );
                family.unit = rest.to_owned();
            }
            "HELP" => family.help = !rest.is_empty() && !family.help,
            _ => panic!("{line}"),
        }
    }
    samples
}

fn scrape(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("connect");
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: {address}\r\n\r\n").expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.contains(CONTENT_TYPE), "{head}");
    body.to_owned()
}

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
