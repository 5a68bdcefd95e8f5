use std::io::{ErrorKind, Read, Write};
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::limit::Limits;
use super::*;
use crate::settings::{Key, Layers, VmSettings};
use crate::telemetry::{VmShareEstimate, fixture};

/// Why the fake daemon cannot reload.
#[derive(Clone, Copy)]
pub(super) enum Fault {
    NoConfig,
    BadConfig,
    Stopping,
    Surveying,
}

/// A daemon of the two VMs of the fixture that remembers what it was asked to do.
#[derive(Default)]
pub(super) struct FakeDaemon {
    asked: Mutex<Vec<String>>,
    looks: AtomicUsize,
    layers: Mutex<Layers>,
    fault: Mutex<Option<Fault>>,
    /// When its policy planned last; `None` for just now.
    pub(super) planned: Option<Instant>,
}

impl FakeDaemon {
    fn find(&self, name: &str) -> Result<VmStatus, ControlError> {
        let vms = self.status().vms;
        let running = vms.iter().map(|vm| vm.name.clone()).collect();
        let name_owned = name.to_owned();
        vms.into_iter()
            .find(|vm| vm.name == name)
            .ok_or(ControlError::UnknownVm {
                name: name_owned,
                running,
            })
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }

    fn note(&self, what: String) {
        self.asked.lock().expect("no panic").push(what);
    }

    /// How often its status was made.
    pub(super) fn looks(&self) -> usize {
        self.looks.load(Ordering::Relaxed)
    }

    pub(super) fn set_fault(&self, fault: Fault) {
        *self.fault.lock().expect("no panic") = Some(fault);
    }
}

impl Daemon for FakeDaemon {
    fn status(&self) -> HostStatus {
        self.looks.fetch_add(1, Ordering::Relaxed);
        fixture::host()
    }

    fn planned(&self) -> Instant {
        self.planned.unwrap_or_else(Instant::now)
    }

    fn vm(&self, name: &str) -> Option<VmStatus> {
        self.find(name).ok()
    }

    fn estimate_sharing(&self) -> Result<ShareEstimate, ControlError> {
        match *self.fault.lock().expect("no panic") {
            Some(Fault::Surveying) => Err(ControlError::Surveying),
            _ => Ok(ShareEstimate {
                missing: vec!["web".to_owned()],
                vms: vec![VmShareEstimate::default()],
                ..ShareEstimate::default()
            }),
        }
    }

    fn set_unswap(&self, name: &str, rate: Option<NonZeroU32>) -> Result<VmStatus, ControlError> {
        let mut vm = self.find(name)?;
        vm.swap.unswap_rate = rate.map_or(0, NonZeroU32::get);
        Ok(vm)
    }

    fn set_balloon(&self, name: &str, target: Option<Pages>) -> Result<VmStatus, ControlError> {
        let mut vm = self.find(name)?;
        if let Some(asked) = target.filter(|asked| *asked > vm.balloon.max_pages) {
            return Err(ControlError::BalloonTooLarge {
                name: name.to_owned(),
                asked,
                max: vm.balloon.max_pages,
            });
        }
        if target.is_some() && !vm.balloon.agent {
            let name = name.to_owned();
            return Err(ControlError::NoAgent { name });
        }
        self.note(format!("balloon {name} {target:?}"));
        vm.balloon.manual_pages = target;
        Ok(vm)
    }

    fn kill(&self, name: &str) -> Result<(), ControlError> {
        self.find(name)?;
        self.note(format!("kill {name}"));
        Ok(())
    }

    fn settings(&self) -> Vec<SettingView> {
        self.layers.lock().expect("no panic").views()
    }

    fn set_setting(&self, name: &str, value: &str) -> Result<SettingView, ControlError> {
        let view = self.layers.lock().expect("no panic").set(name, value)?;
        self.note(format!("set {} {value}", view.name));
        Ok(view)
    }

    fn set_vm(&self, name: &str, patch: &VmPatch) -> Result<VmStatus, ControlError> {
        let vm = self.find(name)?;
        patch.apply(&VmSettings::default(), vm.configured_pages)?;
        if patch.swap_dir.is_some() {
            return Err(ControlError::Refused("the disk is full".to_owned()));
        }
        self.note(format!("vm {name} {patch:?}"));
        Ok(vm)
    }

    fn pools(&self) -> Vec<PoolStatus> {
        fixture::host().pools
    }

