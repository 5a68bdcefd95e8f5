//! Files that people write: TOML or JSON as one kind of tree, and all that is wrong with one.
//!
//! Whoever wrote a file wants to see at once all that is wrong with it, each thing with its line. Types that derive
//! serde's `Deserialize` end at the first fault, and serde's JSON has no lines. So a file becomes a tree of texts
//! here, and a reader takes out of it what it knows; a value that it cannot use is a [`Problem`] and no end.

use std::fmt;
use std::str::FromStr;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use thiserror::Error;
use toml::de::{DeTable, DeValue};

use super::choice::ChoiceError;
use super::layers::Layer;
use super::value::shown;

/// The entries of a table, in the order of the file.
pub(crate) type Table = Vec<Entry>;

/// A value with its name.
#[derive(Debug)]
pub(crate) struct Entry {
    pub key: String,
    /// The line of the key. The JSON parser tells none.
    pub line: Option<usize>,
    pub value: Node,
}

/// A value.
#[derive(Debug)]
pub(crate) enum Node {
    /// A text, a number, true or false, as it is written.
    Scalar(String),
    Table(Table),
    Array(Vec<Self>),
    /// A value of any other kind, by the name of that kind.
    Other(&'static str),
}

/// A text in a table, or in a table in it; then its key has dots: `[settings.Mem] IdleTax = 50` is
/// `[settings] "Mem.IdleTax" = 50`.
#[derive(Debug)]
pub(crate) struct Leaf<'a> {
    /// What errors begin with, such as `[host]: `.
    pub of: &'a str,
    pub key: String,
    pub line: Option<usize>,
    pub text: &'a str,
}

/// One thing that is wrong in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The line, from 1 on; `None` for what is missing, and in JSON.
    pub line: Option<usize>,
    /// What is wrong, and what would be right.
    pub text: String,
}

/// Why a file is not used: a line for each thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub struct Invalid {
    /// The name of the file.
    pub file: String,
    /// All that is wrong, by line.
    pub problems: Vec<Problem>,
}

impl Invalid {
    pub(crate) fn new(file: String, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.line);
        Self { file, problems }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{}:", self.file)?;
            if let Some(line) = problem.line {
                write!(f, "{line}:")?;
            }
            write!(f, " {}", problem.text)?;
        }
        Ok(())
    }
}

/// A file that is being read, with all that has been found wrong.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub problems: Vec<Problem>,
}

