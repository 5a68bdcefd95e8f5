//! A strict reader of OpenMetrics, and what fetches them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use memvisor::telemetry::metrics::CONTENT_TYPE;

/// A name and labels.
pub(crate) type Sample = (String, BTreeMap<String, String>);

/// A family of samples, while its lines are read.
#[derive(Default)]
struct Family {
    name: String,
    kind: String,
    unit: String,
    help: bool,
}

impl Family {
    /// The name that its samples have by OpenMetrics 1.0.
    fn sample(&self) -> String {
        let suffix = match self.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            "gauge" | "stateset" => "",
            kind => panic!("no type `{kind}` is expected"),
        };
        format!("{}{suffix}", self.name)
    }
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    first && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Takes `{name="value",...}` off the beginning.
fn labels<'a>(line: &str, mut rest: &'a str) -> (BTreeMap<String, String>, &'a str) {
    let mut labels = BTreeMap::new();
    rest = rest.strip_prefix('{').expect(line);
    loop {
        let (name, value) = rest.split_once("=\"").expect(line);
        assert!(is_name(name), "{line}");
        let mut text = String::new();
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next().expect(line) {
                (at, '"') => break at,
                (_, '\\') => text.push(match chars.next().expect(line).1 {
                    'n' => '\n',
                    escaped @ ('\\' | '"') => escaped,
                    other => panic!("\\{other}: {line}"),
                }),
                (_, other) => text.push(other),
            }
        };
        assert!(
            labels.insert(name.to_owned(), text).is_none(),
            "twice: {line}"
        );
        rest = &value[end + 1..];
        match rest.split_at(1) {
            (",", more) => rest = more,
            ("}", more) => return (labels, more),
            _ => panic!("{line}"),
        }
    }
}

/// Reads a line that is a sample of `family`.
fn sample(line: &str, family: &Family) -> (Sample, f64) {
    let end = line.find(['{', ' ']).expect(line);
    let (name, rest) = line.split_at(end);
    assert_eq!(name, family.sample(), "{line}");
    let (labels, rest) = if rest.starts_with('{') {
        labels(line, rest)
    } else {
        (BTreeMap::new(), rest)
    };
    let value = rest.strip_prefix(' ').expect(line);
    assert!(
        value
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.'),
        "neither sign nor exponent: {line}"
    );
    let number: f64 = value.parse().expect(line);
    match family.kind.as_str() {
        "info" => assert_eq!(number, 1.0, "{line}"),
        "stateset" => assert!(
            number == 0.0 || number == 1.0 && labels.contains_key(name),
            "{line}"
        ),
        _ => {}
    }
    ((name.to_owned(), labels), number)
}

/// Reads OpenMetrics 1.0, and panics at whatever is not exactly that.
pub(crate) fn parse(text: &str) -> BTreeMap<Sample, f64> {
    let lines = text.strip_suffix("# EOF\n").expect("an end");
    assert!(lines.is_empty() || lines.ends_with('\n'));
    let (mut samples, mut seen) = (BTreeMap::new(), BTreeSet::new());
    let mut family = Family::default();
    let mut has_samples = false;
    for line in lines.lines() {
        let Some(about) = line.strip_prefix("# ") else {
            let (sample, value) = sample(line, &family);
            assert!(family.help, "{line}");
            assert!(samples.insert(sample, value).is_none(), "twice: {line}");
            has_samples = true;
            continue;
        };
        let (word, rest) = about.split_once(' ').expect(line);
        let (name, rest) = rest.split_once(' ').expect(line);
        if word == "TYPE" {
            assert!(
                is_name(name) && seen.insert(name.to_owned()),
                "no name, or twice: {line}"
            );
            family = Family {
                name: name.to_owned(),
                kind: rest.to_owned(),
                ..Family::default()
            };
            has_samples = false;
        }
        assert!(name == family.name && !has_samples, "out of place: {line}");
        match word {
            "TYPE" => {}
            "UNIT" => {
                assert!(
                    family.unit.is_empty() && name.ends_with(&format!("_{rest}")),
                    "{line}"
                );
                assert!(
                    ["counter", "gauge"].contains(&family.kind.as_str()),
                    "{line}"
                );
                family.unit = rest.to_owned();
            }
            "HELP" => family.help = !rest.is_empty() && !family.help,
            _ => panic!("{line}"),
        }
    }
    samples
}

pub(crate) fn scrape(address: SocketAddr) -> String {
    let (head, body) = get(address, "/metrics");
    assert!(head.contains(CONTENT_TYPE), "{head}");
    body
}

/// Head and body of an answer that is all right.
pub(crate) fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("connect");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n").expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    (head.to_owned(), body.to_owned())
}
