use std::path::Path;

use memvisor_guest_agent::guest::GuestReport;
use nix::sys::signal::Signal;

use super::processes::await_child;
use super::*;
use crate::child::{Child, end_all, in_words};

/// The options of a demo that starts this program as host and guests.
pub(super) fn options(program: &str) -> DemoOptions {
    DemoOptions {
        program: program.into(),
        memory: Bytes::from_mib(256),
        guests: 6,
        guest_memory: Bytes::from_mib(256),
        duration: Duration::from_secs(1),
        engine: EngineChoice::Auto,
        picture: None,
        json: true,
    }
}

fn signals() -> Signals {
    Signals::block([Signal::SIGCHLD]).expect("block")
}

fn shell(name: &str, script: &str, dir: &Path) -> Child {
    Child::start(name, Path::new("/bin/sh"), ["-c", script], dir).expect("start")
}

/// Waits until `child` has printed a line, because by then its traps are set.
fn await_line(child: &Child) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !child.output().expect("readable").ends_with('\n') {
        assert!(Instant::now() < limit, "{} printed nothing", child.name());
        std::thread::yield_now();
    }
}

#[test]
fn end_all_lets_children_end_by_themselves() {
    let (dir, signals) = (tempfile::tempdir().expect("tempdir"), signals());
    let script = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done";
    let mut children = [shell("a", script, dir.path())];
    await_line(&children[0]);
    let limit = Instant::now() + Duration::from_secs(10);
    end_all(&mut children, || await_child(&signals, limit));
    let status = children[0].ended().expect("wait").expect("ended");
    assert_eq!(in_words(status), "code 7");
    assert_eq!(children[0].output().expect("readable"), "up\nbye\n");
}

#[test]
fn end_all_kills_what_does_not_end_in_time() {
    let (dir, signals) = (tempfile::tempdir().expect("tempdir"), signals());
    let script = "trap '' TERM; echo up; while :; do sleep 0.01; done";
    let mut children = [shell("stubborn", script, dir.path())];
    await_line(&children[0]);
    let limit = Instant::now() + Duration::from_millis(50);
    end_all(&mut children, || await_child(&signals, limit));
    let status = children[0].ended().expect("wait").expect("ended");
    assert_eq!(in_words(status), "SIGKILL");
}

#[test]
fn child_that_is_dropped_is_gone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let child = shell("reader", "echo $$; exec cat", dir.path());
    await_line(&child);
    let pid = child
        .output()
        .expect("readable")
        .trim()
        .parse()
        .expect("a pid");
    drop(child);
    let gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None);
    assert_eq!(gone, Err(nix::errno::Errno::ESRCH));
}

#[test]
fn log_tail_is_the_end_of_a_long_log() {
    let (dir, signals) = (tempfile::tempdir().expect("tempdir"), signals());
    let script = "i=0; while [ $i -lt 999 ]; do echo line $i >&2; i=$((i+1)); done";
    let mut children = [shell("chatty", script, dir.path())];
    let limit = Instant::now() + Duration::from_secs(10);
    while children[0].ended().expect("wait").is_none() {
        let soon = Instant::now() + Duration::from_millis(10);
        let _ = signals.wait(None, soon).expect("wait");
        assert!(Instant::now() < limit, "still running");
    }
    let tail = children[0].log_tail();
    assert!(tail.ends_with("line 998") && tail.len() <= 2000, "{tail}");
}

/// A program that runs the script of a host or of a guest, by its first argument. A guest waits for the file `$0.up`.
fn program(dir: &Path, host: &str, guest: &str) -> String {
    let path = dir.join("program").to_str().expect("ascii").to_owned();
    let script = format!(
        "#!/bin/sh\ncase $1 in\nhost) {host};;\n\
         guest) until [ -e $0.up ]; do sleep 0.01; done; {guest};;\nesac\n"
    );
    // Another process writes it. A descriptor of ours could be inherited by a process that a test in another
    // thread starts, and a file that is open for writing cannot be executed.
    let write = "printf %s \"$1\" > \"$0\" && chmod 700 \"$0\"";
    let written = std::process::Command::new("/bin/sh")
        .args(["-c", write, &path, &script])
        .status();
    assert!(written.expect("a shell").success());
    path
}

/// Runs such a program as a host and six guests until all guests have ended or one process has failed.
fn run_processes(host: &str, guest: &str) -> Result<Vec<GuestReport>, DemoError> {
    let (dir, signals) = (tempfile::tempdir().expect("tempdir"), signals());
    let options = options(&program(dir.path(), host, guest));
    let scratch = Scratch::new()?;
    let mut processes = Processes::start_host(&options, &scratch, &signals)?;
    processes.start_guests(&options, &scratch)?;
    let limit = Instant::now() + Duration::from_secs(20);
    while processes.any_guest_runs()? {
        assert!(await_child(&signals, limit), "still running");
    }
    processes.finish()
}

const GOOD_HOST: &str = "trap 'exit 0' TERM; touch $0.up; while :; do sleep 0.01; done";

#[test]
fn good_processes_return_a_report_of_each_guest() {
    let guest = "echo hello; echo '{\"pages_verified\": 7}'";
    let reports = run_processes(GOOD_HOST, guest).expect("all well");
    assert_eq!(reports.len(), 6);
    assert!(reports.iter().all(|report| report.pages_verified == 7));
}

#[test]
fn crash_of_the_host_names_the_host_and_not_a_guest() {
    // A guest sees the host's sockets close before the host's parent can see that the host has ended.
    let host = "touch $0.up; sleep 0.2; echo out of luck >&2; exit 9";
    let error = run_processes(host, "exit 4").expect_err("crash");
    assert_eq!(error.to_string(), "host ended with code 9: out of luck");
}

#[test]
fn corrupt_or_silent_guest_fails_the_demo_as_it_failed_itself() {
    let corrupt = "echo '{\"mismatches\": 2}'; exit 3";
    let error = run_processes(GOOD_HOST, corrupt).expect_err("corrupt");
    assert!(matches!(&error, DemoError::Corrupt { .. }), "{error}");
    let error = run_processes(GOOD_HOST, "exit 0").expect_err("silent");
    assert!(matches!(&error, DemoError::NoReport { .. }), "{error}");
    let error = run_processes(GOOD_HOST, "kill -ABRT $$").expect_err("abort");
    assert!(error.to_string().contains("SIGABRT"), "{error}");
}

#[test]
fn host_that_does_not_end_well_fails_the_demo_although_its_guests_ended_well() {
    let host = "trap 'echo leak >&2; exit 5' TERM; touch $0.up; while :; do sleep 0.01; done";
    let error = run_processes(host, "echo '{}'").expect_err("bad end");
    assert_eq!(error.to_string(), "host ended with code 5: leak");
}

#[test]
fn demo_with_a_host_that_fails_says_so_and_leaves_nothing() {
    let small = DemoOptions {
        guest_memory: Bytes::from_mib(16),
        ..options("/bin/false")
    };
    let error = run(&small).expect_err("no host");
    assert!(
        matches!(&error, DemoError::Failed { name, how, .. } if name == "host" && how == "code 1"),
        "{error}"
    );
}
