use std::path::Path;

use memvisor_guest_agent::guest::GuestReport;
use nix::sys::signal::Signal;

use super::*;
use crate::launch::await_child;

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
