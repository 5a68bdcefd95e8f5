use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::scenario::Value;
use crate::settings::mistakes::{self, Mistake};

fn read(text: &str) -> Result<Scenario, Invalid> {
    parse(Path::new("x/mine.toml"), text)
}

const GOOD: &str = r#"title = "Two stores"
duration = "20s"
[host]
memory = "64M"
policy = "stall"
[settings]
Mem.IdleTax = 50
[files]
"boot.img" = "1M"
[[guest]]
name = "kv"
count = 2
memory = "32M"
limit = "24M"
workloads = ["kv,size=16M", "image:{files}/boot.img"]
[[guest]]
name = "late"
memory = "8M"
workloads = ["idle"]
[[change]]
at = "5s"
start = "late"
set = { kv-1.limit = "16M", Mem.IdleTax = 0, kv-1.balloon = "4M" }
[[change]]
at = "2s"
kill = "kv-2"
[[change]]
at = "8s"
start = ["kv-2"]
[[expect]]
text = "it works"
of = "kv-*"
series = "guest_operations_total"
from = "10s"
at-least = 1
"#;

#[test]
fn file_becomes_an_experiment() {
    let scenario = read(GOOD).expect("right");
    assert_eq!((scenario.name.as_str(), scenario.repeat), ("mine", 1));
    let [variant] = &scenario.variants[..] else {
        panic!("{scenario:?}");
    };
    let setup = &variant.setup;
    assert_eq!(variant.name, "");
    assert_eq!(setup.interval, Duration::from_secs(1));
    assert_eq!(setup.settings, [(Key::IdleTax, "50".to_owned())]);
    let names: Vec<_> = setup
        .guests
        .iter()
        .map(|guest| (guest.name.as_str(), guest.seed, guest.start))
        .collect();
    let now = Some(Duration::ZERO);
    assert_eq!(
        names,
        [("kv-1", 1, now), ("kv-2", 2, now), ("late", 3, None)]
    );
    assert_eq!(setup.guests[0].workloads_in("/f")[1], "image:/f/boot.img");
    let timeline: Vec<String> = setup
        .timeline()
        .iter()
        .map(|(at, action)| format!("{} {action}", at.as_secs()))
        .collect();
    let expected = [
        "0 kv-1 starts",
        "0 kv-2 starts",
        "2 kv-2 is killed",
        "5 Mem.IdleTax = 0",
        "5 kv-1: balloon of 4.0 MiB",
        "5 kv-1: limit = 16M",
        "5 late starts",
        "8 kv-2 starts",
    ];
    assert_eq!(timeline, expected);
    let figure = &scenario.expects[0].figure;
    assert_eq!(
        (figure.value, figure.from_ms, figure.to_ms),
        (Value::Rate, 10_000, u64::MAX)
    );
    assert_eq!(scenario.expects[0].unit, "operations/s");
}

/// Bare numbers count MB then, as in ESX.
#[test]
fn guests_have_settings_by_either_name() {
    let limits = |text: &str| {
        let scenario = read(text).expect("right");
        let limit = |variant: &Variant| variant.setup.guests[0].patch.limit.flatten();
        scenario.variants.iter().map(limit).collect::<Vec<_>>()
    };
    let mib = |mib| Some(Bytes::from_mib(mib).pages());
    assert_eq!(limits(GOOD), [mib(24)]);
    for name in ["sched.mem.max", "\"sched.mem.max\"", "Sched.Mem.Max"] {
        let esx = GOOD.replace("limit = \"24M\"", &format!("{name} = 20"));
        assert_eq!(limits(&esx), [mib(20)], "{name}");
        for (key, values) in [
            ("guest.kv.limit", "[\"8M\", \"12M\"]"),
            ("guest.*.sched.mem.max", "[8, 12]"),
        ] {
            let variants = format!("\n[variants]\n\"{key}\" = {values}\n");
            // The shortest guest has no room for more.
            let both = GOOD.replace("memory = \"8M\"", "memory = \"16M\"");
            for text in [
                &both,
                &both.replace("limit = \"24M\"", &format!("{name} = 20")),
            ] {
                let found = limits(&(text.clone() + &variants));
                assert_eq!(found, [mib(8), mib(12)], "{key}: {text}");
            }
        }
    }
}

