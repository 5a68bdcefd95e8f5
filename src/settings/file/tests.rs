use super::*;
use crate::chain::chain;
use crate::machine::BudgetChoice;
use crate::settings::{EngineChoice, HostSettings, HttpAddress, Layers, Profile};
use crate::units::Pages;

fn parse(text: &str) -> Result<ConfigFile, ConfigError> {
    ConfigFile::parse(Path::new("host.toml"), text)
}

/// What is wrong with a file, a line of text for each problem.
fn problems(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

fn effective(file: &ConfigFile) -> HostSettings {
    Layers::new(Profile::Lab, file.settings.clone(), Layer::default()).effective()
}

#[test]
fn file_has_start_settings_host_settings_and_vms() {
    let file = parse(
        "[host]\nprofile = \"esx\"\npolicy = \"stall\"\nmemory = \"512M\"\nengine = \"mprotect\"\nswap-dir = \"/s\"\nswap-cache = \"/c\"\n\
         record-balloon = \"/r\"\nhttp = \"[::1]:9464\"\n[settings]\n\"Mem.IdleTax\" = 50\nMem.SamplePeriod = \"30s\"\n\
         [settings.mem]\nctlmaxpercent = 40.0\n\
         [settings.Memvisor]\nFreeStates = 4.1\nEvictRound = 0x10\n\
         [vm.vm1]\nshares = \"high\"\nlimit = \"128M\"\nsharing = false\n\
         [vm.\"db.1\"]\nsched.mem.min = 64\nshares = 77\n",
    )
    .expect("no fault");
    assert_eq!(
        file.start,
        StartSettings {
            profile: Some(Profile::Esx),
            policy: Some(&crate::policy::policies::Stall),
            memory: Some(BudgetChoice::Size(Bytes::from_mib(512))),
            engine: Some(EngineChoice::Mprotect),
            swap_dir: Some("/s".into()),
            swap_cache: Some("/c".into()),
            record_balloon: Some("/r".into()),
            http: Some("[::1]:9464".parse().expect("an address")),
        }
    );
    let settings = effective(&file);
    assert_eq!((settings.idle_tax, settings.ctl_max_percent), (50, 40));
    assert_eq!(settings.sample_period.as_secs(), 30);
    assert_eq!(settings.evict_round, Pages(16));
    let words = ["shares=high", "limit=128M", "sharing=off"];
    assert_eq!(file.vm("vm1"), VmPatch::from_words(words).expect("valid"));
    let words = ["reservation=64M", "shares=77"];
    assert_eq!(file.vm("db.1"), VmPatch::from_words(words).expect("valid"));
}

#[test]
fn http_is_an_address_or_a_port_of_loopback() {
    for (written, address) in [
        ("9464", "127.0.0.1:9464"),
        ("\"9464\"", "127.0.0.1:9464"),
        ("\"0.0.0.0:80\"", "0.0.0.0:80"),
        ("\"[::]:0\"", "[::]:0"),
    ] {
        let file = parse(&format!("[host]\nhttp = {written}\n")).expect(written);
        let HttpAddress(http) = file.start.http.expect(written);
        assert_eq!(http.to_string(), address);
    }
    for wrong in [
        "65536",
        "-1",
        "true",
        "\"\"",
        "\"localhost:80\"",
        "\"::1:80\"",
        "\"1.2.3.4\"",
    ] {
        let found = problems(&format!("[host]\nhttp = {wrong}\n"));
        let words = format!(
            "host.toml:2: host.http: cannot be `{}`; allowed: an IP address",
            wrong.trim_matches('"')
        );
        assert!(found.starts_with(&words), "{found}");
    }
}

#[test]
fn empty_file_says_nothing() {
    let file = parse("# nothing yet\n[settings]\n").expect("no fault");
    assert_eq!(file.start, StartSettings::default());
    assert_eq!(effective(&file), HostSettings::profile(Profile::Lab));
    assert!(file.vms.is_empty());
}

#[test]
fn all_faults_are_told_with_their_lines() {
    let found = problems(
        "speed = 1\n[host]\nmemory = \"12Q\"\nvma = 3\n[settings]\n\"Mem.IdelTax\" = 1\n\
         \"Mem.CtlMaxPercent\" = 100\nMem.IdleTax = [1]\n[vm.\"a/b\"]\n[vm.c]\nsalz = \"x\"\n\
         [vm.d]\nreservation = \"2M\"\nlimit = \"1M\"\n[disk]\n",
    );
    let expected = [
        "host.toml:1: speed: unknown field `speed`, expected one of `host`, `settings`, `vm`",
        "host.toml:3: host.memory: cannot be `12Q`; allowed: a size",
        "host.toml:4: host.vma: unknown field `vma`, expected one of `profile`",
        "host.toml:6: there is no setting `Mem.IdelTax`; near: Mem.IdleTax",
        "host.toml:7: Mem.CtlMaxPercent cannot be `100`",
        "host.toml:8: settings.Mem.IdleTax: a number, a text, true or false is needed",
        "host.toml:9: `a/b` is not a VM name",
        "host.toml:11: there is no VM setting `salz`; allowed: salt",
        "host.toml:13: reservation 2.0 MiB is more than the 1.0 MiB",
        "host.toml:15: disk: unknown field `disk`",
    ];
    assert_eq!(found.lines().count(), expected.len(), "{found}");
    for (line, start) in found.lines().zip(expected) {
        assert!(line.starts_with(start), "`{line}` is not `{start}`");
    }
}

#[test]
fn faults_of_the_language_have_lines_too() {
    for (text, line) in [
        ("[settings]\n\"Mem.IdleTax\" = \n", "host.toml:2: "),
        (
            "\n[vm.a]\nshares = \"high\"\nshares = \"low\"\n",
            "host.toml:4: ",
        ),
        ("[host\n", "host.toml:1: "),
    ] {
        let found = problems(text);
        assert!(found.starts_with(line), "{found}");
    }
}

#[test]
fn problems_are_of_one_line_each_and_end_somewhere() {
    let found = problems("[host]\n\"a\\nb\" = 1\nprofile = \"c\\nd\"\n");
    assert_eq!(found.lines().count(), 2, "{found}");
    let many: String = (0..150).map(|key| format!("k{key} = 1\n")).collect();
    assert_eq!(problems(&many).lines().count(), 100);
}

#[test]
fn setting_given_in_both_spellings_is_refused() {
    let found = problems("[settings]\n\"Mem.IdleTax\" = 1\n[settings.Mem]\nIdleTax = 2\n");
    assert!(found.contains("is given twice"), "{found}");
    let found = problems("[vm.a]\nlimit = \"1M\"\n\"sched.mem.max\" = 1\n");
    assert!(found.contains("limit is given twice"), "{found}");
}

#[test]
fn file_is_read_again_if_the_host_can_follow() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("host.toml");
    let write = |text: &str| std::fs::write(&path, text).expect("write");
    write("[host]\nmemory = \"64M\"\n[settings]\nMem.IdleTax = 50\n");
    let file = ConfigFile::load(&path).expect("no fault");

    write("[host]\nmemory = \"64M\"\n[settings]\nMem.IdleTax = 60\n");
    let again = file.load_again().expect("no fault");
    assert_eq!(effective(&again).idle_tax, 60);

    write("[host]\nmemory = \"65M\"\nprofile = \"esx\"\n");
    let error = file.load_again().expect_err("start only").to_string();
    assert!(
        error.contains("changes profile and memory in [host]"),
        "{error}"
    );

    write("[host]\nmemory = \"64M\"\nhttp = 9464\n");
    let error = file.load_again().expect_err("start only").to_string();
    assert!(error.contains("changes http in [host]"), "{error}");

    write("[host]\nmemory = \"64M\"\n[settings]\nMem.IdleTax = 600\n");
    let error = file.load_again().expect_err("out of range").to_string();
    assert!(error.contains("host.toml:4: Mem.IdleTax"), "{error}");
}

#[test]
fn file_that_cannot_be_read_is_named() {
    let error = ConfigFile::load(Path::new("/no/such/file")).expect_err("missing");
    assert!(error.to_string().contains("`/no/such/file`"), "{error}");
    let error = ConfigFile::load(Path::new("/dev/zero")).expect_err("endless");
    assert!(chain(&error).contains("longer than"), "{error}");
}
