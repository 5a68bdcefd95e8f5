use proptest::prelude::*;

use super::*;
use crate::policy::{FreeState, Generation, IdleTaxType, VmSnapshot};

const TOML: &str = r#"
[host]
memory = "1G"
overhead = "10M"
state = "soft"
profile = "esx"

[settings]
Mem.IdleTaxType = 0
"Memvisor.FreeStates" = 2002

[vm.web]
size = "512M"
shares = "high"
reservation = "64M"
limit = "500M"
active = "100 pages"
shared = "20M"
saved = "5M"
balloon = "32M"
compressed = "5 pages"
swapped = "16M"
zero = "4096B"
untouched = 0
balloon-max = "300M"

[vm.batch]
size = "256M"
shares = 7
consumed = "100M"
agent = false
swap-room = "1M"
"#;

fn toml(text: &str) -> Result<Scenario, Invalid> {
    Scenario::parse("x.toml", Format::Toml, text)
}

fn json(text: &str) -> Result<Scenario, Invalid> {
    Scenario::parse("x.json", Format::Json, text)
}

/// A host of 1 GiB with one VM that has these keys.
fn one_vm(keys: &str) -> Result<VmSnapshot, String> {
    let text = format!("[host]\nmemory = \"1G\"\n[vm.web]\n{keys}");
    let scenario = toml(&text).map_err(|error| error.to_string())?;
    Ok(scenario.host.vms[0].clone())
}

fn mib(mib: u64) -> Pages {
    Pages(mib << 8)
}

#[test]
fn names_of_esx_are_understood_and_count_mb() {
    let esx = TOML
        .replacen("limit = \"500M\"", "sched.mem.max = 500", 1)
        .replacen("shares = \"high\"", "sched.mem.shares = \"high\"", 1);
    let read = |text: &str| toml(text).expect("valid").host.vms;
    assert_ne!(esx, TOML);
    assert_eq!(read(&esx), read(TOML));
    let unlimited = |text: &str| {
        let limit = TOML.replacen("limit = \"500M\"", text, 1);
        read(&limit)[0].limit
    };
    for text in ["limit = -1", "limit = \"unlimited\"", "sched.mem.max = -1"] {
        assert_eq!(unlimited(text), None, "{text}");
    }
}

#[test]
fn what_is_not_written_follows_from_what_is() {
    let scenario = toml(TOML).expect("valid");
    assert_eq!(scenario.names, ["web", "batch"]);
    assert_eq!(scenario.profile, Profile::Esx);
    assert_eq!(scenario.policy.name(), "esx");
    let throughput = toml(&TOML.replacen("\"esx\"", "\"throughput\"", 1)).expect("valid");
    assert_eq!(throughput.policy.name(), "stall");
    assert_eq!(scenario.config.generation, Generation::G2002);
    assert_eq!(scenario.config.idle_tax_type, IdleTaxType::Flat);
    assert_eq!(scenario.host.state, FreeState::Soft);
    let [web, batch] = &scenario.host.vms[..] else {
        panic!("not two VMs");
    };
    assert_eq!((web.shares, batch.shares), (10_240, 7));
    assert_eq!((web.reservation, web.limit), (mib(64), Some(mib(500))));
    // 512 MiB less 20 shared, 32 ballooned, 16 swapped, 5 compressed pages and a zero page.
    assert_eq!(web.resident, Pages(mib(512 - 68).0 - 6));
    assert_eq!((web.zip_pages, web.untouched), (Pages(3), Pages(0)));
    assert_eq!(web.swap_room, mib(512 - 64 - 16));
    assert_eq!(web.active, Some(Pages(100)));
    assert_eq!((batch.resident, batch.untouched), (mib(100), mib(156)));
    assert_eq!((batch.agent_alive, batch.swap_room), (false, mib(1)));
    assert_eq!((batch.active, batch.balloon_max), (None, mib(256)));
    assert_eq!(scenario.host.overhead(), mib(10));
    let used = mib(10).0 + web.backing().0 + batch.backing().0;
    assert_eq!(
        (scenario.host.used, scenario.beyond()),
        (Pages(used), Pages(0))
    );
}

