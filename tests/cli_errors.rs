//! What is refused on a command line or at power-on: the exit codes and the messages.

mod rig;

use std::time::Duration;

use nix::sys::signal::Signal;
use rig::{Host, PATIENCE, Process, eventually, host_command, memvisor, scratch};

/// Runs `memvisor` to its end in a directory of its own; expects `code` and a message with all of `words`.
#[track_caller]
fn fails(line: &str, code: i32, words: &str) {
    let dir = scratch();
    let mut command = memvisor();
    command.args(line.split_whitespace());
    command.env("MEMVISOR_RUNTIME_DIR", dir.path().join("run"));
    Process::start(command, "command", dir.path()).fails(code, words);
}

#[test]
fn host_sizes_that_make_no_sense_are_refused() {
    fails("host --memory 0", 2, "`0` 4096");
    fails("host --memory 1M", 1, "1.0 4.0 MiB");
    fails("host --memory 16000000T", 1, "16384000000.00 GiB");
    fails("host --memory 5000", 2, "`5000` 4096");
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
        "`esxi` lab, esx, throughput",
    );
    fails("host --memory 64M --set Mem.IdleTax", 2, "NAME=VALUE");
    fails("host --memory 64M --set Mem.IdleTax=50s", 2, "0 to 99 %");
    fails("host --memory 64M --set Mem.IdelTax=50", 2, "Mem.IdleTax");
    fails(
        "host --memory 64M --set Mem.CtlMaxPercent=1 --ctl-max-percent 2",
        2,
        "Mem.CtlMaxPercent",
    );
    fails("host --config /no/such/file", 1, "`/no/such/file`");
    fails("get Mem.IdelTax", 2, "`Mem.IdelTax` Mem.IdleTax");
    fails("set Mem.IdleTax", 2, "`Mem.IdleTax` VALUE");
    fails("set Mem.IdleTax 100", 2, "0 to 99 %");
    fails("set Mem.IdleTax -1", 2, "Mem.IdleTax `-1` 0 to 99 %");
    fails("set Mem.IdleTax=50s", 2, "Mem.IdleTax 0 to 99 %");
    fails("vm set g", 2, "KEY=VALUE");
    fails("vm set g shares", 2, "`shares` KEY=VALUE");
    fails("vm set g limit=1Q", 2, "limit `1Q`");
    fails("vm set g limit=1M limit=2M", 2, "limit");
    fails("why a/b", 2, "`a/b`");
    for words in [
        "get",
        "set Mem.IdleTax 50",
        "vm set g shares=1",
        "why g",
        "reload",
    ] {
        fails(words, 4, "control.sock");
    }
}

#[test]
fn guest_command_lines_that_make_no_sense_are_refused() {
    let guest = |rest: &str| format!("guest --name g {rest}");
    for (rest, code, text) in [
        ("--memory 0 --workload idle", 2, "`0` 4096"),
        ("--memory 8M --workload juggle", 1, "`juggle` idle"),
        ("--memory 8M --workload kv,size=4M,size=4M", 1, "`size`"),
        ("--memory 8M --workload kv,sise=4M", 1, "`sise` size"),
        ("--memory 8M --workload kv,size=4Q", 1, "`4Q`"),
        ("--memory 8M --workload image:", 1, "`image` image:PATH"),
        ("--memory 8M", 2, "--workload"),
        (
            "--memory 8M --workload idle --limit 16M",
            2,
            "--limit 16384K 8192K",
        ),
        (
            "--memory 8M --workload idle --limit 4M --reservation 6M",
            2,
            "--reservation 6144K 4096K",
        ),
        (
            "--memory 8M --workload idle --shares many",
            2,
            "`many` low, normal, high",
        ),
        ("--memory 8M --workload idle --duration 0s", 2, "`0s`"),
    ] {
        fails(&guest(rest), code, text);
    }
    fails("guest --name ../g --memory 8M --workload idle", 2, "../g");
}

#[test]
fn guest_without_a_host_exits_with_4_and_says_how_to_start_one() {
    let words = "guest --name g --memory 8M --workload idle";
    fails(words, 4, "memvisor host");
    fails("vm kill g", 4, "memvisor host --memory");
}

#[test]
fn guest_whose_name_is_taken_is_refused_and_the_first_goes_on() {
    let host = Host::quiet("auto", "64M", &[]);
    let first = host.guest("twin", "--memory 8M --workload kv,size=4M");
    host.await_vm("twin", "runs", |vm| vm.homes.resident_pages.0 > 500);
    let dir = scratch();
    let command = host.guest_command("twin", "--memory 8M --workload kv,size=4M");
    let mut second = Process::start(command, "second", dir.path());
    second.fails(1, "`twin`");
    first.stop();
    // The name is free again.
    let mut third = host.guest("twin", "--memory 8M --workload kv,size=4M --duration 100ms");
    third.verifies();
    host.stop();
}

