use std::time::Instant;

use memvisor_wire::signals::Signals;
use nix::sys::signal::Signal;

use super::*;

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

#[test]
fn guest_is_powered_on_with_all_settings_but_the_defaults() {
    let words = "shares=high reservation=16M limit=128M balloon-max=none sharing=off salt=a b swap-dir=/s swap-persist=on";
    let patch = VmPatch::from_words(words.split(' ').filter(|word| word.contains('=')));
    let args = powered_on(&patch.expect("valid"), Path::new("/run/x"));
    let expected = "--runtime-dir /run/x --limit 134217728 --reservation 16777216 --salt a --no-sharing --shares high";
    let (mut args, mut expected): (Vec<_>, Vec<_>) = (
        args.iter().map(String::as_str).collect(),
        expected.split(' ').collect(),
    );
    args.sort_unstable();
    expected.sort_unstable();
    assert_eq!(args, expected);
}

#[test]
fn end_of_a_guest_is_told_apart_by_its_code_and_its_report() {
    let (dir, signals) = (tempfile::tempdir().expect("tempdir"), signals());
    let ended = |script: &str| {
        let mut child = shell("guest", script, dir.path());
        let limit = Instant::now() + Duration::from_secs(10);
        let status = loop {
            if let Some(status) = child.ended().expect("wait") {
                break status;
            }
            assert!(await_child(&signals, limit), "{script}");
        };
        Ended::of(&child, status).expect("readable")
    };
    let report = "echo '{\"pages_verified\": 7}'";
    assert!(matches!(ended(report), Ended::Well(report) if report.pages_verified == 7));
    assert!(matches!(
        ended(&format!("{report}; exit 130")),
        Ended::Told(_)
    ));
    assert!(matches!(ended("exit 0"), Ended::Silent));
    assert!(
        matches!(ended("echo why >&2; exit 3"), Ended::Corrupt { pages: 0, log } if log == "why")
    );
    assert!(matches!(
        ended("echo '{\"mismatches\": 2}'"),
        Ended::Corrupt { pages: 2, .. }
    ));
    assert!(
        matches!(ended(&format!("{report}; exit 4")), Ended::Badly { how, .. } if how == "code 4")
    );
    assert!(matches!(ended("kill -ABRT $$"), Ended::Badly { how, .. } if how == "SIGABRT"));
}
