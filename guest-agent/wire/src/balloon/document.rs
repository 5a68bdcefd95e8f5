//! What docs/balloon-protocol.md says of each message, and the test that holds it to that.
//! `MEMVISOR_WRITE_BALLOON_PROTOCOL=1 cargo test -p memvisor-wire document` writes it anew after a change.

use std::fmt::Write;

use super::declare::{Kind, Of};
use super::*;
use crate::{Gfn, GfnRun};

const DOCUMENT: &str = include_str!("../../../../docs/balloon-protocol.md");
const PATH: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/balloon-protocol.md"
);

/// A message, as its declaration describes it.
pub(super) struct Described {
    pub(super) kind: Kind,
    pub(super) number: &'static str,
    /// Lines of the text.
    pub(super) text: &'static [&'static str],
    pub(super) needs: Option<&'static str>,
    pub(super) table: Table,
    /// Sequence number, what the message says, and the bytes.
    pub(super) examples: Vec<(u32, &'static str, Vec<u8>)>,
}

/// The table of a message's fields.
#[derive(Default)]
pub(super) struct Table {
    rows: Vec<Row>,
    /// The offset of the next row.
    at: usize,
}

struct Row {
    at: usize,
    /// Bytes from one element of a list to the next, or 0 outside of a list.
    stride: usize,
    kind: &'static str,
    name: &'static str,
    meaning: String,
}

impl Table {
    /// Appends a field of `size` bytes; of no fixed size if that is 0.
    pub(super) fn row(&mut self, kind: &'static str, size: usize, of: &Of) {
        let allowed = match (size, of.allowed()) {
            (_, None) => String::new(),
            (0, _) => format!("; at most {} bytes", of.limit.end()),
            (_, Some(numbers)) => format!(", {numbers}"),
        };
        let (at, stride, name) = (self.at, 0, of.name);
        let meaning = format!("{}{allowed}", of.meaning.trim());
        self.rows.push(Row {
            at,
            stride,
            kind,
            name,
            meaning,
        });
        self.at += size;
    }

    /// Appends the fields of an element of a list.
    pub(super) fn each(&mut self, element: impl FnOnce(&mut Self)) {
        let (first, start) = (self.rows.len(), self.at);
        element(self);
        let stride = self.at - start;
        self.rows[first..]
            .iter_mut()
            .for_each(|row| row.stride = stride);
    }
}

/// A batch of an example: first page and number of pages of each range.
pub(super) fn batch(ranges: &[(u32, u32)]) -> RangeBatch {
    let run = |&(start, count): &(u32, u32)| GfnRun::new(Gfn(start), count);
    RangeBatch::new(ranges.iter().map(run).collect()).expect("an example keeps the rules")
}

/// The answer of an example.
pub(super) fn result(target: u64, runs: &[(u32, u32, PageStatus)]) -> BatchResult {
    let run = |&(start, count, status): &(u32, u32, PageStatus)| StatusRun {
        run: GfnRun::new(Gfn(start), count),
        status,
    };
    let runs = runs.iter().map(run).collect();
    BatchResult { target, runs }
}

/// The text and the table of each message.
fn sections(messages: &[Described], asks: bool) -> String {
    let mut out = String::from("\n");
    for Described {
        kind,
        number,
        text,
        needs,
        table,
        ..
    } in messages
    {
        let version =
            (kind.version != VERSION).then(|| format!(", header version {}", kind.version));
        let needs = needs.map(|needs| format!(", needs the capability {needs}"));
        let body = table.rows.is_empty().then(|| ", no body".to_owned());
        let facts = [version, needs, body]
            .into_iter()
            .flatten()
            .collect::<String>();
        let reply = match kind.reply {
            Some(reply) => format!(" Reply: `{reply}`."),
            None if asks => " No reply.".to_owned(),
            None => String::new(),
        };
        let lines: Vec<_> = text.iter().map(|line| line.trim()).collect();
        let text = lines.join("\n");
        let (text, notes) = text.split_once("\n\n").unwrap_or((&text, ""));
        let mut rows = String::new();
        for Row {
            at,
            stride,
            kind,
            name,
            meaning,
        } in &table.rows
        {
            let each = if *stride > 0 {
                format!(" + {stride}i")
            } else {
                String::new()
            };
            writeln!(rows, "| {at}{each} | {kind} | {name} | {meaning} |").expect("a string");
        }
        if !rows.is_empty() {
            rows.insert_str(
                0,
                "| offset | type | field | meaning |\n|---|---|---|---|\n",
            );
        }
        let head = format!("**{}** (type {number}{facts}).{reply}\n{text}\n", kind.name);
        let parts = [head, rows, notes.to_owned()];
        for part in parts.iter().filter(|part| !part.is_empty()) {
            write!(out, "{}\n\n", part.trim_end()).expect("a string");
        }
    }
    out
}

