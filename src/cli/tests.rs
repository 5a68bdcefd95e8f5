use std::time::Duration;

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;
use crate::host::{EngineChoice, HostOptions};
use crate::settings::{Key, Layers};
use crate::units::Bytes;

fn parse(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
}

#[test]
fn command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn host_defaults_are_those_of_profile_lab() {
    let Ok(Command::Host(args)) = parse("memvisor host --memory 512M --runtime-dir /x/y") else {
        panic!("not a host");
    };
    let options = args.options().expect("valid");
    assert_eq!(options.memory, Bytes::from_mib(512));
    assert_eq!(options.engine, EngineChoice::Auto);
    assert_eq!(options.swap_dir, std::path::Path::new("/x/y"));
    assert_eq!(
        options.layers.effective().share_scan_time,
        Duration::from_secs(3)
    );
    assert_eq!(
        (
            options.layers.effective().share_scan_ghz,
            options.layers.effective().share_rate_max
        ),
        (32, 32_768)
    );
    assert_eq!(
        (
            options.layers.effective().mem_zip_max_pct,
            options.layers.effective().ctl_max_percent
        ),
        (10, 65)
    );
    assert_eq!(options.layers, Layers::default());
    assert_eq!(options.config, None);
    assert_eq!(options.http, None);
}

fn host_options(line: &str) -> anyhow::Result<HostOptions> {
    match parse(line)? {
        Command::Host(args) => args.options(),
        _ => panic!("not a host: {line}"),
    }
}

#[test]
fn host_takes_settings_of_file_and_command_line_and_the_latter_decides() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("host.toml");
    let text = "[host]\nprofile = \"esx\"\nmemory = \"64M\"\nengine = \"mprotect\"\n\
                swap-dir = \"/s\"\nhttp = 1\n[settings]\nMem.CtlMaxPercent = 20\nMem.MemZipMaxPct = 30\n";
    std::fs::write(&path, text).expect("write");
    let file = path.display();
    let options = host_options(&format!("memvisor host --config {file} --runtime-dir /x"));
    let options = options.expect("valid");
    assert_eq!(options.memory, Bytes::from_mib(64));
    assert_eq!(options.engine, EngineChoice::Mprotect);
    assert_eq!(options.swap_dir, std::path::Path::new("/s"));
    assert_eq!(options.http, "127.0.0.1:1".parse().ok());
    assert_eq!(options.layers.effective().share_rate_max, 1024);
    assert_eq!(
        (
            options.layers.effective().mem_zip_max_pct,
            options.layers.effective().ctl_max_percent
        ),
        (30, 20)
    );
    let line = format!(
        "memvisor host --config {file} --runtime-dir /x --profile lab --memory 32M --engine auto \
         --swap-dir /t --http [::1]:2 --ctl-max-percent 40% --set mem.memzipmaxpct=50 --set Mem.IdleTax=5"
    );
    let options = host_options(&line).expect("valid");
    assert_eq!(options.memory, Bytes::from_mib(32));
    assert_eq!(options.engine, EngineChoice::Auto);
    assert_eq!(options.swap_dir, std::path::Path::new("/t"));
    assert_eq!(options.http, "[::1]:2".parse().ok());
    assert_eq!(options.layers.effective().share_rate_max, 32_768);
    assert_eq!(
        (
            options.layers.effective().mem_zip_max_pct,
            options.layers.effective().ctl_max_percent
        ),
        (50, 40)
    );
    assert_eq!(options.layers.effective().idle_tax, 5);
}