    fn add_pool(&self, name: &str, patch: &PoolPatch) -> Result<PoolStatus, ControlError> {
        if self.pool(name).is_ok() {
            let name = name.to_owned();
            return Err(ControlError::PoolExists { name });
        }
        patch.check(name)?;
        self.note(format!("add pool {name} {patch:?}"));
        self.pool("prod")
    }

    fn set_pool(&self, name: &str, patch: &PoolPatch) -> Result<PoolStatus, ControlError> {
        let pool = self.pool(name)?;
        patch.check(name)?;
        if patch.limit.flatten().is_some() {
            return Err(ControlError::Refused("it has promised more".to_owned()));
        }
        self.note(format!("pool {name} {patch:?}"));
        Ok(pool)
    }

    fn remove_pool(&self, name: &str) -> Result<(), ControlError> {
        if name == "empty" {
            return Ok(());
        }
        let pool = self.pool(name)?;
        if pool.vms > 0 {
            return Err(ControlError::PoolOccupied {
                name: pool.name,
                vms: vec!["web".to_owned()],
                pools: Vec::new(),
            });
        }
        Ok(())
    }

    fn token(&self, name: &str) -> Result<AgentToken, ControlError> {
        self.find(name)?;
        let token = "0x0123456789abcdef".to_owned();
        Ok(AgentToken { token })
    }

    fn why(&self, name: &str) -> Result<serde_json::Value, ControlError> {
        let vm = self.find(name)?;
        Ok(serde_json::json!({"name": vm.name, "target": {"pages": 7}}))
    }

    fn reload(&self) -> Result<ReloadReport, ControlError> {
        match *self.fault.lock().expect("no panic") {
            Some(Fault::NoConfig) => Err(ControlError::NoConfig),
            Some(Fault::BadConfig) => Err(ControlError::Config("x.toml:3: no".to_owned())),
            Some(Fault::Stopping) => Err(ControlError::Stopping),
            None | Some(Fault::Surveying) => Ok(ReloadReport {
                file: "x.toml".to_owned(),
                settings: self.settings(),
                vms: vec!["web".to_owned()],
                pools: vec!["prod".to_owned()],
            }),
        }
    }
}

/// A server over a fake daemon on a socket of its own.
pub(super) struct Setup {
    pub(super) daemon: Arc<FakeDaemon>,
    client: Client,
    pub(super) socket: PathBuf,
    _server: Server,
    _dir: tempfile::TempDir,
}

pub(super) fn setup() -> Setup {
    let dir = tempfile::tempdir().expect("tempdir");
    let socket = dir.path().join("control.sock");
    let daemon = Arc::new(FakeDaemon::default());
    let server = Server::start(&socket, None, daemon.clone()).expect("server");
    let client = Client::new(&socket).expect("client");
    Setup {
        daemon,
        client,
        socket,
        _server: server,
        _dir: dir,
    }
}

/// Sends `request` as it is and returns status and body of the answer.
pub(super) fn raw(socket: &Path, request: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).expect("connect");
    stream.write_all(request.as_bytes()).expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer is text");
    let status = answer.split(' ').nth(1).expect("status line");
    let (_, body) = answer.split_once("\r\n\r\n").expect("head and body");
    (status.parse().expect("number"), body.to_owned())
}

