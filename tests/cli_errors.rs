//! What is refused on a command line or at power-on: the exit codes and the messages.

mod common;
mod rig;

use std::process::Command;
use std::time::Duration;

use common::Process;
use nix::sys::signal::Signal;
use rig::{Ends, Host, eventually, host_command, memvisor, scratch, start};

/// Runs `memvisor` to its end in a directory of its own; expects `code` and `text`.
#[track_caller]
fn fails(words: &str, code: i32, text: &str) {
    let dir = scratch();
    let mut command = memvisor();
    command.args(words.split_whitespace());
    command.env("MEMVISOR_RUNTIME_DIR", dir.path().join("run"));
    start(command, "command", dir.path()).fails(code, text);
}

#[test]
fn host_sizes_that_make_no_sense_are_refused() {
    fails("host --memory 0", 2, "no memory at all");
    fails(
        "host --memory 1M",
        1,
        "a budget of 1.0 MiB is too small: at least 4.0 MiB",
    );
    fails(
        "host --memory 16000000T",
        1,
        "a budget of 16384000000.00 GiB is too large for the daemon's tables; up to ",
    );
    fails("host --memory 5000", 2, "multiple of 4096");
    fails("host --memory 12Q", 2, "12Q");
    fails("host --memory -1", 2, "--memory");
    fails(
        "host --memory 99999999999999999999",
        2,
        "99999999999999999999",
    );
    fails("host", 2, "--memory");
    fails("host --memory 64M --vma-budget 0", 2, "--vma-budget");
    fails("host --memory 64M --mem-zip-max-pct 4", 2, "5 to 100 %");
    fails("host --memory 64M --ctl-max-percent 100", 2, "0 to 99 %");
    fails(
        "host --memory 64M --share-scan-time 1ms",
        2,
        "0.002 to 600 min",
    );
}

#[test]
fn settings_that_make_no_sense_are_refused_without_a_host() {
    fails(
        "host --memory 64M --profile esxi",
        2,
        "allowed: lab, esx, throughput",
    );
    fails("host --memory 64M --set Mem.IdleTax", 2, "NAME=VALUE");
    fails("host --memory 64M --set Mem.IdleTax=50s", 2, "0 to 99 %");
    fails("host --memory 64M --set Mem.IdelTax=50", 2, "Mem.IdleTax");
    fails(
        "host --memory 64M --set Mem.CtlMaxPercent=1 --ctl-max-percent 2",
        2,
        "Mem.CtlMaxPercent is given twice",
    );
    fails("host --config /no/such/file", 1, "`/no/such/file`");
    fails("get Mem.IdelTax", 2, "near: Mem.IdleTax");
    fails("set Mem.IdleTax", 2, "needs a value");
    fails("set Mem.IdleTax 100", 2, "0 to 99 %");
    fails("set Mem.IdleTax -1", 2, "that is not a number");
    fails("set Mem.IdleTax=50s", 2, "that is not its unit");
    fails("vm set g", 2, "KEY=VALUE");
    fails("vm set g shares", 2, "`shares` is not KEY=VALUE");
    fails("vm set g limit=1Q", 2, "limit cannot be `1Q`");
    fails("vm set g limit=1M limit=2M", 2, "limit is given twice");
    fails("why a/b", 2, "`a/b`");
    for words in [
        "get",
        "set Mem.IdleTax 50",
        "vm set g shares=1",
        "why g",
        "reload",
    ] {
        fails(words, 4, "no memvisor host is running");
    }
}

