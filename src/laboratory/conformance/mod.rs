//! A suite that an agent or a host can be held to: one case for each rule of docs/balloon-protocol.md.
//!
//! A case is the sentence of the document that it tests, and a small play of the other side. So whoever fails one can
//! read what was asked of them, and a rule that is changed in the document takes its case with it: a test holds each
//! sentence to the document.

/// Declares the rules for one side; an entry is `name check: sentence`.
macro_rules! rules {
    ($trial:ty: $($name:literal $check:path: $sentence:expr;)*) => {
        /// The rules.
        pub const RULES: &[Rule<$trial>] = &[$(Rule {
            name: $name,
            sentence: $sentence,
            check: $check,
        }),*];
    };
}

pub mod agents;
pub mod hosts;
mod report;

use std::borrow::Borrow;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use memvisor_wire::DecodeError;

pub use report::{json, junit, table};

/// How long the other side may take for anything that it has to do.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A rule of the document, and how it is tested on a `T`.
pub struct Rule<T> {
    /// A short name.
    pub name: &'static str,
    /// The sentence of the document, or a part of it.
    pub sentence: &'static str,
    check: fn(&T) -> Result<(), Fault>,
}

impl<T> fmt::Debug for Rule<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why a case was not passed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The rule is broken.
    Broken(String),
    /// It cannot be tested here: what is missing.
    Untested(String),
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self::Broken(what)
    }
}

impl From<&str> for Fault {
    fn from(what: &str) -> Self {
        Self::Broken(what.to_owned())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Broken(format!("socket: {error}"))
    }
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Self {
        Self::Broken(format!("it said what is no message: {error}"))
    }
}

/// What became of a case.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The name of the rule.
    pub name: &'static str,
    /// The sentence.
    pub sentence: &'static str,
    /// `None` if it was passed.
    pub fault: Option<Fault>,
    /// How long it took.
    pub took: Duration,
}

impl Verdict {
    /// Whether the rule is broken.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        matches!(self.fault, Some(Fault::Broken(_)))
    }
}

/// Tests a rule.
fn judge<T>(rule: &Rule<T>, trial: Result<impl Borrow<T>, Fault>) -> Verdict {
    let began = Instant::now();
    let passed = trial.and_then(|trial| (rule.check)(trial.borrow()));
    Verdict {
        name: rule.name,
        sentence: rule.sentence,
        fault: passed.err(),
        took: began.elapsed(),
    }
}

/// The rules whose names are `only`; all if that is empty.
///
/// # Errors
/// That there is no such rule.
fn chosen<T>(rules: &'static [Rule<T>], only: &[String]) -> Result<Vec<&'static Rule<T>>, String> {
    if let Some(name) = only
        .iter()
        .find(|name| rules.iter().all(|rule| rule.name != *name))
    {
        let all: Vec<_> = rules.iter().map(|rule| rule.name).collect();
        return Err(format!("`{name}` is no case; there are {}", all.join(", ")));
    }
    let is_wanted = |rule: &&Rule<T>| only.is_empty() || only.iter().any(|name| name == rule.name);
    Ok(rules.iter().filter(is_wanted).collect())
}

/// An error unless `holds`.
fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), Fault> {
    if holds {
        Ok(())
    } else {
        Err(Fault::Broken(what()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The document without its line breaks.
    fn document() -> String {
        let text = include_str!("../../../docs/balloon-protocol.md");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_sentence_is_in_the_document_and_each_name_is_its_own() {
        let document = document();
        let of_agents = agents::RULES.iter().map(|rule| (rule.name, rule.sentence));
        let of_hosts = hosts::RULES.iter().map(|rule| (rule.name, rule.sentence));
        let mut names = BTreeSet::new();
        for (name, sentence) in of_agents.chain(of_hosts) {
            assert!(
                document.contains(sentence),
                "{name}: not in the document: {sentence}"
            );
            assert!(names.insert(name), "{name} is there twice");
        }
        assert!(names.len() > 50, "only {}", names.len());
    }
}
