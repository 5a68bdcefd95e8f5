//! Texts that people write: files, workloads, sizes, times, settings.

use std::path::Path;

use arbitrary::{Result, Unstructured};
use memvisor::calculator::{Format, Scenario};
use memvisor::settings::{
    ConfigError, ConfigFile, Invalid, Layer, Layers, Origin, Profile, TABLE, VM_KEYS, VmPatch,
};
use memvisor::units::Bytes;
use memvisor_guest_agent::workload::Sequence;
use memvisor_wire::units::{parse_bytes, parse_duration, parse_duration_in, parse_pages};
use memvisor_wire::vm_name::check_vm_name;

use super::{mutate, text};

/// Values that at least one setting accepts, and some that no setting does.
const VALUES: [&str; 20] = [
    "0",
    "1",
    "50",
    "50%",
    "30s",
    "10min",
    "0.5",
    "500ms",
    "1h",
    "64M",
    "1.5GiB",
    "4096",
    "none",
    "on",
    "normal",
    "4.1",
    "/tmp",
    "99999999999999999999",
    "",
    "true",
];

/// The configuration file of a host, and the file of a host that `memvisor plan` reads.
pub(crate) fn files(u: &mut Unstructured<'_>) -> Result<()> {
    let mut bytes = file(u)?.into_bytes();
    mutate(u, &mut bytes)?;
    let file = String::from_utf8_lossy(&bytes);
    match ConfigFile::parse(Path::new("host.toml"), &file) {
        Ok(parsed) => {
            let layers = Layers::new(Profile::Lab, parsed.settings.clone(), Layer::default());
            let mut again = Layer::default();
            for view in layers
                .views()
                .iter()
                .filter(|view| view.from == Origin::File)
            {
                let put = again.put(&view.name, &view.value.to_string());
                put.expect("what is shown can be written");
            }
            assert_eq!(again, parsed.settings);
        }
        Err(ConfigError::Invalid(wrong)) => told(&wrong, &file),
        Err(other) => panic!("{other:?} of a text"),
    }
    let format = *u.choose(&[Format::Toml, Format::Json])?;
    if let Ok(scenario) = Scenario::parse("plan", format, &file) {
        let _ = (scenario.plan(), scenario.report());
    }
    Ok(())
}

/// Something is wrong in a file, and each thing is told in one line, with a line that the file has.
pub(crate) fn told(wrong: &Invalid, file: &str) {
    let lines = file.matches('\n').count() + 1;
    assert!(!wrong.problems.is_empty());
    for problem in &wrong.problems {
        assert!(
            problem.line.is_none_or(|line| (1..=lines).contains(&line)),
            "{problem:?} of {lines}"
        );
        assert!(!problem.text.contains('\n'), "{problem:?}");
    }
}

fn file(u: &mut Unstructured<'_>) -> Result<String> {
    let mut file = String::new();
    let mut line = |key: &str, value: &str, quoted: bool| {
        let quote = if quoted { "\"" } else { "" };
        file.push_str(&format!("{key} = {quote}{value}{quote}\n"));
    };
    for _ in 0..u.int_in_range(0..=24)? {
        let value = u.choose(&VALUES)?;
        match u.int_in_range(0..=4)? {
            0 => {
                let keys = [
                    "memory", "profile", "engine", "swap-dir", "used", "free", "state",
                ];
                line(&format!("host.{}", u.choose(&keys)?), value, true);
            }
            1 | 2 => {
                let spec = u.choose(&TABLE)?;
                let (esx, quoted) = (spec.kind.scalar(spec.esx).to_string(), u.arbitrary()?);
                let value = if u.arbitrary()? { &esx } else { *value };
                line(&format!("settings.\"{}\"", spec.name), value, quoted);
            }
            _ => {
                let known = u.choose(&VM_KEYS)?;
                let value = if u.arbitrary()? {
                    known.default
                } else {
                    *value
                };
                let vm = u.choose(&["a", "web-1", "b"])?;
                let keys = [known.name, known.esx, "size", "active", "resident"];
                let key = u.choose(&keys)?;
                line(&format!("vm.{vm}.\"{key}\""), value, u.arbitrary()?);
            }
        }
    }
    Ok(file)
}