#[test]
fn guest_command_lines_that_make_no_sense_are_refused() {
    let guest = |rest: &str| format!("guest --name g {rest}");
    for (rest, code, text) in [
        ("--memory 0 --workload idle", 2, "no memory at all"),
        (
            "--memory 8T --workload idle",
            1,
            "a guest has at most 1024.00 GiB",
        ),
        (
            "--memory 8M --workload juggle",
            1,
            "there is no workload `juggle`; allowed: idle",
        ),
        (
            "--memory 8M --workload kv,size=4M,size=4M",
            1,
            "given twice",
        ),
        (
            "--memory 8M --workload kv,sise=4M",
            1,
            "no parameter `sise`; allowed: size",
        ),
        ("--memory 8M --workload kv,size=4Q", 1, "cannot be `4Q`"),
        (
            "--memory 8M --workload image:",
            1,
            "needs a path: image:PATH",
        ),
        ("--memory 8M", 2, "--workload"),
        (
            "--memory 8M --workload idle --limit 16M",
            2,
            "--limit 16.0 MiB is more than --memory",
        ),
        (
            "--memory 8M --workload idle --limit 4M --reservation 6M",
            2,
            "--reservation 6.0 MiB is more than the 4.0 MiB",
        ),
        (
            "--memory 8M --workload idle --shares many",
            2,
            "`many` is not a number of shares",
        ),
        (
            "--memory 8M --workload idle --duration 0s",
            2,
            "`0s` is not a time",
        ),
    ] {
        fails(&guest(rest), code, text);
    }
    fails("guest --name ../g --memory 8M --workload idle", 2, "../g");
}

#[test]
fn guest_without_a_host_exits_with_4_and_says_how_to_start_one() {
    let words = "guest --name g --memory 8M --workload idle";
    fails(words, 4, "start one with `memvisor host`");
    fails("vm kill g", 4, "memvisor host --memory");
}

#[test]
fn guest_whose_name_is_taken_is_refused_and_the_first_goes_on() {
    let host = Host::start("auto", "64M", &[]);
    let mut first = host.guest("twin", "--memory 8M --workload kv,size=4M");
    host.await_vm("twin", "runs", |vm| vm.homes.resident_pages.0 > 500);
    let dir = scratch();
    let command = host.guest_command("twin", "--memory 8M --workload kv,size=4M");
    let mut second = start(command, "second", dir.path());
    second.fails(1, "a VM called `twin` is powered on already");
    first.terminate();
    first.reports(130);
    // The name is free again.
    let mut third = host.guest("twin", "--memory 8M --workload kv,size=4M --duration 100ms");
    third.verifies();
    host.stop();
}

#[test]
fn guest_that_the_host_cannot_promise_memory_is_refused_with_the_sums() {
    let host = Host::start("auto", "64M", &[]);
    let words = "--workload kv,size=4M --memory 32M --reservation";
    let mut first = host.guest("first", &format!("{words} 32M"));
    host.await_vm("first", "runs", |vm| vm.homes.resident_pages.0 > 500);
    let mut second = host.guest("second", &format!("{words} 32M"));
    second.fails(1, "reservation 32.0 MiB and overhead");
    let log = second.stderr();
    assert!(
        log.contains("of the budget of 64.0 MiB, 32.0 MiB is reserved"),
        "{log}"
    );
    let mut third = host.guest("third", &format!("{words} 8M --duration 100ms"));
    third.verifies();
    let mut huge = host.guest("huge", "--memory 512G --workload idle");
    huge.fails(1, "exceed the unreserved");
    first.terminate();
    first.reports(130);
    host.is_empty(Duration::from_secs(1));
    host.stop();
}

#[test]
fn guest_that_cannot_start_its_workload_says_why_and_leaves_nothing() {
    let host = Host::start("auto", "64M", &[]);
    let mut missing = host.guest("g", "--memory 8M --workload image:/no/such/image");
    missing.fails(1, "/no/such/image");
    let mut large = host.guest("g2", "--memory 8M --workload kv,size=16M");
    large.fails(1, "guest `g2`");
    host.is_empty(Duration::from_secs(1));
    host.stop();
}

#[test]
fn vm_requests_that_cannot_be_met_say_what_is_allowed() {
    let host = Host::start("auto", "64M", &[]);
    let mut guest = host.guest("g", "--memory 8M --workload kv,size=2M");
    host.await_vm("g", "has an agent", |vm| vm.balloon.agent);
    let request = |words: &str, code: i32, text: &str| refused(&host, words, code, text);
    request(
        "vm show nobody",
        1,
        "there is no VM `nobody`; allowed: one of: g",
    );
    request("vm kill nobody", 1, "there is no VM `nobody`");
    request(
        "vm balloon g 64M",
        1,
        "too large for VM `g`; allowed: at most 5.2 MiB",
    );
    request("vm balloon g 1", 2, "multiple of 4096");
    guest.terminate();
    guest.reports(130);
    host.stop();
}

