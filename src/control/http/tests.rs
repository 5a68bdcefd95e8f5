use std::io::{Read, Write};
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
    address: SocketAddr,
    dir: tempfile::TempDir,
}

fn serve(address: &str) -> Setup {
    serve_daemon(address, FakeDaemon::default())
}

fn serve_daemon(address: &str, daemon: FakeDaemon) -> Setup {
    let dir = tempfile::tempdir().expect("tempdir");
    let address = address.parse().expect("an address");
    let server = Server::start(
        &dir.path().join("control.sock"),
        Some(address),
        Arc::new(daemon),
    );
    let server = server.expect("server");
    let address = server.http().expect("it was asked for");
    Setup {
        server,
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
        &format!("{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n"),
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
        assert_eq!(body, metrics::openmetrics(&fixture::host()));
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
            "there is no /v1/status; allowed: GET /metrics, /healthz\n",
        ),
        (
            "PUT",
            "/v1/settings/Mem.IdleTax",
            "404",
            "there is no /v1/settings/Mem.IdleTax; allowed: GET /metrics, /healthz\n",
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
    let requests = ["", "GET /metr", "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"];
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
    for beginning in ["", "GET /metrics HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = TcpStream::connect(address).expect("connect");
        stream.write_all(beginning.as_bytes()).expect("send");
        let mut answer = Vec::new();
        // An end or a reset, but no wait without one.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 1000, "{beginning}");
    }
}
