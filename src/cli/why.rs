//! `memvisor why` and `memvisor reload`.

use clap::Args;
use serde_json::{Map, Value};

use super::exit::Exit;
use super::get::line;
use super::values;
use super::vm::{ClientArgs, output};
use crate::control::ReloadReport;
use crate::units::{Bytes, Pages};

#[derive(Debug, Args)]
pub(super) struct WhyArgs {
    /// The VM.
    #[arg(value_parser = values::name)]
    name: String,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: ClientArgs,
}

pub(super) fn why(args: WhyArgs) -> anyhow::Result<Exit> {
    let why = args.common.client()?.why(&args.name)?;
    output(&why, args.json, explained)?;
    Ok(Exit::Success)
}

#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: ClientArgs,
}

pub(super) fn reload(args: ReloadArgs) -> anyhow::Result<Exit> {
    let report = args.common.client()?.reload()?;
    output(&report, args.json, reloaded)?;
    Ok(Exit::Success)
}

fn reloaded(report: &ReloadReport) -> String {
    let mut text = format!("{}: read\n", report.file);
    if report.settings.is_empty() && report.vms.is_empty() {
        text += "nothing has changed\n";
    }
    text.extend(report.settings.iter().map(line));
    let vms = report.vms.iter();
    text.extend(vms.map(|name| format!("VM {name}: has other settings now\n")));
    text
}

/// An object as text: its numbers and words first, then its parts, each under its name.
fn explained(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(fields) => part(fields, 0, &mut text),
        other => text = format!("{}\n", word("", other)),
    }
    text
}

fn part(fields: &Map<String, Value>, indent: usize, text: &mut String) {
    let is_part = |value: &Value| match value {
        Value::Object(_) => true,
        Value::Array(elements) => elements.iter().any(Value::is_object),
        _ => false,
    };
    let label = |name: &str| name.replace('_', " ");
    let words = || fields.iter().filter(|(_, value)| !is_part(value));
    let width = words().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in words() {
        let (label, value) = (label(name), word(name, value));
        *text += &format!("{:indent$}{label:<width$}  {value}\n", "");
    }
    for (name, value) in fields.iter().filter(|(_, value)| is_part(value)) {
        let elements = value
            .as_array()
            .map_or(std::slice::from_ref(value), Vec::as_slice);
        for element in elements {
            *text += &format!("{:indent$}{}\n", "", label(name));
            match element {
                Value::Object(fields) => part(fields, indent + 2, text),
                other => *text += &format!("{:indent$}  {}\n", "", word(name, other)),
            }
        }
    }
}

/// A value on one line; numbers whose names say what they count, as sizes.
fn word(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.escape_debug().to_string(),
        Value::Number(number) => match number.as_u64() {
            Some(pages) if name.ends_with("_pages") && pages < 1 << 48 => {
                format!("{} ({pages} pages)", Pages(pages).bytes())
            }
            Some(bytes) if name.ends_with("_bytes") => Bytes(bytes).to_string(),
            _ => number.to_string(),
        },
        Value::Array(elements) => {
            let words: Vec<String> = elements.iter().map(|e| word(name, e)).collect();
            words.join(", ")
        }
        Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::settings::Layers;

    #[test]
    fn explanation_has_words_first_and_parts_under_their_names() {
        let text = explained(&json!({
            "name": "a\u{1b}b",
            "limit": null,
            "target_pages": 512,
            "binds": ["shares", "tax"],
            "balloon": {"size_bytes": 4096, "is_enough": false},
            "victims": [{"vm": 1}, {"vm": 2}],
        }));
        let expected = [
            "binds         shares, tax",
            "limit         none",
            "name          a\\u{1b}b",
            "target pages  2.0 MiB (512 pages)",
            "balloon",
            "  is enough   no",
            "  size bytes  4.0 KiB",
            "victims",
            "  vm  1",
            "victims",
            "  vm  2",
        ];
        let mut found: Vec<&str> = text.lines().collect();
        // The order of words is that of the map, whose kind depends on how serde_json is built.
        found[..4].sort_unstable();
        assert_eq!(found[..4], expected[..4], "{text}");
        for line in expected {
            assert!(
                text.lines().any(|found| found == line),
                "no `{line}` in\n{text}"
            );
        }
    }

    #[test]
    fn report_of_a_reload_names_what_has_changed() {
        let mut report = ReloadReport {
            file: "/etc/host.toml".to_owned(),
            settings: Vec::new(),
            vms: Vec::new(),
        };
        assert!(reloaded(&report).contains("nothing has changed"));
        let view = Layers::default().view("Mem.IdleTax").expect("there is one");
        report.settings.push(view);
        report.vms.push("web".to_owned());
        let text = reloaded(&report);
        assert!(text.contains("Mem.IdleTax = 75 % (from profile"), "{text}");
        assert!(text.contains("VM web: has other settings"), "{text}");
    }
}
