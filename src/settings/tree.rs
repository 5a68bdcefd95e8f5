//! Files that people write: TOML or JSON, read by serde, and all that is wrong with one.
//!
//! Whoever wrote a file wants to see at once all that is wrong with it, each thing with its line. Types that derive
//! serde's `Deserialize` end at the first fault. So a file is parsed into a tree, and the types are read from the
//! tree: what serde refuses is noted, taken out of the tree, and the rest is read again. What only a reader can judge,
//! such as two values that contradict each other, it adds by [`Reading::wrong`]. A file with a [`Problem`] is not used.
//!
//! serde's JSON has no lines, and forgets the order of keys. But a JSON text is TOML except for its colons (and for
//! escapes that no name or value of ours needs, `\/` and surrogates), so it is read as TOML.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::{fmt, mem};

use serde::de::{DeserializeOwned, IgnoredAny};
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Deserializer};

use super::error::nearest;
use super::keyed::PoolTable;
use super::layers::Layer;
use super::resource_pool::{check_pool_name, tree};
use super::value::{Scalar, shown};

/// The most bytes of a file: a thousand VMs with all settings take a quarter of it.
const FILE_MAX: u64 = 1 << 20;
/// The most problems that are looked for: for each, the file is read once more.
const PROBLEMS_MAX: usize = 100;

/// A table of texts. Keys have the dots that tables in it were: `[settings.Mem] IdleTax = 50` is
/// `[settings] "Mem.IdleTax" = 50`.
pub(crate) type Keys = BTreeMap<String, Spanned<Scalar>>;

/// The text of a file.
///
/// # Errors
/// It cannot be read, or is longer than any that makes sense.
pub(crate) fn text_of(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = File::open(path)?;
    file.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        return Err(io::Error::other(format!("longer than {FILE_MAX} bytes")));
    }
    Ok(text)
}

/// One thing that is wrong in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The line, from 1 on; `None` for what is missing.
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
#[derive(Debug)]
pub(crate) struct Reading {
    text: String,
    pub problems: Vec<Problem>,
}

impl Reading {
    /// What a TOML text says, as far as it can be read. `many` are the tables of which there are many: `[many.NAME]`,
    /// or `[[many]]`, where the names are numbers.
    pub(crate) fn toml<T: DeserializeOwned + Default>(text: &str, many: &[&str]) -> (Self, T) {
        let (reading, root) = Self::tree(text);
        reading.of(root, many)
    }

    /// The tree of a TOML text, as far as it can be parsed, for whoever changes it before types are read from it.
    pub(crate) fn tree(text: &str) -> (Self, DeTable<'_>) {
        let (root, errors) = DeTable::parse_recoverable(text);
        (Self::new(text, &errors), root.into_inner())
    }

    /// As [`Reading::toml`], of a JSON text.
    pub(crate) fn json<T: DeserializeOwned + Default>(text: &str, many: &[&str]) -> (Self, T) {
        let text = match toml_of_json(text) {
            Ok(text) => text,
            Err(problem) => {
                let (text, problems) = (text.to_owned(), vec![problem]);
                return (Self { text, problems }, T::default());
            }
        };
        let (mut root, errors) = DeTable::parse_recoverable(&text);
        let root = match root.get_mut().remove(OBJECT).map(Spanned::into_inner) {
            Some(DeValue::Table(object)) => object,
            _ => DeTable::new(),
        };
        Self::new(&text, &errors).of(root, many)
    }

    fn new(text: &str, errors: &[toml::de::Error]) -> Self {
        let (text, problems) = (text.to_owned(), Vec::new());
        let mut reading = Self { text, problems };
        for error in errors {
            reading.wrong(error.span(), error.message());
        }
        reading
    }

