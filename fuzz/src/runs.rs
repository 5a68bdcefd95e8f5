//! Experiments and fleets as files, and what a run leaves.

use std::path::{Path, PathBuf};

use arbitrary::{Result, Unstructured};
use memvisor::bench::guests::Fleet;
use memvisor::recording::Recording;
use memvisor::scenario::compare::{drawn, side_by_side};
use memvisor::scenario::{Results, parse};

use super::mutate;
use super::texts::told;

/// Parts of scenarios, each right where the one before it is.
const PARTS: [&str; 6] = [
    "[[guest]]\nname = \"kv\"\ncount = 2\nmemory = \"32M\"\nlimit = \"24M\"\nstart = \"1s\"\n\
     workloads = [\"kv,size=16M\", \"image:{files}/boot.img\"]\n",
    "[[guest]]\nname = \"late\"\nmemory = \"8M\"\nalike = true\nseed = 3\nworkloads = [\"dbench,size=1G\"]\n",
    "[[change]]\nat = \"5s\"\nset = { kv-1.limit = \"16M\", Mem.IdleTax = 0, kv-1.balloon = \"4M\" }\n",
    "[[change]]\nat = \"8s\"\nkill = \"kv-2\"\nstop = [\"kv-1\"]\n",
    "[[expect]]\ntext = \"it works\"\nof = \"kv-*\"\nseries = \"guest_operations_total\"\nfrom = \"10s\"\nat-least = 1\n",
    "[variants]\nMem.IdleTax = [0, 75]\n\"guest.kv.count\" = [1, 3]\nhow = { a = {}, b = { \"host.memory\" = \"48M\" } }\n",
];
const BEGINNING: &str = "title = \"Two stores\"\nduration = \"20s\"\nrepeat = 2\n[host]\nmemory = \"64M\"\n\
    policy = \"stall\"\n[settings]\nMem.IdleTax = 50\n[files]\n\"boot.img\" = \"1M\"\n";

/// A scenario, and the tables of its guests as a fleet.
pub(crate) fn scenarios(u: &mut Unstructured<'_>) -> Result<()> {
    let (mut text, mut fleet) = (BEGINNING.to_owned(), String::new());
    for (number, part) in PARTS.iter().enumerate() {
        // Variants are read one by one, which takes time.
        let often = if part.starts_with("[variants]") { 1 } else { 4 };
        if u.ratio(often, 5)? {
            text += part;
            // Of a fleet's tables these are the keys that a scenario does not know.
            fleet += if number < 2 {
                "[[guest]]\nname = \"a\"\nmemory = \"8M\"\nworkloads = [\"kv\"]\nwants = \"4M\"\n"
            } else {
                ""
            };
        }
    }
    let path = Path::new("dir/mine.toml");
    let text = mutated(u, text)?;
    match parse(path, &text) {
        Ok(scenario) => {
            assert_eq!((scenario.text, scenario.name.as_str()), (text, "mine"));
            assert!((1..=64).contains(&scenario.variants.len()));
            for variant in &scenario.variants {
                let guests = &variant.setup.guests;
                assert!((1..=64).contains(&guests.len()), "{guests:?}");
                let timeline = variant.setup.timeline();
                assert!(timeline.is_sorted_by_key(|(at, _)| *at), "{timeline:?}");
            }
        }
        Err(wrong) => told(&wrong, &text),
    }
    let fleet = mutated(u, fleet)?;
    match Fleet::parse(path, &fleet) {
        Ok(fleet) => assert!(fleet.guests.iter().all(|guest| guest.wants <= guest.memory)),
        Err(wrong) => told(&wrong, &fleet),
    }
    Ok(())
}

fn mutated(u: &mut Unstructured<'_>, text: String) -> Result<String> {
    let mut bytes = text.into_bytes();
    mutate(u, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

const RESULT: &str = r#"{"format": 1, "memvisor": "0.1.0", "name": "mine", "title": "", "about": "", "command": "run",
"machine": {"cpu": "x", "cpus": 2, "memory": 8388608, "kernel": "6.1", "root": true, "load": "0.1", "build": "r"},
"began_unix_s": 1700000000, "whole": false, "why": "killed", "corrupt": false, "interrupted": true,
"variants": [{"name": "a", "repetitions": [{"dir": "a/1", "seed": 1, "engine": "uffd", "whole": true, "why": null,
"guests": [{"name": "kv", "pages_verified": 90}, {"name": "kv2", "pages_verified": 90}],
"figures": [{"name": "operations", "unit": "1/s", "value": 12.5}]}]}, {"name": "b", "repetitions": []}],
"verdicts": [{"text": "more", "variant": "a", "value": 1.5, "values": [1.0, 2.0], "unit": "seconds",
"bound": {"at_least": 1.0, "at_most": null}, "holds": true, "published": {"value": 2.5, "source": "a paper"}}]}"#;
const SAMPLES: &str = r#"{"at_ms": [0, 100, 200], "host": {"host_free_bytes": [1.0, null, 3.0]},
"vms": {"kv": {"guest_operations_total": [null, 5.0, 9.0]}}, "marks": [{"at_ms": 100, "text": "kv starts"}]}"#;

/// A results directory: what can be read of it can be compared, drawn and written again.
pub(crate) fn results(u: &mut Unstructured<'_>) -> Result<()> {
    let recording: Option<Recording> = serde_json::from_str(&mutated(u, SAMPLES.to_owned())?).ok();
    let text = mutated(u, RESULT.to_owned())?;
    let file = PathBuf::from("dir/result.json");
    let Ok(results) = Results::parse(text.as_bytes(), file.clone()) else {
        return Ok(());
    };
    let again = serde_json::to_vec(&results).expect("plain data");
    let again = Results::parse(&again, file).expect("what was written");
    // Numbers of an unknown field may be written otherwise.
    assert_eq!(
        (again.name, again.verdicts),
        (results.name.clone(), results.verdicts.clone())
    );
    let compared = side_by_side(&[("one".to_owned(), &results), ("two".to_owned(), &results)]);
    let sides = compared.sides.len();
    assert_eq!(sides, 2 * results.variants.len());
    for row in &compared.rows {
        assert_eq!(row.values.len(), sides);
        assert!(!row.cells().is_empty());
    }
    let recordings = vec![("a".to_owned(), recording.into_iter().collect())];
    let page = drawn(&[("one".to_owned(), &results, recordings)]);
    assert!(page.contains("</html>"));
    Ok(())
}
