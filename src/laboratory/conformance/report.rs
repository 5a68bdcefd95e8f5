//! What a suite found: a table, JSON, JUnit.

use std::fmt::Write as _;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde_json::{Value, json as object};

use super::{Fault, Verdict};

impl Verdict {
    const fn word(&self) -> &'static str {
        match self.fault {
            None => "pass",
            Some(Fault::Broken(_)) => "FAIL",
            Some(Fault::Untested(_)) => "skip",
        }
    }

    fn why(&self) -> Option<&str> {
        match &self.fault {
            Some(Fault::Broken(why) | Fault::Untested(why)) => Some(why),
            None => None,
        }
    }
}

/// A line a case; of those that were not passed why, and the sentence; at the end how many there were.
#[must_use]
pub fn table(verdicts: &[Verdict]) -> String {
    let width = verdicts.iter().map(|verdict| verdict.name.len()).max();
    let width = width.unwrap_or(0);
    let mut text = String::new();
    for verdict in verdicts {
        let (word, name) = (verdict.word(), verdict.name);
        let seconds = verdict.took.as_secs_f64();
        let _ = writeln!(text, "{word}  {name:<width$}  {seconds:>6.2} s");
        if let Some(why) = verdict.why() {
            let _ = writeln!(text, "      {why}");
        }
        if verdict.is_broken() {
            let _ = writeln!(text, "      the document: {}", verdict.sentence);
        }
    }
    let count = |word| verdicts.iter().filter(|it| it.word() == word).count();
    let (passed, failed, skipped) = (count("pass"), count("FAIL"), count("skip"));
    let _ = writeln!(text, "{passed} passed, {failed} failed, {skipped} skipped");
    text
}

/// An object a case.
#[must_use]
pub fn json(verdicts: &[Verdict]) -> Value {
    let case = |verdict: &Verdict| {
        object!({
            "name": verdict.name,
            "sentence": verdict.sentence,
            "verdict": verdict.word().to_lowercase(),
            "why": verdict.why(),
            "seconds": verdict.took.as_secs_f64(),
        })
    };
    verdicts.iter().map(case).collect()
}

/// A JUnit report, as build servers read it; `side` is `agent` or `host`.
///
/// # Errors
/// What the writer says of characters that XML does not take.
pub fn junit(verdicts: &[Verdict], side: &str) -> Result<String, quick_junit::SerializeError> {
    let mut suite = TestSuite::new(format!("memvisor balloon conform --{side}"));
    for verdict in verdicts {
        let mut status = match &verdict.fault {
            None => TestCaseStatus::success(),
            Some(Fault::Broken(_)) => TestCaseStatus::non_success(NonSuccessKind::Failure),
            Some(Fault::Untested(_)) => TestCaseStatus::skipped(),
        };
        if let Some(why) = verdict.why() {
            status.set_message(why);
            status.set_description(format!("the document: {}", verdict.sentence));
        }
        let mut case = TestCase::new(verdict.name, status);
        case.set_time(verdict.took);
        suite.add_test_case(case);
    }
    let mut report = Report::new("balloon protocol");
    report.add_test_suite(suite);
    report.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn verdicts() -> [Verdict; 3] {
        let verdict = |name, fault| Verdict {
            name,
            sentence: "It <must>.",
            fault,
            took: Duration::from_millis(1500),
        };
        [
            verdict("good", None),
            verdict("bad", Some(Fault::Broken("it did <not>".into()))),
            verdict("other", Some(Fault::Untested("no lever".into()))),
        ]
    }

    #[test]
    fn table_has_why_and_the_sentence_of_what_fails() {
        let expected = "pass  good     1.50 s\nFAIL  bad      1.50 s\n      it did <not>\n      \
            the document: It <must>.\nskip  other    1.50 s\n      no lever\n1 passed, 1 failed, 1 skipped\n";
        assert_eq!(table(&verdicts()), expected);
        assert_eq!(json(&verdicts())[1]["verdict"], "fail");
    }

    #[test]
    fn junit_counts_and_escapes() {
        let xml = junit(&verdicts(), "agent").expect("plain text");
        assert!(xml.contains("tests=\"3\""), "{xml}");
        assert!(xml.contains("failures=\"1\""), "{xml}");
        assert!(xml.contains("it did &lt;not"), "{xml}");
        assert!(xml.contains("<skipped"), "{xml}");
    }
}
