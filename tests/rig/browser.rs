//! A browser without a window, told what to do over pipes by the protocol of Chrome's developer tools.
//!
//! It ends when its pipes close, and so with its test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{PATIENCE, eventually, scratch};

/// The names under which it is installed.
const NAMES: &[&str] = &["chromium", "chromium-browser", "google-chrome", "chrome"];
/// Its descriptors 3 and 4 are the pipes.
const START: &str = "exec \"$@\" 3<&0 4>&1 >/dev/null 2>&1";

/// Where a browser is. Without one its tests do nothing but say so, or fail if `MEMVISOR_REQUIRE_BROWSER=1`.
pub(crate) fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut all = NAMES
        .iter()
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    let found = all.find(|file| file.is_file());
    let required = std::env::var_os("MEMVISOR_REQUIRE_BROWSER").is_some_and(|set| set == "1");
    assert!(!required || found.is_some(), "none of {NAMES:?} is here");
    if found.is_none() {
        eprintln!("SKIPPED: none of {NAMES:?} is here; pages are not tested");
    }
    found
}

/// A page in a browser of its own.
#[derive(Debug)]
pub(crate) struct Page {
    process: Child,
    to: Option<ChildStdin>,
    from: Receiver<Value>,
    session: Option<String>,
    last: u64,
    complaints: Vec<String>,
    _profile: TempDir,
}

impl Page {
    /// Opens `url` in a window of that many pixels, and waits until it is loaded.
    pub(crate) fn open(browser: &Path, url: &str, (width, height): (u32, u32)) -> Self {
        let profile = scratch();
        let mut command = Command::new("sh");
        command.args(["-c", START, "sh"]).arg(browser);
        // The sandbox needs rights that a test may not have. All that it opens is made here.
        command.args(["--headless", "--no-sandbox", "--remote-debugging-pipe"]);
        command.args(["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.env("HOME", profile.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("start a browser");
        let mut output = BufReader::new(process.stdout.take().expect("piped"));
        let (send, from) = channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            while matches!(output.read_until(0, &mut message), Ok(1..)) {
                message.pop();
                let json = serde_json::from_slice(&message).expect("messages are JSON");
                if send.send(json).is_err() {
                    return;
                }
                message.clear();
            }
        });
        let mut page = Self {
            to: process.stdin.take(),
            process,
            from,
            session: None,
            last: 0,
            complaints: Vec::new(),
            _profile: profile,
        };
        page.begin(url, width, height);
        page
    }

    fn begin(&mut self, url: &str, width: u32, height: u32) {
        let target = self.call("Target.createTarget", &json!({"url": "about:blank"}));
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let session = self.call("Target.attachToTarget", &target);
        self.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            self.call(domain, &json!({}));
        }
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", &size);
        self.call("Page.navigate", &json!({ "url": url }));
        eventually("the page is loaded", PATIENCE, || {
            let loaded = "location.href !== 'about:blank' && document.readyState === 'complete'";
            (self.eval(loaded) == true).then_some(())
        });
    }

    /// Calls a method of the protocol; its result.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let to = self.to.as_mut().expect("until the page is dropped");
        write!(to, "{message}\0").expect("the browser reads");
        loop {
            let answer = self.from.recv_timeout(PATIENCE);
            let answer = answer.unwrap_or_else(|error| panic!("{method}: {error}"));
            if answer["id"] == self.last {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.note(&answer);
        }
    }

    /// Keeps what the page complains of.
    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        let is_complaint = match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => true,
            "Runtime.consoleAPICalled" => params["type"] != "log",
            "Log.entryAdded" => params["entry"]["level"] != "info",
            _ => false,
        };
        if is_complaint {
            self.complaints.push(params.to_string());
        }
    }

    /// The value of an expression in the page, or what it promises.
    #[track_caller]
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", &params);
        let failed = result.get("exceptionDetails");
        assert!(failed.is_none(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// The numbers that a page of ours shows of a moment: by VM, or "" for the host, and series; the value and its text.
    pub(crate) fn numbers(&mut self) -> BTreeMap<(String, String), (Option<f64>, String)> {
        let script = "[...document.querySelectorAll('[data-series]')].map((cell) => [
            cell.closest('tr')?.dataset.vm ?? '', cell.dataset.series, cell.dataset.value, cell.textContent])";
        let cells: Vec<[String; 4]> = serde_json::from_value(self.eval(script)).expect("texts");
        cells
            .into_iter()
            .map(|[vm, series, value, text]| ((vm, series), (value.parse().ok(), text)))
            .collect()
    }

    /// Presses a key that has a name.
    pub(crate) fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            self.call("Input.dispatchKeyEvent", &json!({"type": kind, "key": key}));
        }
    }

    /// All that the page has complained of so far: errors, warnings, what could not be loaded.
    pub(crate) fn complaints(&mut self) -> &[String] {
        // What was said before an answer has arrived before it.
        self.eval("0");
        &self.complaints
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // It ends once its pipe is closed, its children before it.
        self.to = None;
        if thread::panicking() {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}