/// The worked example: requests, each with its reply, then what the host says unasked.
fn worked_example(to_host: &[Described], to_agent: &[Described]) -> String {
    let sides = [('>', to_host), ('<', to_agent)];
    let all = sides.into_iter().flat_map(|(side, messages)| {
        let lines = messages.iter().flat_map(|message| {
            let examples = message.examples.iter();
            examples.map(|(seq, caption, bytes)| (seq, message.kind.name, caption, bytes))
        });
        lines.map(move |line| (side, line))
    });
    let mut lines: Vec<_> = all.collect();
    lines.sort_by_key(|(_, (seq, ..))| seq.wrapping_sub(1));
    let mut out = String::new();
    for (side, (_, name, caption, bytes)) in lines {
        let colon = if caption.is_empty() { "" } else { ": " };
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let (header, body) = hex.split_at(HEADER_BYTES);
        let line = format!("{side} {}  {}", header.join(" "), body.join(" "));
        writeln!(out, "# {name}{colon}{caption}\n{}", line.trim_end()).expect("a string");
    }
    out
}

/// `document` with `text` between `start` and the first `end` behind it.
fn replace(document: &str, start: &str, end: &str, text: &str) -> String {
    let missing = || panic!("the document lacks `{start}`");
    let (before, rest) = document.split_once(start).unwrap_or_else(missing);
    let (_, after) = rest.split_once(end).unwrap_or_else(missing);
    [before, start, text, end, after].concat()
}

#[test]
fn document_says_what_the_messages_are_declared_to_be() {
    let (to_host, to_agent) = (ToHost::described(), ToAgent::described());
    let answers: Vec<_> = to_agent.iter().map(|message| message.kind.name).collect();
    for reply in to_host.iter().filter_map(|message| message.kind.reply) {
        assert!(answers.contains(&reply), "the host has no message {reply}");
    }
    let parts = [
        (
            "\n## Messages of the agent\n",
            "## ",
            sections(&to_host, true),
        ),
        (
            "\n## Messages of the host\n",
            "## ",
            sections(&to_agent, false),
        ),
        ("```hex\n", "```", worked_example(&to_host, &to_agent)),
    ];
    let expected = parts
        .iter()
        .fold(DOCUMENT.to_owned(), |document, (start, end, text)| {
            replace(&document, start, end, text)
        });
    if std::env::var_os("MEMVISOR_WRITE_BALLOON_PROTOCOL").is_some() {
        std::fs::write(PATH, &expected).expect("a document that can be written");
        return;
    }
    let line = DOCUMENT
        .lines()
        .zip(expected.lines())
        .find(|(is, shall)| is != shall);
    assert!(
        DOCUMENT == expected,
        "docs/balloon-protocol.md is out of date: {line:?}; \
         `MEMVISOR_WRITE_BALLOON_PROTOCOL=1 cargo test -p memvisor-wire document` writes it"
    );
}

#[test]
fn document_states_the_limits_the_codes_and_the_version() {
    let codes = ErrorCode::ALL
        .iter()
        .map(|code| (*code as u32, format!("{code:?}")));
    let statuses = PageStatus::ALL
        .iter()
        .map(|status| (*status as u32, format!("{status:?}")));
    for (number, name) in codes.chain(statuses) {
        let rows = DOCUMENT
            .lines()
            .filter(|line| line.starts_with(&format!("| {number} | ")));
        let mut names =
            rows.map(|row| row.split(" | ").nth(1).unwrap_or_default().replace('_', ""));
        assert!(
            names.any(|known| known.eq_ignore_ascii_case(&name)),
            "missing: {number} {name}"
        );
    }
    for (name, bit) in Capabilities::all().iter_names() {
        let row = format!("| {name} | {:#x} |", bit.bits());
        assert!(DOCUMENT.contains(&row), "missing: {row}");
    }
    for row in [
        format!("# The balloon protocol, version {VERSION}\n"),
        "| message | 65 536 bytes |".to_owned(),
        format!("| ranges in a batch | {MAX_RANGES},"),
        format!("| pages in a batch | {MAX_BATCH_PAGES} |"),
        format!("| statistics in a message | {MAX_STATS} |"),
        format!("| name | {MAX_NAME_BYTES} bytes |"),
        format!("| error text | {MAX_ERROR_BYTES} bytes |"),
    ] {
        assert!(DOCUMENT.contains(&row), "missing: {row}");
    }
    assert_eq!(MAX_MESSAGE_BYTES, 65_536);
}
