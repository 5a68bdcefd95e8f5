//! What a guest says about itself when it ends: one line of JSON on its standard output.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The report of one guest.
///
/// Fields that are missing are zero, so that guests of another version can be read; fields that are
/// unknown are kept in `other`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestReport {
    /// Name of the VM.
    pub name: String,
    /// How long it ran in milliseconds.
    pub duration_ms: u64,
    /// Pages whose content was compared with what the guest had written.
    pub pages_verified: u64,
    /// Pages that differed; anything but 0 means that memory was corrupted.
    pub mismatches: u64,
    /// Whether it was told to end before its time.
    pub interrupted: bool,
    /// Each workload it ran.
    pub workloads: Vec<WorkloadReport>,
    /// Whatever else it said.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The part of one workload in a guest's report.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkloadReport {
    /// The workload as it was asked for.
    pub workload: String,
    /// Operations it completed; what one is, the workload says.
    pub operations: u64,
    /// Pages it verified.
    pub pages_verified: u64,
    /// Pages that differed.
    pub mismatches: u64,
    /// Whatever else it said.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl GuestReport {
    /// Finds the report in what a guest printed: its last line that is a JSON object.
    #[must_use]
    pub fn last_in(output: &str) -> Option<Self> {
        output
            .lines()
            .rev()
            .filter(|line| line.trim_start().starts_with('{'))
            .find_map(|line| serde_json::from_str(line).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_last_line_wins_and_unknown_fields_are_kept() {
        let output = "starting\n{\"name\":\"old\"}\n\
            {\"name\":\"vm1\",\"pages_verified\":7,\"ops\":{\"get\":3},\"workloads\":[{\"workload\":\"kv\"}]}\n\
            bye\n";
        let report = GuestReport::last_in(output).expect("a report");
        assert_eq!((report.name.as_str(), report.pages_verified), ("vm1", 7));
        assert_eq!(report.mismatches, 0);
        assert_eq!(report.other["ops"]["get"], 3);
        assert_eq!(report.workloads[0].workload, "kv");
    }

    #[test]
    fn report_absent_or_of_the_wrong_type_is_none() {
        for output in ["", "hello", "[1]", "{\"pages_verified\":\"many\"}", "{"] {
            assert_eq!(GuestReport::last_in(output), None, "{output}");
        }
    }
}