#[test]
fn guest_that_the_host_cannot_promise_memory_is_refused_with_the_sums() {
    let host = Host::quiet("auto", "64M", &[]);
    let words = "--workload kv,size=4M --memory 32M --reservation";
    let first = host.guest("first", &format!("{words} 32M"));
    host.await_vm("first", "runs", |vm| vm.homes.resident_pages.0 > 500);
    let mut second = host.guest("second", &format!("{words} 32M"));
    second.fails(1, "32.0 MiB 64.0");
    let mut third = host.guest("third", &format!("{words} 8M --duration 100ms"));
    third.verifies();
    let mut huge = host.guest("huge", "--memory 512G --workload idle");
    huge.fails(1, "MiB");
    first.stop();
    host.is_empty(Duration::from_secs(1));
    host.stop();
}

#[test]
fn guest_that_cannot_start_its_workload_says_why_and_leaves_nothing() {
    let host = Host::quiet("auto", "64M", &[]);
    let mut missing = host.guest("g", "--memory 8M --workload image:/no/such/image");
    missing.fails(1, "/no/such/image");
    let mut large = host.guest("g2", "--memory 8M --workload kv,size=16M");
    large.fails(1, "guest `g2`");
    host.is_empty(Duration::from_secs(1));
    host.stop();
}

#[test]
fn vm_requests_that_cannot_be_met_say_what_is_allowed() {
    let host = Host::quiet("auto", "64M", &[]);
    let guest = host.guest("g", "--memory 8M --workload kv,size=2M");
    host.await_vm("g", "has an agent", |vm| vm.balloon.agent);
    let request = |words: &str, code: i32, text: &str| refused(&host, words, code, text);
    request("vm show nobody", 1, "`nobody` g");
    request("vm kill nobody", 1, "`nobody`");
    request("vm balloon g 64M", 1, "`g` 64.0 5.2 MiB");
    request("vm balloon g 1", 2, "`1` 4096 auto");
    guest.stop();
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
    let host = Host::quiet("auto", "48M", &config);
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

/// Asks this host for something; expects `code` and a message with all of `words`.
#[track_caller]
fn refused(host: &Host, line: &str, code: i32, words: &str) {
    let dir = scratch();
    Process::start(host.command(line), "command", dir.path()).fails(code, words);
}

/// What a command that asks this host prints.
#[track_caller]
fn answer(host: &Host, words: &str) -> String {
    let output = host.command(words).output().expect("start");
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
    eventually("something was decided about it", PATIENCE, || {
        let why = host.command("why g").output().expect("start");
        why.status.success().then_some(())
    });
    guest
}

#[test]
fn settings_that_contradict_each_other_change_nothing_on_a_running_host() {
    let host = Host::quiet("auto", "64M", &[]);
    let guest = limited(&host);
    let before = settings(&host);
    let refused = |words: &str, code: i32, text: &str| refused(&host, words, code, text);
    refused("vm set g reservation=7M", 1, "7.0 6.0 MiB");
    refused("vm set g limit=1M", 1, "2.0 1.0 MiB");
    refused("vm set g limit=9M", 1, "9.0 MiB");
    let contradiction = "vm set g reservation=3M limit=2M shares=high";
    refused(contradiction, 1, "3.0 2.0 MiB");
    refused("vm set g colour=red", 2, "`colour`");
    refused("vm set g reservation=2s", 2, "`2s`");
    refused("vm set nobody shares=high", 1, "`nobody` g");
    refused("set Mem.IdleTax 100", 2, "0 to 99 %");
    refused("set Mem.IdleTax 50M", 2, "Mem.IdleTax 0 to 99 %");
    refused("why nobody", 1, "`nobody` g");
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
    guest.stop();
    host.stop();
}

#[test]
fn file_with_an_error_leaves_the_last_good_one_in_force() {
    let dir = scratch();
    let file = dir.path().join("host.toml");
    let good = "[host]\nmemory = \"64M\"\n[settings]\nMem.IdleTax = 10\n";
    std::fs::write(&file, good).expect("write");
    let path = file.to_str().expect("UTF-8");
    let host = Host::quiet("auto", "64M", &["--config", path]);
    let guest = limited(&host);
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
    guest.stop();
    host.stop();
}

#[test]
fn hangup_reloads_the_file_and_ends_nobody() {
    let dir = scratch();
    let file = dir.path().join("host.toml");
    std::fs::write(&file, "[host]\nmemory = \"64M\"\n").expect("write");
    let path = file.to_str().expect("UTF-8");
    let host = Host::quiet("auto", "64M", &["--config", path]);
    host.process.send(Signal::SIGHUP);
    eventually("the log says what was done", PATIENCE, || {
        let log = host.log();
        let line = log.lines().find(|line| line.contains("reloaded"));
        line.map(|line| assert!(log.contains("SIGHUP") && line.contains(path), "{log}"))
    });
    std::fs::write(&file, "[settings]\nMem.IdleTax = 100\n").expect("write");
    host.process.send(Signal::SIGHUP);
    eventually("the log says why the file is not used", PATIENCE, || {
        host.log()
            .contains("host.toml:2: Mem.IdleTax")
            .then_some(())
    });
    host.stop();
    let host = Host::quiet("auto", "64M", &[]);
    host.process.send(Signal::SIGHUP);
    eventually("there is nothing to reload", PATIENCE, || {
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
    let start = || Process::start(host_command(&dir, "auto", "64M", &[]), "host", dir.path());
    start().fails(1, "0755");
    std::fs::remove_dir(&run).expect("empty");
    std::fs::write(&run, "").expect("write");
    start().fails(1, "run`: File exists");
}