/// Single words. A word that is accepted must be shown in a form that is accepted again and means the same.
pub(crate) fn words(u: &mut Unstructured<'_>) -> Result<()> {
    let mut bytes = word(u)?.into_bytes();
    mutate(u, &mut bytes)?;
    let word = String::from_utf8_lossy(&bytes);
    workload(&word);
    sizes(&word);
    for spec in &TABLE {
        if let Ok(value) = spec.key.read(&word) {
            let shown = spec.kind.scalar(value).to_string();
            assert_eq!(
                spec.key.read(&shown),
                Ok(value),
                "{} of {word:?}",
                spec.name
            );
        }
    }
    for known in &VM_KEYS {
        let _ = VmPatch::default().put(known.name, &word);
        let _ = VmPatch::default().put(known.esx, &word);
    }
    let _ = (VmPatch::from_words(word.split(' ')), check_vm_name(&word));
    let _ = Layer::default().put(&word, "1");
    Ok(())
}

fn workload(word: &str) {
    let Ok(sequence) = word.parse::<Sequence>() else {
        return;
    };
    let again = sequence.to_string().parse::<Sequence>();
    let expected = format!("Ok({sequence:?})");
    assert_eq!(format!("{again:?}"), expected, "{word:?}");
    for spec in sequence.workloads() {
        assert!((1..=64).contains(&spec.threads), "{spec:?}");
    }
}

fn sizes(word: &str) {
    if let Ok(size) = word.parse::<Bytes>() {
        assert_eq!(size.0.to_string().parse(), Ok(size), "{word:?}");
    }
    if let Some(bytes) = parse_bytes(word) {
        assert_eq!(parse_bytes(&bytes.to_string()), Some(bytes), "{word:?}");
    }
    if let Some(pages) = parse_pages(word) {
        let bytes = u64::from(pages) * 4096;
        assert_eq!(parse_pages(&bytes.to_string()), Some(pages), "{word:?}");
    }
    let _ = (parse_duration(word), parse_duration_in(word, "min"));
}

/// A number with a unit, a workload, a known value, or any text.
fn word(u: &mut Unstructured<'_>) -> Result<String> {
    const UNITS: [&str; 14] = [
        "", "B", "K", "kib", "M", "G", "t", "%", "us", "ms", "s", "m", "min", "h",
    ];
    let number: String = match u.int_in_range(0..=2)? {
        0 => u.arbitrary::<u64>()?.to_string(),
        1 => format!("{}.{}", u.arbitrary::<u8>()?, u.arbitrary::<u16>()?),
        _ => u.int_in_range(0..=100)?.to_string(),
    };
    let quantity = format!("{number}{}", u.choose(&UNITS)?);
    Ok(match u.int_in_range(0..=3)? {
        0 => quantity,
        1 => text(u, 64)?,
        2 => (*u.choose(&VALUES)?).to_owned(),
        _ => {
            let kinds = [
                "idle", "stream", "toucher", "kv", "dbench", "compile", "boot", "files:/x",
                "image:y", "churn",
            ];
            let parameters = [
                "size", "threads", "rate", "pause", "content", "active", "then", "write", "zipf",
                "value", "attach", "for", "file", "latency", "inputs", "check",
            ];
            let mut sequence = (*u.choose(&kinds)?).to_owned();
            for _ in 0..u.int_in_range(0..=6)? {
                let values = [quantity.as_str(), "1M", "8M@10s", "5", "text", "no", "1.2"];
                sequence += &match u.int_in_range(0..=3)? {
                    0 => format!("; {}", u.choose(&kinds)?),
                    _ => format!(",{}={}", u.choose(&parameters)?, u.choose(&values)?),
                };
            }
            sequence
        }
    })
}