    fn of<T: DeserializeOwned + Default>(
        mut self,
        mut root: DeTable<'_>,
        many: &[&str],
    ) -> (Self, T) {
        for (key, value) in root.iter_mut() {
            let value = value.get_mut();
            if !many.contains(&key.get_ref().as_ref()) {
                self.flatten(value);
                continue;
            }
            number(value);
            if let DeValue::Table(tables) = value {
                for (_, table) in tables.iter_mut() {
                    self.flatten(table.get_mut());
                }
            }
        }
        let read = self.typed(root);
        (self, read)
    }

    /// Makes [`Keys`] of a table that has tables in it.
    pub(crate) fn flatten(&mut self, value: &mut DeValue<'_>) {
        if let DeValue::Table(flat) = value {
            let table = mem::take(flat);
            self.take_in("", table, flat);
        }
    }

    fn take_in<'a>(&mut self, prefix: &str, table: DeTable<'a>, flat: &mut DeTable<'a>) {
        for (key, value) in table {
            let (at, key) = (key.span(), format!("{prefix}{}", key.get_ref()));
            let place = value.span();
            match value.into_inner() {
                DeValue::Table(inner) => self.take_in(&format!("{key}."), inner, flat),
                _ if flat.contains_key(key.as_str()) => {
                    self.wrong(at, &format!("{} is given twice", shown(&key)));
                }
                value => {
                    flat.insert(Spanned::new(at, key.into()), Spanned::new(place, value));
                }
            }
        }
    }

    /// Reads a tree; what cannot be read is noted and left out.
    pub(crate) fn typed<T: DeserializeOwned + Default>(&mut self, mut root: DeTable<'_>) -> T {
        let mut left_out: Vec<String> = Vec::new();
        while self.problems.len() < PROBLEMS_MAX {
            let tree = Deserializer::from(Spanned::new(0..0, root.clone()));
            let error = match serde_path_to_error::deserialize(tree) {
                Ok(read) => return read,
                Err(error) => error,
            };
            // To serde, a `Spanned` value is a struct with the value in it.
            let path = error.path().iter().map(ToString::to_string);
            let path: Vec<_> = path.filter(|key| !key.starts_with("$__")).collect();
            let name = path.join(".");
            let (place, message) = (error.inner().span(), error.inner().message());
            let lacks = message.strip_prefix("missing field `");
            let lacks = lacks.map(|key| format!("{name}.{}", key.trim_end_matches('`')));
            // What a table lacks because it was left out is no other problem.
            if !lacks.is_some_and(|key| left_out.contains(&key)) {
                let message = with_nearest(message);
                self.wrong(place, &format!("{}: {message}", shown(&name)));
            }
            if !remove(&mut root, &path) {
                break;
            }
            left_out.push(name);
        }
        T::default()
    }

    /// Notes what is wrong at a place of the text, or with no place.
    pub(crate) fn wrong(&mut self, at: impl Into<Option<Range<usize>>>, text: &str) {
        let line = at.into().map(|at| self.line(&at));
        // serde quotes keys and values as they are.
        let text = text.replace(char::is_control, " ");
        self.problems.push(Problem { line, text });
    }

    /// The line where a place of the text begins.
    pub(crate) fn line(&self, at: &Range<usize>) -> usize {
        let before = self.text.bytes().take(at.start);
        1 + before.filter(|byte| *byte == b'\n').count()
    }

    /// The tables of resource pools, which must be whole trees.
    pub(crate) fn pools(
        &mut self,
        tables: &BTreeMap<String, Spanned<Keys>>,
    ) -> BTreeMap<String, PoolTable> {
        let mut pools = BTreeMap::new();
        for (name, table) in tables {
            if let Err(error) = check_pool_name(name) {
                self.wrong(table.span(), &error.in_full());
            }
            let mut found = PoolTable::at(self.line(&table.span()));
            for (key, value) in table.get_ref() {
                let line = self.line(&value.span());
                match found.patch.put(key, &value.to_string()) {
                    Ok(key) => found.note(key, line),
                    Err(error) => {
                        let text = format!("resource pool {}: {}", shown(name), error.in_full());
                        self.wrong(value.span(), &text);
                    }
                }
            }
            pools.insert(name.clone(), found);
        }
        let patch = |(name, table): (&String, &PoolTable)| (name.clone(), table.patch.clone());
        if let Err((name, error)) = tree(&pools.iter().map(patch).collect()) {
            let table = pools.get(&name);
            let line = table.map(|table| table.line_of(error.key().unwrap_or_default()));
            let text = format!("resource pool {}: {}", shown(&name), error.in_full());
            self.problems.push(Problem { line, text });
        }
        pools
    }

    /// The table `[settings]`.
    pub(crate) fn settings(&mut self, table: &Keys) -> Layer {
        let mut layer = Layer::default();
        for (key, value) in table {
            match layer.put(key, &value.to_string()) {
                Ok(None) => {}
                Ok(Some(_)) => self.wrong(value.span(), &format!("{} is given twice", shown(key))),
                Err(error) => self.wrong(value.span(), &error.to_string()),
            }
        }
        layer
    }
}