/// Mistakes in [`GOOD`].
const MISTAKES: &[Mistake<'_>] = &[
    ("duration", "duratoin", ":2: duratoin: ", "near: duration"),
    ("\"20s\"", "\"20q\"", ":2: duration: ", "`20q`"),
    ("\"20s\"", "\"1ms\"", ":2: duration", "100ms to a week"),
    ("\"20s\"", "\"0s\"", ":2: duration cannot be 0s", "a week"),
    (
        "\"20s\"",
        "\"192h\"",
        ":2: duration cannot be 192h",
        "a week",
    ),
    (
        "limit = \"24M\"",
        "agent = false",
        ":23: ",
        "kv-1: it has no balloon",
    ),
    (
        "at = \"2s\"",
        "at = \"90m\"",
        ":25: at: 90m",
        "the end at 20s",
    ),
    (
        "title = \"Two stores\"",
        "interval = \"30s\"",
        ":1: interval",
        "100ms to",
    ),
    (
        "title = \"Two stores\"",
        "repeat = 0",
        ":1: repeat",
        "1 to 100",
    ),
    ("memory = \"64M\"\n", "", ": [host] needs memory", "256M"),
    ("policy", "polcy", ":5: host.polcy: ", "near: policy"),
    ("\"stall\"", "\"stal\"", ":5: host.policy: ", "esx"),
    ("IdleTax = 50", "IdelTax = 50", ":7: ", "Mem.IdleTax"),
    ("IdleTax = 50", "IdleTax = 500", ":7: ", "0 to 99"),
    (
        "\"boot.img\" =",
        "\"a/b\" =",
        ":9: files: `a/b`",
        "file's name",
    ),
    (
        "memory = \"32M\"",
        "memroy = \"32M\"",
        ":13: guest.1.memroy: ",
        "near: memory",
    ),
    ("\"24M\"", "\"48M\"", ":14: limit", "at most 32.0 MiB"),
    (
        "limit = \"24M\"",
        "sched.mem.max = 48",
        ":14: limit",
        "at most 32.0 MiB",
    ),
    (
        "limit = \"24M\"",
        "limit = \"24M\"\nsched.mem.max = 20",
        ":15: limit is given twice",
        "",
    ),
    (
        "limit = \"24M\"",
        "sched.mem.maxx = 20",
        ":14: guest.1.sched.mem.maxx",
        "near: sched.mem.max",
    ),
    (
        "limit = \"24M\"",
        "swap-dir = \"/s\"",
        ":14: guest.1.swap-dir",
        "unknown field",
    ),
    (
        "limit =",
        "limits =",
        ":14: guest.1.limits: ",
        "near: limit",
    ),
    ("size=16M", "size=64M", ":13: memory: ", "less than"),
    ("kv,size", "kvs,size", ":15: workloads: ", "`kvs`"),
    (
        "{files}/boot.img",
        "{files}/bot.img",
        ":15: workloads: ",
        "allowed: boot.img",
    ),
    (
        "{files}/boot.img",
        "/no/such",
        ":15: workloads: ",
        "`/no/such`",
    ),
    (
        "\"1M\"",
        "\"20M\"",
        ":13: memory: ",
        "less than the 36.0 MiB",
    ),
    ("count = 2", "count = 0", ":12: count: ", "1 to 64"),
    ("\"late\"", "\"kv-1\"", ":16: there are two", "kv-1"),
    ("at = \"5s\"", "at = \"20s\"", ":21: at: ", "20s"),
    (
        "start = \"late\"",
        "start = \"lat\"",
        ":22: ",
        "allowed: kv-1, kv-2, late",
    ),
    (
        "start = \"late\"",
        "start = 7",
        ":22: change.1.start",
        "the name of a guest",
    ),
    ("kv-1.limit", "kv-1.limt", ":23: ", "limit"),
    (
        "kv-1.limit",
        "kv-7.limit",
        ":23: ",
        "one of these guests: kv-1",
    ),
    ("\"16M\"", "\"64M\"", ":23: kv-1: limit", "at most 32.0 MiB"),
    ("\"4M\"", "\"64M\"", ":23: kv-1: a balloon", "32.0 MiB"),
    (
        "\"4M\"",
        "\"lots\"",
        ":23: balloon cannot be `lots`",
        "auto",
    ),
    (
        "start = [\"kv-2\"]",
        "kill = \"kv-2\"",
        ":28: kv-2 is killed",
        "does not run",
    ),
    (
        "start = [\"kv-2\"]",
        "start = [\"kv-1\"]",
        ":28: kv-1 starts",
        "runs",
    ),
    ("start = [\"kv-2\"]", "", ":27: nothing changes", "kill"),
    (
        "\"kv-*\"",
        "\"vk-*\"",
        ":32: of: ",
        "allowed: kv-1, kv-2, late",
    ),
    (
        "_operations_",
        "_operation_",
        ":33: there is no series",
        "near: guest_operations_total",
    ),
    (
        "from = \"10s\"",
        "from = \"20s\"",
        ":34: from 20s",
        "no part of",
    ),
    ("from =", "variant = \"a\"\nfrom =", ":34: variant: ", "`a`"),
    (
        "at-least = 1",
        "at-lest = 1",
        ":35: expect.1.at-lest: ",
        "near: at-least",
    ),
    (
        "at-least = 1",
        "at-least = \"lots\"",
        ":35: at-least",
        "a percentage",
    ),
    (
        "at-least = 1",
        "value = \"mode\"",
        ":35: expect.1.value: ",
        "`mean`",
    ),
    (
        "limit = \"24M\"",
        "pool = \"prod\"",
        ":14: pool: there is no resource pool `prod`",
        "allowed: root",
    ),
    (
        "kv-1.limit = \"16M\"",
        "kv-1.pool = \"prod\"",
        ":23: there is no resource pool `prod`",
        "[pool.NAME]",
    ),
    (
        "kv-1.limit",
        "pool.prod.limit",
        ":23: there is no resource pool `prod`",
        "[pool.NAME]",
    ),
    (
        "[files]",
        "[pool.a]\nlimt = 5\n[files]",
        ":9: resource pool a: there is no setting `limt`",
        "limit",
    ),
    (
        "[files]",
        "[pool.a]\nparent = \"b\"\n[files]",
        ":9: resource pool a: there is no resource pool `b`",
        "",
    ),
    ("[host]", "[host", ":3: ", ""),
    (
        "",
        "[variants]\n\"Mem.Idle\" = [1]\n",
        ":37: variants: Mem.Idle",
        "there is no table",
    ),
    (
        "",
        "[variants]\n\"host.memory\" = [\"8M\", \"8Q\"]\n",
        ":37: host.memory: ",
        "variant memory=8Q",
    ),
    (
        "",
        "[variants]\n\"guest.k.limit\" = [\"8M\"]\n",
        ":37: variants: guest.k.limit",
        "no guest `k`",
    ),
    (
        "",
        "[variants]\nseed = []\n",
        ":37: variants.seed",
        "a list of values",
    ),
];