pub(super) fn request(line: &str, body: &str) -> String {
    format!(
        "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn status_and_vms_arrive_as_the_daemon_gave_them() {
    let setup = setup();
    assert_eq!(setup.client.status().expect("status"), fixture::host());
    assert_eq!(setup.client.vms().expect("vms"), fixture::host().vms);
    let vm = setup.client.vm("web").expect("vm");
    assert_eq!(vm, fixture::host().vms[0]);
}

#[test]
fn balloon_size_and_null_reach_the_daemon() {
    let setup = setup();
    let vm = setup.client.set_balloon("web", Some(Bytes(8192)));
    assert_eq!(vm.expect("fits").balloon.manual_pages, Some(Pages(2)));
    let vm = setup.client.set_balloon("web", None).expect("automatic");
    assert_eq!(vm.balloon.manual_pages, None);
    assert_eq!(
        setup.daemon.asked(),
        ["balloon web Some(Pages(2))", "balloon web None"]
    );
}

#[test]
fn rate_of_unswapping_and_null_reach_the_daemon_and_nothing_else_does() {
    let setup = setup();
    let vm = setup.client.set_unswap("web", NonZeroU32::new(100));
    assert_eq!(vm.expect("it runs").swap.unswap_rate, 100);
    let vm = setup.client.set_unswap("web", None).expect("it runs");
    assert_eq!(vm.swap.unswap_rate, 0);
    setup
        .client
        .set_unswap("nope", None)
        .expect_err("no such VM");
    for body in ["{}", "{\"pages_per_s\": 0}", "{\"pages_per_s\": -1}"] {
        let answer = raw(&setup.socket, &request("PUT /v1/vms/web/unswap", body));
        assert_eq!(answer.0, 422, "{body}: {}", answer.1);
        assert!(answer.1.contains("pages_per_s"), "{}", answer.1);
    }
}

#[test]
fn kill_reaches_the_daemon_and_answers_without_a_body() {
    let setup = setup();
    let answer = raw(&setup.socket, &request("DELETE /v1/vms/web", ""));
    assert_eq!(answer, (204, String::new()));
    setup.client.kill("web").expect("again");
    assert_eq!(setup.daemon.asked(), ["kill web", "kill web"]);
}

#[test]
fn unknown_vm_is_404_and_names_those_that_run() {
    let setup = setup();
    for error in [
        setup.client.vm("nope").expect_err("no such VM"),
        setup.client.kill("nope").expect_err("no such VM"),
        setup
            .client
            .set_balloon("nope", None)
            .expect_err("no such VM"),
        setup.client.why("nope").expect_err("no such VM"),
        setup
            .client
            .set_vm("nope", &VmPatch::default())
            .expect_err("no such VM"),
    ] {
        let text = error.to_string();
        assert!(
            matches!(error, ClientError::Refused { status: 404, .. }),
            "{text}"
        );
        assert!(text.contains("`nope`") && text.contains("web"), "{text}");
    }
}

#[test]
fn bad_requests_get_a_fitting_code_and_say_what_is_allowed() {
    let setup = setup();
    let put = "PUT /v1/vms/web/balloon";
    let tax = "PUT /v1/settings/Mem.IdleTax";
    let vm = "PATCH /v1/vms/web";
    let (half, size) = ("{\"value\": \"50", "{\"limit\": \"1G\"}");
    for (line, body, code, word) in [
        (put, "{\"target_bytes\": 4096", 400, "EOF"),
        (put, "", 400, "EOF"),
        (put, "{}", 422, "missing field `target_bytes`"),
        (
            put,
            "{\"target_bytes\": \"1M\"}",
            422,
            "invalid type: string",
        ),
        (put, "{\"target_bytes\": -1}", 422, "invalid value"),
        (
            put,
            "{\"target_bytes\": null, \"x\": 1}",
            422,
            "unknown field `x`",
        ),
        (put, "{\"target_bytes\": 4097}", 400, "4097"),
        (put, "{\"target_bytes\": 1073741824}", 422, "1.00 GiB"),
        ("GET /v1/nothing", "", 404, "GET /v1/nothing"),
        ("POST /v1/status", "", 405, "does not take POST"),
        ("GET /v1/settings/Mem.IdelTax", "", 404, "`Mem.IdelTax`"),
        ("GET /v1/settings/a%1Bb", "", 404, "`a\\u{1b}b`"),
        ("PUT /v1/settings/x", "{\"value\": 1}", 404, "`x`"),
        ("DELETE /v1/settings/x", "", 404, "`x`"),
        (tax, half, 400, "EOF"),
        (tax, "{}", 422, "missing field `value`"),
        (tax, "{\"value\": [50]}", 422, "a number, a text"),
        (tax, "{\"value\": 50, \"x\": 1}", 422, "unknown field `x`"),
        (
            tax,
            "{\"value\": \"50s\"}",
            422,
            "Mem.IdleTax cannot be `50s`",
        ),
        (tax, "{\"value\": 100}", 422, "Mem.IdleTax cannot be `100`"),
        (
            tax,
            "{\"value\": true}",
            422,
            "Mem.IdleTax cannot be `true`",
        ),
        (vm, "[]", 422, "an object of VM settings"),
        (
            vm,
            "{\"limits\": 1}",
            422,
            "there is no VM setting `limits`",
        ),
        (vm, "{\"limit\": 5000}", 422, "limit cannot be `5000`"),
        (
            vm,
            "{\"shares\": 1, \"shares\": 2}",
            422,
            "shares is given twice",
        ),
        (vm, size, 422, "limit 1.00 GiB is more than the VM's memory"),
    ] {
        let (status, answer) = raw(&setup.socket, &request(line, body));
        assert_eq!(status, code, "{line} {body}: {answer}");
        let error: ErrorBody = serde_json::from_str(&answer).expect("error body");
        assert!(error.error.contains(word), "{line} {body}: {}", error.error);
        assert!(!error.allowed.is_empty(), "{line} {body}");
    }
    assert_eq!(setup.daemon.asked(), Vec::<String>::new());
}

#[test]
fn body_over_the_limit_is_refused_whatever_it_holds() {
    let setup = setup();
    let body = format!("{{\"target_bytes\": null{}}}", " ".repeat(REQUEST_BODY_MAX));
    let (status, _) = raw(&setup.socket, &request("PUT /v1/vms/web/balloon", &body));
    assert_eq!(status, 413);
    assert_eq!(setup.daemon.asked(), Vec::<String>::new());
}

#[test]
fn settings_are_shown_set_and_set_back() {
    let setup = setup();
    let client = &setup.client;
    let all = client.settings().expect("settings");
    assert_eq!(all, Layers::default().views());
    let view = client.set_setting(Key::IdleTax, "50%").expect("in range");
    assert_eq!(
        (view.value.to_string(), view.default.to_string()),
        ("50".to_owned(), "75".to_owned())
    );
    assert_eq!(client.setting(Key::IdleTax).expect("there"), view);
    let view = client
        .set_setting(Key::IdleTax, "default")
        .expect("taken away");
    assert_eq!(Some(&view), all.get(Key::IdleTax as usize));
    let put = request("PUT /v1/settings/mem.sampleperiod", "{\"value\": 0.5}");
    let (status, body) = raw(&setup.socket, &put);
    assert!(status == 200 && body.contains("\"value\":0.5"), "{body}");
    let expected = [
        "Mem.IdleTax 50%",
        "Mem.IdleTax default",
        "Mem.SamplePeriod 0.5",
    ];
    assert_eq!(
        setup.daemon.asked(),
        expected.map(|set| format!("set {set}"))
    );
}

#[test]
fn vm_settings_explanations_and_reloads_go_through() {
    let setup = setup();
    let patch = VmPatch::from_words(["shares=high", "limit=none", "salt="]).expect("valid");
    setup.client.set_vm("web", &patch).expect("fits");
    assert_eq!(setup.daemon.asked(), [format!("vm web {patch:?}")]);
    let token = setup.client.token("web").expect("runs").token;
    assert_eq!(token, "0x0123456789abcdef");
    let why = setup.client.why("web").expect("runs");
    assert_eq!(why["target"]["pages"], 7);
    assert_eq!(setup.client.reload().expect("no fault").vms, ["web"]);
    setup.daemon.set_fault(Fault::BadConfig);
    let error = setup.client.reload().expect_err("a fault").to_string();
    assert!(
        error.contains("x.toml:3: no") && error.contains("still is"),
        "{error}"
    );
}

#[test]
fn resource_pools_are_shown_added_changed_and_removed() {
    let setup = setup();
    let pools = setup.client.pools().expect("answered");
    assert_eq!(pools, fixture::host().pools);
    let (status, one) = raw(&setup.socket, &request("GET /v1/pools/prod", ""));
    assert!(status == 200 && one.contains("\"name\":\"prod\""), "{one}");
    let patch =
        PoolPatch::from_words(["shares=high", "limit=none", "expandable=no"]).expect("valid");
    setup
        .client
        .add_pool("test", &patch)
        .expect("there is none");
    setup.client.set_pool("prod", &patch).expect("fits");
    let asked = [
        format!("add pool test {patch:?}"),
        format!("pool prod {patch:?}"),
    ];
    assert_eq!(setup.daemon.asked(), asked);
    let code = |result: Result<(), ClientError>| match result.expect_err("refused") {
        ClientError::Refused { status, body } => {
            (status, format!("{}; {}", body.error, body.allowed))
        }
        other => panic!("{other}"),
    };
    for (error, status, part) in [
        (
            setup.client.add_pool("prod", &patch).map(drop),
            409,
            "pool set prod",
        ),
        (
            setup.client.set_pool("prdo", &patch).map(drop),
            404,
            "near: prod",
        ),
        (
            setup.client.set_pool("root", &patch).map(drop),
            422,
            "scalable-shares",
        ),
        (
            setup.client.remove_pool("prod"),
            409,
            "vm set web pool=root",
        ),
        (setup.client.remove_pool("nope"), 404, "`nope`"),
    ] {
        let (code, text) = code(error);
        assert!(code == status && text.contains(part), "{code}: {text}");
    }
    for (line, body, code, word) in [
        ("PUT /v1/pools/new", "{\"share\": 1}", 422, "share"),
        ("PATCH /v1/pools/prod", "{\"limit\": \"x\"}", 422, "or none"),
        ("PATCH /v1/pools/prod", "{", 400, "EOF"),
    ] {
        let (status, answer) = raw(&setup.socket, &request(line, body));
        assert!(status == code && answer.contains(word), "{status} {answer}");
    }
}

#[test]
fn client_refuses_names_that_would_change_the_path() {
    let setup = setup();
    let error = setup.client.kill("web/balloon").expect_err("not a name");
    assert!(matches!(error, ClientError::Name(_)), "{error}");
}

/// Opens a connection that sends the beginning of a request, or nothing.
fn idle(socket: &Path, beginning: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("connect");
    // The server may have closed it already, to make place for another.
    let _ = stream.write_all(beginning.as_bytes());
    stream
}

/// Beginnings of requests that are never completed.
const BEGINNINGS: [&str; 4] = [
    "",
    "GET /v1/vms HT",
    "GET /v1/vms HTTP/1.1\r\nhost: x\r\n",
    "PATCH /v1/vms/web HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
     content-length: 99\r\n\r\n{",
];

#[test]
fn client_is_answered_beside_more_idle_connections_than_there_may_be() {
    let setup = setup();
    let _idle: Vec<UnixStream> = BEGINNINGS
        .iter()
        .cycle()
        .take(200)
        .map(|beginning| idle(&setup.socket, beginning))
        .collect();
    assert_eq!(setup.client.vms().expect("answered"), fixture::host().vms);
}

#[test]
fn connection_whose_client_lets_it_wait_is_closed() {
    let limits = Limits {
        connections: 32,
        patience: Duration::from_millis(50),
    };
    let dir = tempfile::tempdir().expect("tempdir");
    let socket = dir.path().join("control.sock");
    let _server = Server::within([limits; 2], &socket, None, Arc::new(FakeDaemon::default()))
        .expect("server");
    for beginning in BEGINNINGS {
        let mut stream = idle(&socket, beginning);
        // Sending byte by byte does not help. The thread ends when the connection is closed.
        let mut slow = stream.try_clone().expect("a descriptor");
        let pace = Duration::from_millis(5);
        let writer = thread::spawn(move || {
            while slow.write_all(b"x").is_ok() {
                thread::sleep(pace);
            }
        });
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer);
        let reset = end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        assert!(reset || answer.len() < 1000, "{beginning}");
        writer.join().expect("it ends");
    }
    // A connection that was answered and is kept open for later.
    let mut kept = idle(&socket, "GET /v1/vms HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut answer = String::new();
    kept.read_to_string(&mut answer).expect("an end");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn socket_is_private_to_the_user() {
    let setup = setup();
    let mode = std::fs::metadata(&setup.socket)
        .expect("there")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[test]
fn stale_socket_is_replaced_and_a_live_one_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("control.sock");
    drop(UnixListener::bind(&path).expect("bind"));
    let server = Server::start(&path, None, Arc::new(FakeDaemon::default())).expect("stale");
    let client = Client::new(&path).expect("client");
    client.status().expect("the new one answers");
    let error = Server::start(&path, None, Arc::new(FakeDaemon::default())).expect_err("live");
    assert!(matches!(error, ServeError::InUse { .. }), "{error}");
    client.status().expect("the refused one did no harm");
    drop(server);
    let error = client.status().expect_err("stopped");
    assert!(error.is_gone(), "{error}");
}

#[test]
fn file_in_the_place_of_the_socket_is_left_alone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("control.sock");
    std::fs::write(&path, "precious").expect("write");
    let error = Server::start(&path, None, Arc::new(FakeDaemon::default())).expect_err("a file");
    assert!(matches!(error, ServeError::NotSocket { .. }), "{error}");
    assert_eq!(
        std::fs::read_to_string(&path).expect("still there"),
        "precious"
    );
}

#[test]
fn server_stops_while_a_connection_is_idle() {
    let setup = setup();
    let idle = UnixStream::connect(&setup.socket).expect("connect");
    drop(setup);
    drop(idle);
}