#[test]
fn host_without_memory_or_with_a_setting_given_twice_is_a_usage_error() {
    for (rest, part) in [
        ("", "--memory SIZE is needed"),
        (
            "--memory 8M --set Mem.IdleTax=1 --set mem.idletax=2",
            "Mem.IdleTax is given twice",
        ),
        (
            "--memory 8M --share-scan-time 1 --set Mem.ShareScanTime=2",
            "Mem.ShareScanTime is given twice",
        ),
    ] {
        let error = host_options(&format!("memvisor host {rest}")).expect_err(rest);
        assert_eq!(exit::of_error(&error), Exit::Usage, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn set_takes_name_and_value_in_one_word_or_two() {
    for line in ["Mem.IdleTax 50%", "mem.idletax=50%"] {
        let Ok(Command::Set(args)) = parse(&format!("memvisor set {line} --json")) else {
            panic!("not a set: {line}");
        };
        assert_eq!(args.setting().expect("valid"), (Key::IdleTax, "50%"));
    }
}

#[test]
fn guest_takes_several_workloads_and_sizes() {
    let line = "memvisor guest --name vm1 --memory 256M --workload kv idle --workload churn \
                --reservation 16M --limit 128M --shares high --duration 1.5s --runtime-dir /x";
    let Ok(Command::Guest(args)) = parse(line) else {
        panic!("not a guest");
    };
    let options = args.guest.options().expect("valid");
    assert_eq!(options.workloads, ["kv", "idle", "churn"]);
    assert_eq!(options.limit, 128 << 8);
    assert_eq!(options.shares, 5120);
    assert_eq!(options.duration, Some(Duration::from_millis(1500)));
}

#[test]
fn wrong_values_are_refused_and_named() {
    for (line, wrong) in [
        ("memvisor host --memory 12Q", "12Q"),
        ("memvisor host --memory 0", "0"),
        ("memvisor host --memory 4097", "4097"),
        ("memvisor host --memory 1M --engine kvm", "kvm"),
        ("memvisor host --memory 1M --mem-zip-max-pct 101", "101"),
        ("memvisor host --memory 1M --share-scan-ghz 33", "33"),
        ("memvisor host --memory 1M --set Mem.IdleTax=100", "100"),
        (
            "memvisor host --memory 1M --http localhost:80",
            "localhost:80",
        ),
        ("memvisor host --memory 1M --http 65536", "65536"),
        ("memvisor get Mem.IdelTax", "Mem.IdelTax"),
        ("memvisor get Mem.IdleTax --all", "--all"),
        ("memvisor vm set a", "KEY=VALUE"),
        (
            "memvisor host --memory 1M --scratch /tmp/x",
            "--die-with-parent",
        ),
        ("memvisor guest --name a --memory 1M", "--workload"),
        ("memvisor vm balloon a 1.5", "1.5"),
        ("memvisor top --interval 0s", "0s"),
        ("memvisor demo --guests 0", "0"),
        ("memvisor demo --guest-memory 1M", "1M"),
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(wrong), "{line}: {error}");
    }
}

#[test]
fn balloon_takes_a_size_or_auto() {
    for line in [
        "memvisor vm balloon a 64M",
        "memvisor vm balloon a auto --json",
    ] {
        assert!(matches!(parse(line), Ok(Command::Vm(_))), "{line}");
    }
}

#[test]
fn scratch_directory_that_no_demo_made_is_refused() {
    let line = "memvisor host --memory 1M --die-with-parent --scratch /home";
    let Ok(Command::Host(args)) = parse(line) else {
        panic!("not a host");
    };
    let error = host::run(args).expect_err("not ours to remove");
    assert_eq!(exit::of_error(&error), Exit::Usage, "{error}");
}

#[test]
fn help_documents_the_exit_codes() {
    let help = Cli::command().render_help().to_string();
    for code in ["0  done", "3  a guest", "130  interrupted"] {
        assert!(help.contains(code), "{help}");
    }
    let error = parse("memvisor").expect_err("no command");
    assert_eq!(
        error.kind(),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
}

/// The rows of the table of `memvisor NAME` in docs/settings.md: option and default.
fn documented(name: &str) -> Vec<(String, String)> {
    let document = include_str!("../../docs/settings.md");
    let heading = format!("# `memvisor {name}`\n");
    let (_, section) = document.split_once(&heading).expect("a section of its own");
    let section = section.split("\n##").next().expect("split gives one part");
    let rows = section.lines().filter(|line| line.starts_with("| `--"));
    rows.map(|row| {
        let mut cells = row.split('|').map(|cell| cell.trim().replace('`', ""));
        let option = cells.nth(1).expect("a row has cells");
        (option, cells.next().expect("a row has a default"))
    })
    .collect()
}

fn check_documented(command: &clap::Command, name: &str) {
    let rows = documented(name);
    let options: Vec<_> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && arg.get_id() != "help")
        .filter_map(|arg| Some((format!("--{}", arg.get_long()?), arg)))
        .collect();
    for (option, arg) in &options {
        let of = format!("{name} {option}");
        let row = rows.iter().find(|(documented, _)| documented == option);
        let (_, default) = row.unwrap_or_else(|| panic!("{of} is not in docs/settings.md"));
        if let Some(value) = arg
            .get_default_values()
            .first()
            .filter(|_| takes_value(arg))
        {
            assert_eq!(default.as_str(), value, "default of {of}");
        }
        assert_eq!(default == "required", arg.is_required_set(), "{of}");
    }
    assert_eq!(rows.len(), options.len(), "{name}: rows too many");
}

#[test]
fn settings_document_has_every_option_with_its_default() {
    let mut cli = Cli::command();
    cli.build();
    let shown = |c: &&clap::Command| c.get_name() != "help" && !c.is_hide_set();
    for command in cli.get_subcommands().filter(shown) {
        check_documented(command, command.get_name());
    }
    // Each of its tools has options of its own.
    let laboratory = cli.find_subcommand("balloon").expect("there is one");
    for tool in laboratory.get_subcommands().filter(shown) {
        check_documented(tool, &format!("balloon {}", tool.get_name()));
    }
}

fn takes_value(arg: &clap::Arg) -> bool {
    arg.get_action().takes_values()
}