#[test]
fn mistake_is_told_with_its_line_its_key_and_what_is_near() {
    mistakes::make(GOOD, MISTAKES, read);
    let error = read("[host]\nmemory = \"1M\"\n").expect_err("no guest");
    assert!(error.to_string().contains(": 0 guests"), "{error}");
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = GOOD
        .replace("title", "titel")
        .replace("\"20s\"", "\"20q\"")
        .replace("memory = \"8M\"", "memory = \"8Q\"");
    let error = read(&text).expect_err("three").to_string();
    for at in [":1: titel", ":2: duration", ":18: guest.2.memory"] {
        assert!(error.contains(at), "{at}: {error}");
    }
    assert_eq!(error.lines().count(), 3, "{error}");
}

const SMALL: &str =
    "[host]\nmemory = \"64M\"\n[[guest]]\nname = \"a\"\nmemory = \"8M\"\nworkloads = [\"idle\"]\n";

#[test]
fn variants_are_all_combinations_in_the_order_of_the_file() {
    let text = format!(
        "{SMALL}[variants]\nMem.IdleTax = [0, 75]\n\"guest.a.count\" = [1, 3]\n[variants.how]\n\
         none = {{}}\nswap = {{ \"host.memory\" = \"32M\", Mem.MemZipEnable = 0 }}\n"
    );
    let scenario = read(&text).expect("right");
    let names: Vec<_> = scenario
        .variants
        .iter()
        .map(|variant| variant.name.as_str())
        .collect();
    assert_eq!(names.len(), 8);
    assert_eq!(names[0], "IdleTax=0,count=1,none");
    assert_eq!(names[7], "IdleTax=75,count=3,swap");
    let last = &scenario.variants[7].setup;
    assert_eq!(last.guests.len(), 3);
    assert_eq!(last.memory, Bytes::from_mib(32));
    let expected = [
        (Key::IdleTax, "75".to_owned()),
        (Key::MemZipEnable, "0".to_owned()),
    ];
    let mut settings = last.settings.clone();
    settings.sort();
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(settings, expected);
    assert_eq!(scenario.variants[0].setup.memory, Bytes::from_mib(64));
    let many: Vec<String> = (0..65).map(|value| value.to_string()).collect();
    let many = format!("{SMALL}[variants]\nseed = [{}]\n", many.join(","));
    let error = read(&many).expect_err("too many").to_string();
    assert!(error.contains("more than 64"), "{error}");
}

