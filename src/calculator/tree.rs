//! TOML or JSON as one kind of tree, whose values know their lines as far as the parser tells them.

use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::de::{DeTable, DeValue};

use super::Problem;

/// The entries of a table, in the order of the file.
pub(super) type Table = Vec<Entry>;

/// A value with its name.
#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    /// The line of the key. The JSON parser tells none.
    pub line: Option<usize>,
    pub value: Node,
}

/// A value.
#[derive(Debug)]
pub(super) enum Node {
    /// A text, a number, true or false, as it is written.
    Scalar(String),
    Table(Table),
    List(Vec<Self>),
    /// A value of any other kind, by the name of that kind.
    Other(&'static str),
}

/// The tables of a TOML text.
pub(super) fn toml(text: &str) -> Result<Table, Vec<Problem>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(toml_table(root.get_ref(), text));
    }
    let problem = |error: toml::de::Error| Problem {
        line: error.span().map(|span| line_of(text, span.start)),
        text: error.message().to_owned(),
    };
    Err(errors.into_iter().map(problem).collect())
}

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
            Node::List(
                values
                    .map(|value| toml_value(value.get_ref(), text))
                    .collect(),
            )
        }
        DeValue::Datetime(_) => Node::Other("time"),
    }
}

/// The object of a JSON text.
pub(super) fn json(text: &str) -> Result<Table, Vec<Problem>> {
    let problem = |line, text: &str| {
        let text = text.to_owned();
        vec![Problem { line, text }]
    };
    match serde_json::from_str(text) {
        Ok(Node::Table(table)) => Ok(table),
        Ok(_) => Err(problem(None, "this is no object: allowed: {\"host\": ...}")),
        Err(error) => {
            let line = (error.line() > 0).then(|| error.line());
            Err(problem(line, &error.to_string()))
        }
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
        Ok(Node::List(values))
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
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Scalar(_) => "value",
            Self::Table(_) => "table",
            Self::List(_) => "list",
            Self::Other(kind) => kind,
        }
    }
}

/// The values of a table and of the tables in it. Tables in tables are read as names with dots.
pub(super) fn leaves(table: &Table) -> Vec<(String, &Entry)> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), table)];
    while let Some((prefix, table)) = open.pop() {
        for entry in table {
            let name = format!("{prefix}{}", entry.key);
            match &entry.value {
                Node::Table(inner) => open.push((format!("{name}."), inner)),
                _ => found.push((name, entry)),
            }
        }
    }
    found
}
