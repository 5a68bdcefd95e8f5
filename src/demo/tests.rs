use std::path::Path;

use nix::sys::signal::Signal;

use super::child::{Child, end_all, in_words};
use super::*;

/// The options of the default demo, with another program.
pub(super) fn options(program: &str) -> DemoOptions {
    DemoOptions {
        program: program.into(),
        memory: Bytes::from_mib(256),
        guests: 6,
        guest_memory: Bytes::from_mib(256),
        duration: Duration::from_secs(1),
        engine: EngineChoice::Auto,
        json: true,
    }
}

fn signals() -> Signals {
    Signals::block([Signal::SIGCHLD]).expect("block")
}

fn shell(name: &str, script: &str, dir: &Path) -> Child {
    Child::start(name, Path::new("/bin/sh"), ["-c", script], dir).expect("start")
}

/// Waits until `child` has printed a line: its traps are set then.
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
    end_all(
        &mut children,
        &signals,
        Instant::now() + Duration::from_secs(10),
    );
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
    end_all(
        &mut children,
        &signals,
        Instant::now() + Duration::from_millis(50),
    );
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