#[test]
fn json_says_the_same_in_objects_or_a_list() {
    let head = r#"{"host": {"memory": "1G", "overhead": "10M", "state": "soft", "profile": "esx"},
        "settings": {"Mem": {"IdleTaxType": 0}, "Memvisor.FreeStates": "2002"}, "vm": "#;
    let web = r#""size": "512M", "shares": "high", "reservation": "64M", "limit": "500M",
        "active": "100 pages", "shared": "20M", "saved": "5M", "balloon": "32M", "zero": "4096B",
        "compressed": "5 pages", "swapped": "16M", "untouched": 0, "balloon-max": "300M""#;
    let batch = r#""size": "256M", "shares": 7, "consumed": "100M", "agent": false,
        "swap-room": "1M""#;
    let expected = toml(TOML).expect("valid");
    for vms in [
        format!(r#"{{"web": {{{web}}}, "batch": {{{batch}}}}}}}"#),
        format!(r#"[{{"name": "web", {web}}}, {{"name": "batch", {batch}}}]}}"#),
    ] {
        assert_eq!(json(&format!("{head}{vms}")), Ok(expected.clone()));
    }
}

#[test]
fn vms_of_a_list_are_called_by_name_or_number_and_keep_their_order() {
    let list = "[[vm]]\nsize = \"1M\"\n".repeat(10);
    let text = format!("[host]\nmemory = \"1G\"\n{list}[[vm]]\nname = \"b\"\nsize = \"1M\"\n");
    let names = toml(&text).expect("valid").names;
    assert_eq!((&*names[1], &*names[9], &*names[10]), ("2", "10", "b"));
}

#[test]
fn format_is_that_of_the_ending_or_of_the_text() {
    for (path, text, format) in [
        ("a.json", "", Format::Json),
        ("a.toml", "{", Format::Toml),
        ("-", "\n {\"host\"", Format::Json),
        ("-", "[host]", Format::Toml),
        ("a.txt", "# a host", Format::Toml),
    ] {
        assert_eq!(Format::of(Path::new(path), text), format, "{path} {text}");
    }
}

#[test]
fn used_and_free_and_overhead_are_ways_to_say_the_same() {
    let host = |line: &str| {
        let text = format!("[host]\nmemory = \"1G\"\n{line}\n[vm.a]\nsize = \"512M\"\n");
        let host = toml(&text).expect(line).host;
        (host.used, host.overhead())
    };
    assert_eq!(host(""), (mib(512), mib(0)));
    for line in ["used = \"600M\"", "free = \"424M\"", "overhead = \"88M\""] {
        assert_eq!(host(line), (mib(600), mib(88)), "{line}");
    }
}

#[test]
fn vms_that_hold_more_than_there_is_are_told_apart_and_overhead_counts() {
    let vms = "[vm.a]\nsize = \"1G\"\n[vm.b]\nsize = \"1G\"\n";
    let text = format!("[host]\nmemory = \"1G\"\noverhead = \"100M\"\n{vms}");
    let scenario = toml(&text).expect("valid");
    assert_eq!(scenario.beyond(), mib(1124));
    let report = scenario.report();
    assert_eq!(report.state, FreeState::Low);
    assert_eq!((report.used_pages, report.free_pages), (mib(1024), mib(0)));
    assert_eq!(report.overhead_pages, mib(100));
    let [a, b] = [0, 1].map(|vm| report.vms[vm].target_pages);
    assert_eq!(a, b);
    let kept = report.thresholds_pages.aim.0 + mib(100).0;
    assert_eq!(report.available_pages, Pages(mib(1024).0 - kept));
    // The explanation says how much more free memory leads to a better state.
    let explained = scenario.explain("a").expect("it is there");
    let better = explained
        .changes
        .iter()
        .any(|change| change.blocked == Some(false));
    assert!(better, "{:?}", explained.changes);
}

#[test]
fn report_has_what_the_plan_has() {
    let scenario = toml(TOML).expect("valid");
    let (plan, report) = (scenario.plan(), scenario.report());
    assert_eq!(
        (report.state, report.available_pages),
        (plan.state, plan.available)
    );
    for (vm, plan) in report.vms.iter().zip(&plan.vms) {
        assert_eq!(vm.target_pages, plan.target);
        assert_eq!(vm.balloon_target_pages, plan.balloon_target);
        let explained = scenario.explain(&vm.name).expect("it is there");
        assert_eq!(explained.plan, *plan);
        let per_page = explained
            .fairness
            .shares_per_page
            .map(|shares| shares * 256.0);
        assert_eq!(vm.shares_per_mib, per_page);
        assert_eq!(report.price_pages_per_share, explained.host.price);
    }
    assert_eq!(scenario.explain("nobody"), None);
}

/// A field that is added to the snapshot can be written at once.
#[test]
fn any_other_field_of_a_snapshot_is_written_by_its_own_name() {
    let plain = one_vm("size = \"1G\"").expect("valid");
    let keys = "size = \"1G\"\nstall-us-per-s = 70\nmute = true\nzip-room = \"2M\"\nrelief = 3";
    let expected = VmSnapshot {
        stall_us_per_s: 70,
        mute: true,
        zip_room: mib(2),
        relief: Some(Pages(3)),
        ..plain
    };
    assert_eq!(one_vm(keys), Ok(expected));
    check_wrong_keys(&[
        (
            "size = \"1G\"\nmute = 7",
            &["x.toml:5:", "mute cannot be `7`", "true or false"],
        ),
        (
            "size = \"1G\"\nresident = 7",
            &["no `resident`", "stall-us-per-s"],
        ),
        (
            "size = \"1G\"\nmute = true\n\"mute\" = true",
            &["x.toml:6:"],
        ),
    ]);
}

/// Texts of a VM's keys, and what the error about each must say.
fn check_wrong_keys(cases: &[(&str, &[&str])]) {
    for (keys, parts) in cases {
        let error = one_vm(keys).expect_err(keys);
        for part in *parts {
            assert!(error.contains(part), "`{keys}`: no `{part}` in: {error}");
        }
    }
}

#[test]
fn wrong_keys_of_a_vm_are_named_with_value_line_and_what_is_allowed() {
    check_wrong_keys(&[
        ("", &["x.toml:3:", "VM web", "needs a size"]),
        (
            "size = 8",
            &[
                "x.toml:4:",
                "size cannot be `8`",
                "at least a page",
                "8G, 179M or 500 pages",
            ],
        ),
        ("size = \"8Q\"", &["size cannot be `8Q`", "allowed"]),
        ("size = \"8 B\"", &["at least a page"]),
        ("size = \"99999999999 T\"", &["size cannot be"]),
        ("size = \"5000000000000000 pages\"", &["size cannot be"]),
        (
            "size = [1]",
            &["vm.web.size: a number, a text, true or false"],
        ),
        ("size = \"0G\"", &["needs a size"]),
        (
            "size = \"1G\"\nshares = \"big\"",
            &["x.toml:5:", "shares cannot be `big`", "low, normal, high"],
        ),
    ]);
}

#[test]
fn what_a_vm_cannot_be_is_named_with_the_values() {
    check_wrong_keys(&[
        (
            "size = \"1G\"\nlimit = \"2G\"",
            &["limit 2.00 GiB is more", "at most 1.00 GiB"],
        ),
        (
            "size = \"1G\"\nlimit = \"512M\"\nreservation = \"600M\"",
            &["VM web: reservation 600.0 MiB is more than the 512.0 MiB"],
        ),
        (
            "size = \"1G\"\nlimit = \"none\"\nreservation = 64",
            &["reservation cannot be `64`", "whole pages"],
        ),
        (
            "size = \"1G\"\nsahres = 1",
            &["x.toml:5:", "no `sahres`", "shares, reservation"],
        ),
        (
            "size = \"1G\"\nballoon = \"2G\"",
            &["adds up to 2.00 GiB", "size is 1.00 GiB"],
        ),
        (
            "size = \"1G\"\nconsumed = \"1G\"\nswapped = \"1M\"",
            &["adds up to 1.00 GiB", "size"],
        ),
        (
            "size = \"1G\"\nconsumed = \"1M\"\nuntouched = \"1M\"",
            &["adds up to 2.0 MiB"],
        ),
        (
            "size = \"1G\"\nshared = \"1M\"\nsaved = \"2M\"",
            &["saved is 2.0 MiB", "1.0 MiB that it shares"],
        ),
        (
            "size = \"1G\"\nconsumed = \"1M\"\nshared = \"2M\"",
            &["consumed is 1.0 MiB", "2.0 MiB"],
        ),
        (
            "size = \"1G\"\nactive = \"2G\"",
            &["active is 2.00 GiB", "size of 1.00 GiB"],
        ),
        (
            "size = \"1G\"\nagent = 1",
            &["agent cannot be `1`", "true, false"],
        ),
    ]);
}

#[test]
fn wrong_hosts_settings_and_names_are_told_all_at_once() {
    let text = "memory = 1\n[host]\nmemory = \"0M\"\nprofile = \"lap\"\nstate = \"med\"\ncpu = 1\n\
                [settings]\nMem.IdleTax = 100\nMem.IdelTax = 5\n[vm.\"a b\"]\nsize = \"1G\"\n[vms.a]\n";
    let error = toml(text).expect_err("all of it");
    let found: Vec<_> = error
        .problems
        .iter()
        .filter_map(|problem| problem.line)
        .collect();
    assert_eq!(found, [1, 3, 4, 5, 6, 8, 9, 10, 12], "{error}");
    for part in [
        "x.toml:4: host.profile: unknown variant `lap`, expected one of `lab`, `esx`, `throughput`",
        "x.toml:8: Mem.IdleTax cannot be `100`",
        "allowed: a whole number, 0 to 99 %",
        "near: Mem.IdleTax",
        "x.toml:12: vms: unknown field `vms`",
    ] {
        assert!(error.to_string().contains(part), "no `{part}` in: {error}");
    }
    for (text, part) in [
        ("[host]\nmemory = \"1G\"", "there is no VM"),
        ("[vm.a]\nsize = \"1M\"", "[host] needs memory"),
        (
            "[host]\nmemory = \"1G\"\nused = \"2G\"\n[vm.a]\nsize = \"1M\"",
            "used is 2.00 GiB, more than",
        ),
        (
            "[host]\nmemory = \"1G\"\nused = \"1M\"\n[vm.a]\nsize = \"2M\"",
            "x.toml:3: [host]: used 1.0 MiB",
        ),
        (
            "[host]\nmemory = \"1G\"\nused = 0\nfree = 0\n[vm.a]\nsize = \"2M\"",
            "give one of them",
        ),
        ("[host\n", "x.toml:1:"),
        ("[host]\nmemory = \"1G\"\nmemory = \"1G\"\n", "x.toml:3:"),
        (
            "[host]\nused = 0\n[vm.a]\nsize = \"1M\"\n",
            "x.toml:1: host: missing field `memory`",
        ),
        (
            "[[vm]]\nname = \"a\"\nsize = \"1G\"\n[[vm]]\nname = \"a\"\nsize = \"1G\"\n",
            "VM a is there twice",
        ),
    ] {
        let error = toml(text).expect_err(text).to_string();
        assert!(error.contains(part), "`{text}`: no `{part}` in: {error}");
    }
    for (text, part) in [
        ("{\n \"host\": \n", "x.json:3: EOF"),
        ("[]", "no object"),
        (
            r#"{"host": {"memory": "1G", "memory": "1G"}}"#,
            "x.json:1: duplicate key",
        ),
        (
            "{\n\n\"host\": 7, \"vm\": {}}",
            "x.json:3: host: invalid type: integer `7`, expected a table",
        ),
        ("{\"vm\":\n[null]}", "x.json:2: null is no value"),
        (
            "{\"vm\": [\n7]}",
            "x.json:2: vm.1: invalid type: integer `7`",
        ),
        (r#"{"\"a:null\\": 7}"#, r#"unknown field `"a:null\`"#),
    ] {
        let error = json(text).expect_err(text).to_string();
        assert!(error.contains(part), "`{text}`: no `{part}` in: {error}");
    }
}

proptest! {
    #[test]
    fn homes_that_were_read_add_up_to_the_size(
        parts in proptest::array::uniform7(0_u64..1 << 40),
        saved in 0_u64..1 << 40,
        host_gib in 1_u64..4096,
    ) {
        let [own, shared, balloon, swapped, compressed, zero, untouched] = parts;
        let size = parts.iter().sum::<u64>().max(1);
        let consumed = own + shared - saved.min(shared) + compressed.div_ceil(2);
        let keys = format!(
            "size = \"{size} pages\"\nconsumed = \"{consumed} pages\"\nshared = \"{shared} pages\"\n\
             saved = \"{} pages\"\nballoon = \"{balloon} pages\"\nswapped = \"{swapped} p\"\n\
             compressed = \"{compressed} p\"\nzero = \"{zero} p\"\n",
            saved.min(shared),
        );
        let text = format!("[host]\nmemory = \"{host_gib}G\"\n[vm.a]\n{keys}");
        let scenario = toml(&text).expect("it adds up");
        let vm = &scenario.host.vms[0];
        prop_assert_eq!((vm.resident, vm.shared), (Pages(size - (size - own)), Pages(shared)));
        prop_assert_eq!(vm.backing(), Pages(consumed));
        prop_assert_eq!(vm.untouched, Pages(size - parts[..6].iter().sum::<u64>()));
        prop_assert_eq!(scenario.host.overhead(), Pages(0));
        prop_assert_eq!(scenario.report().vms.len(), 1);
        let _ = untouched;
    }

    #[test]
    fn any_text_is_a_scenario_or_errors_of_one_line_each(text in r#"(\[host\]|\[vm.a\]|\n|memory|size|"|=|[0-9]|G|.){0,60}"#) {
        for format in [Format::Toml, Format::Json] {
            if let Err(error) = Scenario::parse("x", format, &text) {
                prop_assert!(!error.problems.is_empty());
                for problem in &error.problems {
                    prop_assert!(!problem.text.contains(char::is_control), "{:?}", problem.text);
                }
            }
        }
    }
}