/// Makes a table of a list, whose keys are the numbers from 1 on: `[[many]]` is `[many.1]`, `[many.2]` and so on.
pub(crate) fn number(value: &mut DeValue<'_>) {
    if let DeValue::Array(list) = value {
        let list = mem::replace(list, DeArray::new()).into_iter();
        let numbered = (1..).zip(list).map(|(number, table): (u32, _)| {
            (Spanned::new(table.span(), number.to_string().into()), table)
        });
        *value = DeValue::Table(numbered.collect());
    }
}

/// What serde says of a field or a variant that it does not know, with those that may have been meant.
fn with_nearest(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted.next().filter(|_| message.starts_with("unknown "));
    let near = unknown
        .map(|name| nearest(name, quoted))
        .unwrap_or_default();
    match message.split_once(", expected ") {
        Some((wrong, expected)) if !near.is_empty() => {
            format!("{wrong}; near: {}; expected {expected}", near.join(", "))
        }
        _ => message.to_owned(),
    }
}

/// Takes out of a table what is at the end of a path, or the last table or list on that path.
fn remove(table: &mut DeTable<'_>, path: &[String]) -> bool {
    let Some((key, path)) = path.split_first() else {
        return false;
    };
    let within = match table.get_mut(key.as_str()).map(Spanned::get_mut) {
        Some(DeValue::Table(inner)) => remove(inner, path),
        _ => false,
    };
    within || table.remove(key.as_str()).is_some()
}

/// The key under which [`toml_of_json`] puts the object of a JSON text.
const OBJECT: &str = "object";

/// A JSON text as TOML with the same lines: objects are inline tables but for their colons.
fn toml_of_json(json: &str) -> Result<String, Problem> {
    let wrong = |line, text: String| Problem {
        line: Some(line),
        text,
    };
    serde_json::from_str::<IgnoredAny>(json)
        .map_err(|error| wrong(error.line(), error.to_string()))?;
    if !json.trim_start().starts_with('{') {
        let text = "this is no object; allowed: {\"host\": ...}";
        return Err(wrong(1, text.to_owned()));
    }
    let (mut toml, mut is_text, mut is_escaped) = (String::with_capacity(json.len()), false, false);
    for char in json.chars() {
        is_text ^= char == '"' && !is_escaped;
        is_escaped = char == '\\' && !is_escaped;
        match char {
            ':' if !is_text => toml.push('='),
            // Of all that JSON has outside of texts, only `null` begins so.
            'n' if !is_text => {
                let line = 1 + toml.matches('\n').count();
                let text = "null is no value; leave out what is not known";
                return Err(wrong(line, text.to_owned()));
            }
            _ => toml.push(char),
        }
    }
    Ok(toml.replacen('{', &format!("{OBJECT} = {{"), 1))
}
