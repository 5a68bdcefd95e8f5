use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::limit::Limits;
use super::super::tests::FakeDaemon;
use super::super::{ServeError, Server};
use super::*;
use crate::telemetry::fixture;

const ANY_PORT: &str = "127.0.0.1:0";

/// A server of the fixture at an address of its own.
struct Setup {
    server: Server,
    daemon: Arc<FakeDaemon>,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

fn serve(address: &str) -> Setup {
    serve_daemon(address, FakeDaemon::default())
}

fn serve_daemon(address: &str, daemon: FakeDaemon) -> Setup {
    let dir = tempfile::tempdir().expect("tempdir");
    let address = address.parse().expect("an address");
    let daemon = Arc::new(daemon);
    let shared = Arc::clone(&daemon);
    let server = Server::start(&dir.path().join("control.sock"), Some(address), shared);
    let server = server.expect("server");
    let address = server.http().expect("it was asked for");
    Setup {
        server,
        daemon,
        address,
        dir,
    }
}

/// Sends `request` as it is; head and body of the answer.
fn raw(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.write_all(request.as_bytes()).expect("send");
    let mut answer = String::new();
    // To the end: the server closes behind each answer.
    stream.read_to_string(&mut answer).expect("answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    (head.to_ascii_lowercase(), body.to_owned())
}

fn ask(address: SocketAddr, method: &str, path: &str) -> (String, String) {
    raw(
        address,
        &format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
    )
}

#[test]
fn metrics_are_served_in_both_families_of_addresses() {
    let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    for address in [ANY_PORT].into_iter().chain(has_ipv6.then_some("[::1]:0")) {
        let setup = serve(address);
        let (head, body) = ask(setup.address, "GET", "/metrics");
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let content_type = format!("content-type: {}", metrics::CONTENT_TYPE);
        assert!(head.lines().any(|line| line == content_type), "{head}");
        let told = fixture::host().for_anybody();
        assert_eq!(body, metrics::openmetrics(&told));
        // What VMs of other salts have is nobody's business here, and nothing is missing for it.
        assert!(
            told.vms
                .iter()
                .all(|vm| vm.sharing.total() == vm.configured_pages)
        );
        let kept = "memvisor_vm_sharing_bytes{vm=\"web\",why=\"other_salt\"} 0";
        assert!(body.lines().any(|line| line == kept), "{body}");
        let (head, body) = ask(setup.address, "HEAD", "/metrics");
        assert!(
            head.starts_with("http/1.1 200") && body.is_empty(),
            "{head}"
        );
    }
}

#[test]
fn host_whose_policy_hangs_is_not_healthy() {
    let setup = serve(ANY_PORT);
    let (head, body) = ask(setup.address, "GET", "/healthz");
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert_eq!(body, "ok\n");
    let long_ago = Instant::now().checked_sub(PATIENCE);
    let mut daemon = FakeDaemon::default();
    daemon.planned = Some(long_ago.expect("this machine runs for longer than that"));
    let setup = serve_daemon(ANY_PORT, daemon);
    let (head, body) = ask(setup.address, "GET", "/healthz");
    assert!(head.starts_with("http/1.1 503"), "{head}");
    assert!(
        body.starts_with("the policy has not planned for 1"),
        "{body}"
    );
}

#[test]
fn all_other_requests_are_told_what_is_allowed() {
    let setup = serve(ANY_PORT);
    for (method, path, status, words) in [
        (
            "POST",
            "/metrics",
            "405",
            "/metrics does not take POST; allowed: GET, HEAD\n",
        ),
        (
            "DELETE",
            "/metrics",
            "405",
            "/metrics does not take DELETE; allowed: GET, HEAD\n",
        ),
        (
            "GET",
            "/v1/status",
            "404",
            "there is no /v1/status; allowed: GET /, /metrics, /healthz\n",
        ),
        (
            "PUT",
            "/v1/settings/Mem.IdleTax",
            "404",
            "there is no /v1/settings/Mem.IdleTax; allowed: GET /, /metrics, /healthz\n",
        ),
    ] {
        let (head, body) = ask(setup.address, method, path);
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{head}");
        assert_eq!(body, words);
        let allowed = head.lines().any(|line| line == "allow: get,head");
        assert_eq!(allowed, status == "405", "{head}");
    }
    let (head, _) = raw(setup.address, "nonsense\r\n\r\n");
    assert!(head.starts_with("http/1.1 400"), "{head}");
}

#[test]
fn address_in_use_is_named_and_nothing_else_is_made() {
    let holder = TcpListener::bind(ANY_PORT).expect("a port");
    let address = holder.local_addr().expect("bound");
    let dir = tempfile::tempdir().expect("tempdir");
    let socket = dir.path().join("control.sock");
    let error = Server::start(&socket, Some(address), Arc::new(FakeDaemon::default()));
    let error = error.expect_err("in use");
    assert!(matches!(error, ServeError::Http { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert!(!socket.exists());
}

#[test]
fn client_is_answered_beside_more_silent_ones_than_there_may_be() {
    let setup = serve(ANY_PORT);
    let requests = [
        "",
        "GET /metr",
        "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ];
    let silent = requests.iter().cycle().take(100).map(|request| {
        let mut stream = TcpStream::connect(setup.address).expect("connect");
        // The server may have closed it already, to make place for another. None of them reads an answer.
        let _ = stream.write_all(request.as_bytes());
        stream
    });
    let _silent: Vec<_> = silent.collect();
    let (_, body) = ask(setup.address, "GET", "/metrics");
    assert!(body.ends_with("# EOF\n"), "{body}");
    assert!(setup.dir.path().join("control.sock").exists());
    // Returns, although they are still there.
    drop(setup.server);
}

#[test]
fn connection_that_says_nothing_is_closed() {
    let limits = Limits {
        connections: 16,
        patience: Duration::from_millis(50),
    };
    let dir = tempfile::tempdir().expect("tempdir");
    let address = ANY_PORT.parse().ok();
    let daemon = Arc::new(FakeDaemon::default());
    let server = Server::within(
        [limits; 2],
        &dir.path().join("control.sock"),
        address,
        daemon,
    );
    let server = server.expect("server");
    let address = server.http().expect("it was asked for");
    for beginning in ["", "GET /metrics HTTP/1.1\r\nhost: localhost\r\n"] {
        let mut stream = TcpStream::connect(address).expect("connect");
        stream.write_all(beginning.as_bytes()).expect("send");
        let mut answer = Vec::new();
        // An end or a reset, but no wait without one.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 1000, "{beginning}");
    }
}

#[test]
fn pages_are_served_with_what_browsers_must_not_do() {
    let setup = serve(ANY_PORT);
    for (path, content_type, whole) in [
        ("/", HTML, &view::live_page()),
        ("/page.css", CSS, &view::STYLE.to_owned()),
        ("/page.js", SCRIPT, &view::SCRIPT.to_owned()),
    ] {
        let (head, body) = ask(setup.address, "GET", path);
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert_eq!(&body, whole, "{path}");
        let content_type = format!("content-type: {content_type}");
        let headers = HEADERS.map(|(name, value)| format!("{name}: {value}"));
        for header in headers.into_iter().chain([content_type]) {
            assert!(head.lines().any(|line| line == header), "{header}\n{head}");
        }
    }
    assert_eq!(setup.daemon.looks(), 0, "a page has no numbers of its own");
}

#[test]
fn loopback_address_answers_to_its_own_names_alone() {
    let setup = serve(ANY_PORT);
    let port = setup.address.port();
    for (host, status) in [
        (format!("127.0.0.1:{port}"), "200"),
        ("LOCALHOST".to_owned(), "200"),
        (format!("[::1]:{port}"), "200"),
        ("192.0.2.7".to_owned(), "200"),
        (format!("pages.example:{port}"), "421"),
        ("127.0.0.1.example".to_owned(), "421"),
        ("localhost.example".to_owned(), "421"),
        ("[::1".to_owned(), "421"),
    ] {
        for path in ["/", "/metrics", "/events", "/none"] {
            let request = format!("HEAD {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
            let (head, _) = raw(setup.address, &request);
            let expected = if (path, status) == ("/none", "200") {
                "404"
            } else {
                status
            };
            assert!(
                head.starts_with(&format!("http/1.1 {expected}")),
                "{host}: {head}"
            );
        }
    }
    let (head, _) = raw(setup.address, "GET /metrics HTTP/1.0\r\n\r\n");
    assert!(
        head.lines()
            .next()
            .is_some_and(|line| line.contains(" 200 ")),
        "{head}"
    );
}

/// A stream of events that is read, at the beginning of its first one.
fn listen(address: SocketAddr) -> (String, BufReader<TcpStream>) {
    let mut stream = TcpStream::connect(address).expect("connect");
    let request = "GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("send");
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).expect("text"), 0, "{head}");
    }
    (head.to_ascii_lowercase(), stream)
}

/// The data of the next event.
fn event(stream: &mut BufReader<TcpStream>) -> String {
    loop {
        let mut line = String::new();
        assert_ne!(
            stream.read_line(&mut line).expect("text"),
            0,
            "it has ended"
        );
        if let Some(data) = line.strip_prefix("data: ") {
            return data.trim_end().to_owned();
        }
    }
}

#[test]
fn streams_share_their_samples_and_nobody_makes_one_for_nobody() {
    let setup = serve(ANY_PORT);
    let start = Instant::now();
    let mut streams: Vec<_> = (0..4).map(|_| listen(setup.address)).collect();
    for (head, stream) in &mut streams {
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        assert_eq!(event(stream), view::event(&fixture::host().for_anybody()));
    }
    // One that never reads, and one that goes away.
    let (_, _idle) = listen(setup.address);
    drop(listen(setup.address));
    for _ in 0..2 {
        for (_, stream) in &mut streams {
            event(stream);
        }
    }
    // Four streams of three events each would be twelve without sharing.
    let seconds = usize::try_from(start.elapsed().as_secs()).expect("few");
    let looks = setup.daemon.looks();
    assert!((3..=seconds + 2).contains(&looks), "{looks} in {seconds} s");
    let Setup { server, .. } = setup;
    drop(server);
    for (_, mut stream) in streams {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("a proper end");
    }
}

#[test]
fn streams_are_no_more_than_there_may_be() {
    let setup = serve(ANY_PORT);
    let streams: Vec<_> = (0..8).map(|_| listen(setup.address)).collect();
    for (head, _) in &streams {
        assert!(head.starts_with("http/1.1 200"), "{head}");
    }
    let (head, body) = ask(setup.address, "GET", "/events");
    assert!(head.starts_with("http/1.1 503"), "{head}");
    assert!(body.contains("try again later"), "{body}");
    let (_, metrics) = ask(setup.address, "GET", "/metrics");
    assert!(metrics.ends_with("# EOF\n"), "others are answered");
    drop(streams);
    // The server notices with its next write to each.
    let patience = Instant::now() + Duration::from_secs(60);
    while !listen(setup.address).0.starts_with("http/1.1 200") {
        assert!(Instant::now() < patience, "no place was given back");
    }
}