#[test]
fn settings_of_a_running_host_come_from_profile_file_command_line_and_set() {
    let dir = scratch();
    let file = dir.path().join("host.toml");
    let text = "[host]\nprofile = \"esx\"\nmemory = \"64M\"\n[settings]\n\
                Mem.IdleTax = 10\nMem.CtlMaxPercent = 20\n";
    std::fs::write(&file, text).expect("write");
    let config = [
        "--config",
        file.to_str().expect("UTF-8"),
        "--set",
        "Mem.IdleTax=30",
    ];
    let host = Host::start("auto", "48M", &config);
    assert_eq!(host.status().budget_pages.bytes().to_string(), "48.0 MiB");
    let ask = |words: &str| {
        let mut command = memvisor();
        command.args(words.split_whitespace()).arg("--json");
        command.arg("--runtime-dir").arg(host.path().join("run"));
        let output = command.output().expect("start");
        assert!(output.status.success(), "{words}: {output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let check = |name: &str, value: serde_json::Value, from: &str| {
        let view = ask(&format!("get {name}"));
        assert_eq!(
            (&view["value"], &view["from"]),
            (&value, &from.into()),
            "{name}"
        );
    };
    check("Mem.ShareScanTime", 60.into(), "profile");
    check("Mem.CtlMaxPercent", 20.into(), "file");
    check("Mem.IdleTax", 30.into(), "command line");
    let set = ask("set mem.idletax 50%");
    assert_eq!((&set["value"], &set["default"]), (&50.into(), &75.into()));
    check("Mem.IdleTax", 50.into(), "set");
    ask("set Mem.IdleTax=default");
    check("Mem.IdleTax", 30.into(), "command line");
    assert_eq!(
        ask("get --all").as_array().map(Vec::len),
        Some(::memvisor::settings::TABLE.len())
    );
    host.stop();
}

/// A command that asks this host.
fn command(host: &Host, words: &str) -> Command {
    let mut command = memvisor();
    command.args(words.split_whitespace());
    command.arg("--runtime-dir").arg(host.path().join("run"));
    command
}

/// Asks this host for something; expects `code` and `text`.
#[track_caller]
fn refused(host: &Host, words: &str, code: i32, text: &str) {
    let dir = scratch();
    start(command(host, words), "command", dir.path()).fails(code, text);
}

/// What a command that asks this host prints.
#[track_caller]
fn answer(host: &Host, words: &str) -> String {
    let output = command(host, words).output().expect("start");
    assert!(output.status.success(), "{words}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// All settings of the host, and reservation, limit and shares of VM `g`.
fn settings(host: &Host) -> (String, [Option<u64>; 3]) {
    let rules = host.vm("g").allocation;
    let limit = rules.limit_pages.map(|pages| pages.0);
    let own = [Some(rules.reservation_pages.0), limit, Some(rules.shares)];
    (answer(host, "get --all --json"), own)
}

/// A guest `g` of 8 MiB with a reservation of 2 MiB and a limit of 6 MiB, once the policy has decided about it.
fn limited(host: &Host) -> Process {
    let words = "--memory 8M --workload kv,size=2M --reservation 2M --limit 6M";
    let guest = host.guest("g", words);
    host.await_vm("g", "runs", |vm| vm.homes.resident_pages.0 > 500);
    eventually("something was decided about it", || {
        let why = command(host, "why g").output().expect("start");
        why.status.success().then_some(())
    });
    guest
}

#[test]
fn settings_that_contradict_each_other_change_nothing_on_a_running_host() {
    let host = Host::start("auto", "64M", &[]);
    let mut guest = limited(&host);
    let before = settings(&host);
    let refused = |words: &str, code: i32, text: &str| refused(&host, words, code, text);
    refused("vm set g reservation=7M", 1, "more than");
    refused("vm set g limit=1M", 1, "more than");
    refused("vm set g limit=9M", 1, "9.0 MiB");
    let contradiction = "vm set g reservation=3M limit=2M shares=high";
    refused(contradiction, 1, "more than");
    refused("vm set g colour=red", 2, "`colour`");
    refused("vm set g reservation=2s", 2, "`2s`");
    refused("vm set nobody shares=high", 1, "allowed: one of: g");
    refused("set Mem.IdleTax 100", 2, "0 to 99 %");
    refused("set Mem.IdleTax 50M", 2, "that is not its unit");
    refused("why nobody", 1, "allowed: one of: g");
    assert_eq!(settings(&host), before);

    let why = answer(&host, "why g");
    for word in [
        "shares",
        "2.0 MiB (reserved) to 6.0 MiB",
        "idle tax",
        "Its balloon",
    ] {
        assert!(why.contains(word), "{word}: {why}");
    }
    guest.terminate();
    guest.reports(130);
    host.stop();
}

#[test]
fn file_with_an_error_leaves_the_last_good_one_in_force() {
    let dir = scratch();
    let file = dir.path().join("host.toml");
    let good = "[host]\nmemory = \"64M\"\n[settings]\nMem.IdleTax = 10\n";
    std::fs::write(&file, good).expect("write");
    let path = file.to_str().expect("UTF-8");
    let host = Host::start("auto", "64M", &["--config", path]);
    let mut guest = limited(&host);
    let before = settings(&host);
    let contradiction = "[vm.g]\nreservation = \"9M\"\nlimit = \"8M\"\n";
    for (text, says) in [
        ("[settings]\nMem.IdleTax = 100\n", "0 to 99 %"),
        ("[settings]\nMem.IdelTax = 5\n", "Mem.IdelTax"),
        ("[settings\n", "host.toml:1"),
        (contradiction, "reservation"),
        // Only the running host can find these two errors.
        (
            "[host]\nmemory = \"64M\"\n[vm.g]\nswap-dir = \"/no/such\"\n",
            "host.toml:4: VM `g`: ",
        ),
        (
            "[host]\nmemory = \"64M\"\n[vm.g]\nlimit = \"9M\"\n",
            "host.toml:4: VM `g`: limit 9.0 MiB",
        ),
    ] {
        std::fs::write(&file, text).expect("write");
        refused(&host, "reload", 1, says);
        assert_eq!(settings(&host), before, "{text}");
    }
    std::fs::write(&file, good.replace("10", "20")).expect("write");
    answer(&host, "reload");
    assert_ne!(settings(&host).0, before.0);
    guest.terminate();
    guest.reports(130);
    host.stop();
}

#[test]
fn hangup_reloads_the_file_and_ends_nobody() {
    let dir = scratch();
    let file = dir.path().join("host.toml");
    std::fs::write(&file, "[host]\nmemory = \"64M\"\n").expect("write");
    let path = file.to_str().expect("UTF-8");
    let mut host = Host::start("auto", "64M", &["--config", path]);
    host.process().signal(Signal::SIGHUP).expect("it runs");
    eventually("the log says what was done", || {
        let log = host.log();
        let line = log.lines().find(|line| line.contains("reloaded"));
        line.map(|line| assert!(log.contains("SIGHUP") && line.contains(path), "{log}"))
    });
    std::fs::write(&file, "[settings]\nMem.IdleTax = 100\n").expect("write");
    host.process().signal(Signal::SIGHUP).expect("it runs");
    eventually("the log says why the file is not used", || {
        host.log()
            .contains("host.toml:2: Mem.IdleTax")
            .then_some(())
    });
    host.stop();
    let mut host = Host::start("auto", "64M", &[]);
    host.process().signal(Signal::SIGHUP).expect("it runs");
    eventually("there is nothing to reload", || {
        host.log()
            .contains("without a configuration file")
            .then_some(())
    });
    host.stop();
}

#[test]
fn runtime_directory_that_is_open_to_others_or_none_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = scratch();
    let run = dir.path().join("run");
    std::fs::create_dir(&run).expect("create");
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(&run, mode(0o755)).expect("our own");
    let start = || start(host_command(&dir, "auto", "64M", &[]), "host", dir.path());
    start().fails(1, "is open to other users (mode 0755)");
    std::fs::remove_dir(&run).expect("empty");
    std::fs::write(&run, "").expect("write");
    start().fails(1, "run`: File exists");
}