#[test]
fn variants_reach_what_a_change_sets() {
    let change = "[[change]]\nat = \"1s\"\nset = { a.balloon = \"0\" }\n";
    let dimension =
        "[variants]\n\"change.1.set.a.balloon\" = [\"1M\", \"2M\"]\n\"change.1.at\" = [\"3s\"]\n";
    let scenario = read(&format!("{SMALL}{change}{dimension}")).expect("right");
    let changes: Vec<_> = scenario
        .variants
        .iter()
        .map(|variant| {
            let change = &variant.setup.changes[0];
            (change.at.as_secs(), change.actions[0].to_string())
        })
        .collect();
    let expected = [1, 2].map(|size| (3, format!("a: balloon of {size}.0 MiB")));
    assert_eq!(changes, expected);
}

#[test]
fn variant_takes_the_place_of_a_setting_of_any_case() {
    let text = format!("[settings]\nmem.idletax = 1\n{SMALL}[variants]\n\"Mem.IdleTax\" = [2]\n");
    let scenario = read(&text).expect("right");
    let settings = &scenario.variants[0].setup.settings;
    assert_eq!(*settings, [(Key::IdleTax, "2".to_owned())]);
}

#[test]
fn experiments_of_the_documents_are_right() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/experiments");
    let mut found = 0;
    for entry in std::fs::read_dir(dir).expect("there") {
        let path = entry.expect("readable").path();
        let scenario = load(&path).unwrap_or_else(|error| panic!("{error}"));
        assert!(!scenario.expects.is_empty(), "{}", path.display());
        assert!(
            scenario
                .expects
                .iter()
                .any(|expect| expect.published.is_some() || !scenario.about.is_empty())
        );
        found += 1;
    }
    assert!(found >= 3, "only {found} found");
}

#[test]
fn file_that_is_not_there_is_named() {
    let error = load(Path::new("/no/such")).expect_err("not there");
    assert!(error.to_string().contains("`/no/such`"));
}

proptest! {
    #[test]
    fn key_with_a_swapped_letter_is_told_with_the_right_one(
        line in 0_usize..36,
        at in 1_usize..6,
    ) {
        let lines: Vec<&str> = GOOD.lines().collect();
        let line = line % lines.len();
        // Keys of tables of ours; names of others are anybody's.
        let key = lines[line].split(" = ").next().filter(|key| {
            !lines[line].starts_with('[') && key.len() > 3.max(at) && key.bytes().all(|byte| byte.is_ascii_lowercase())
        });
        if let Some(key) = key {
            let mut wrong: Vec<char> = key.chars().collect();
            wrong.swap(at, at - 1);
            let wrong: String = wrong.into_iter().collect();
            if wrong != key {
                let mut lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
                lines[line] = lines[line].replacen(key, &wrong, 1);
                let error = read(&lines.join("\n")).expect_err("a typo").to_string();
                let place = format!(":{}: ", line + 1);
                let told = error.lines().find(|told| told.contains(&place));
                let told = told.unwrap_or_else(|| panic!("no {place} in {error}"));
                prop_assert!(told.contains(&format!("`{wrong}`")), "{}", told);
                prop_assert!(told.contains("near: ") && told.contains(key), "{}", told);
            }
        }
    }

    #[test]
    fn any_text_is_a_scenario_or_an_error(text in "[a-z=\\[\\]\"{}. \\n0-9]{0,200}") {
        let _ = read(&text);
        let _ = read(&format!("{SMALL}{text}"));
        let _ = read(&format!("{SMALL}[variants]\n{text}"));
    }
}