impl Reading {
    /// The tables of a TOML text, as far as it is one.
    pub(crate) fn toml(&mut self, text: &str) -> Table {
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = error.span().map(|span| line_of(text, span.start));
            self.wrong(line, error.message().to_owned());
        }
        toml_table(root.get_ref(), text)
    }

    /// The object of a JSON text; nothing if it is none.
    pub(crate) fn json(&mut self, text: &str) -> Table {
        match serde_json::from_str(text) {
            Ok(Node::Table(table)) => return table,
            Ok(_) => self.wrong(
                None,
                "this is no object; allowed: {\"host\": ...}".to_owned(),
            ),
            Err(error) => {
                let line = (error.line() > 0).then(|| error.line());
                self.wrong(line, error.to_string());
            }
        }
        Table::new()
    }

    pub(crate) fn wrong(&mut self, line: Option<usize>, text: String) {
        self.problems.push(Problem { line, text });
    }

    /// Notes that a reader does not know an entry. `tables` are those that it knows.
    pub(crate) fn astray(&mut self, entry: &Entry, tables: &str) {
        let (key, kind) = (shown(&entry.key), entry.value.kind());
        let text = match entry.value {
            Node::Table(_) => format!("there is no table [{key}]; allowed: {tables}"),
            _ => format!("`{key}` cannot be this {kind}; allowed: {tables}"),
        };
        self.wrong(entry.line, text);
    }

    /// The texts of a table and of the tables in it. Notes values that are no text. Errors begin with `of`.
    pub(crate) fn leaves<'a>(&mut self, of: &'a str, table: &'a Table) -> Vec<Leaf<'a>> {
        let mut found = Vec::new();
        let mut open = vec![(String::new(), table)];
        while let Some((prefix, table)) = open.pop() {
            for Entry { key, line, value } in table {
                let (key, line) = (format!("{prefix}{key}"), *line);
                match value {
                    Node::Table(inner) => open.push((format!("{key}."), inner)),
                    Node::Scalar(text) => found.push(Leaf {
                        of,
                        key,
                        line,
                        text,
                    }),
                    other => {
                        let (key, kind) = (shown(&key), other.kind());
                        self.wrong(
                            line,
                            format!("{of}{key} cannot be this {kind}; allowed: {TEXTS}"),
                        );
                    }
                }
            }
        }
        found
    }

    /// Notes a value that could be read. One that could not, or is there already, becomes a problem.
    pub(crate) fn put<T>(
        &mut self,
        place: &mut Option<T>,
        leaf: &Leaf<'_>,
        value: Option<T>,
        allowed: &str,
    ) {
        let Leaf {
            of,
            key,
            line,
            text,
        } = leaf;
        match value {
            Some(_) if place.is_some() => self.wrong(*line, format!("{of}{key} is given twice")),
            Some(value) => *place = Some(value),
            None => {
                let text = shown(text);
                self.wrong(
                    *line,
                    format!("{of}{key} cannot be `{text}`; allowed: {allowed}"),
                );
            }
        }
    }

    /// Notes a choice by its name.
    pub(crate) fn choice<T>(&mut self, place: &mut Option<T>, leaf: &Leaf<'_>)
    where
        T: FromStr<Err = ChoiceError>,
    {
        match leaf.text.parse() {
            Ok(choice) => self.put(place, leaf, Some(choice), ""),
            Err(error) => self.put(place, leaf, None, &error.allowed.join(", ")),
        }
    }

    /// Notes that a reader does not know a key.
    pub(crate) fn unknown(&mut self, leaf: &Leaf<'_>, allowed: &str) {
        let (of, key) = (leaf.of, shown(&leaf.key));
        self.wrong(
            leaf.line,
            format!("{of}there is no `{key}`; allowed: {allowed}"),
        );
    }

    /// The table `[settings]`.
    pub(crate) fn settings(&mut self, table: &Table) -> Layer {
        let mut layer = Layer::default();
        for Leaf {
            key, line, text, ..
        } in self.leaves("", table)
        {
            match layer.put(&key, text) {
                Ok(None) => {}
                Ok(Some(_)) => self.wrong(line, format!("{} is given twice", shown(&key))),
                Err(error) => self.wrong(line, error.to_string()),
            }
        }
        layer
    }
}

const TEXTS: &str = "a number, a text, true or false";

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    1 + before.filter(|byte| **byte == b'\n').count()
}

fn toml_table(table: &DeTable<'_>, text: &str) -> Table {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut found = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        found.push(Entry {
            key: key.get_ref().to_string(),
            line: Some(line_of(text, key.span().start)),
            value: toml_value(value.get_ref(), text),
        });
    }
    found
}

fn toml_value(value: &DeValue<'_>, text: &str) -> Node {
    match value {
        DeValue::String(text) => Node::Scalar(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => {
            Node::Scalar(number.as_str().to_owned())
        }
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix())
            .map_or(Node::Other("number"), |number| {
                Node::Scalar(number.to_string())
            }),
        DeValue::Float(number) => Node::Scalar(number.as_str().to_owned()),
        DeValue::Boolean(value) => Node::Scalar(value.to_string()),
        DeValue::Table(table) => Node::Table(toml_table(table, text)),
        DeValue::Array(values) => {
            let values = values.iter();
            Node::Array(
                values
                    .map(|value| toml_value(value.get_ref(), text))
                    .collect(),
            )
        }
        DeValue::Datetime(_) => Node::Other("time"),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonValue)
    }
}

struct JsonValue;

/// Keeps the order of the keys, and keys that are there twice, which a map would not.
impl<'de> Visitor<'de> for JsonValue {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Other("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            values.push(value);
        }
        Ok(Node::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry()? {
            let line = None;
            entries.push(Entry { key, line, value });
        }
        Ok(Node::Table(entries))
    }
}

impl Node {
    /// What it is, for errors.
    const fn kind(&self) -> &'static str {
        match self {
            Self::Scalar(_) => "value",
            Self::Table(_) => "table",
            Self::Array(_) => "array",
            Self::Other(kind) => kind,
        }
    }
}
