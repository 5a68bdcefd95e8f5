//! Workloads that follow each other, as text: `boot; kv,size=64M,for=30s; idle`.

use std::fmt;
use std::str::FromStr;

use super::{SpecError, WorkloadSpec};

/// What stands between two workloads.
const THEN: char = ';';

/// One or more workloads, each of which begins when the one before it has ended and has freed its memory.
#[derive(Clone, Debug)]
pub struct Sequence(Vec<WorkloadSpec>);

impl Sequence {
    /// The workloads in their order; there is at least one.
    #[must_use]
    pub fn workloads(&self) -> &[WorkloadSpec] {
        &self.0
    }

    /// Whether none of the workloads makes operations.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.iter().all(WorkloadSpec::is_idle)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, workload) in self.0.iter().enumerate() {
            if number > 0 {
                write!(f, "{THEN} ")?;
            }
            write!(f, "{workload}")?;
        }
        Ok(())
    }
}

impl FromStr for Sequence {
    type Err = SpecError;

    /// Reads workloads with `;` between them. Each but the last must end.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let workloads = text.split(THEN).map(str::parse);
        let workloads: Vec<WorkloadSpec> = workloads.collect::<Result<_, _>>()?;
        let (_, before) = workloads.split_last().expect("a split yields a part");
        match before.iter().find(|workload| !workload.ends()) {
            Some(endless) => Err(SpecError::Endless(endless.to_string())),
            None => Ok(Self(workloads)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_is_shown_as_it_was_written() {
        for text in [
            "kv",
            "kv,for=3s",
            "boot; kv,size=1M,for=30s; idle",
            "idle,for=5s; files:/usr/lib,for=1h; boot",
        ] {
            let sequence: Sequence = text.parse().expect(text);
            assert_eq!(sequence.to_string(), text);
            let close: Sequence = text.replace("; ", ";").parse().expect(text);
            assert_eq!(close.to_string(), text);
        }
    }

    #[test]
    fn sequence_that_is_wrong_is_refused_by_name_with_what_is_allowed() {
        for (text, wrong, allowed) in [
            ("kv; idle", "`kv`", "give it for=TIME"),
            ("boot; kv,size=1M; boot", "`kv,size=1M`", "give it for=TIME"),
            ("boot;", "``", "toucher, kv"),
            ("; kv", "``", "toucher, kv"),
            ("kv,for=30s; kvs", "`kvs`", "toucher, kv"),
            ("kv,for=soon; idle", "`soon`", "such as 30s"),
            ("kv,for=0s; idle", "`0s`", "such as 30s"),
            ("kv,for=1s,for=2s", "`for`", "twice"),
            ("files:/usr;idle", "`files:/usr`", "give it for=TIME"),
        ] {
            let error = text.parse::<Sequence>().expect_err(text).to_string();
            assert!(
                error.contains(wrong) && error.contains(allowed),
                "{text}: {error}"
            );
        }
    }
}
