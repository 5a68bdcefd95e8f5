//! What a guest says about itself when it ends: one line of JSON on its standard output.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Outcome;
use crate::workload::{self, Latency, Look};

/// The report of one guest.
///
/// Reports of another version can be read: a missing field is zero, and an unknown field is kept in
/// `other`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestReport {
    /// Name of the VM.
    pub name: String,
    /// How long it ran in milliseconds.
    pub duration_ms: u64,
    /// Processor time of its process until its time was over, in milliseconds.
    pub cpu_ms: u64,
    /// The most memory its process had at any time, RAM included.
    pub peak_bytes: u64,
    /// Anonymous memory and page tables of its process when its time was over. RAM counts only for a guest without a
    /// host.
    pub own_bytes: u64,
    /// Pages whose content was compared with what the guest had written.
    pub pages_verified: u64,
    /// Pages that differed; anything but 0 means that memory was corrupted.
    pub mismatches: u64,
    /// Whether a signal ended it before its time.
    pub interrupted: bool,
    /// The report of each workload that it ran.
    pub workloads: Vec<WorkloadReport>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The part of one workload in a guest's report.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkloadReport {
    /// The workload as it was asked for.
    pub workload: String,
    /// Operations it completed. What an operation is depends on the workload.
    pub operations: u64,
    /// Pages it verified.
    pub pages_verified: u64,
    /// Pages that differed.
    pub mismatches: u64,
    /// Seconds it took to fill its memory.
    pub loading_seconds: f64,
    /// How long operations took.
    pub latency: Latency,
    /// For each full second from the start of the guest's workloads until this one was stopped: pages filled plus
    /// operations.
    pub each_second: Vec<u32>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl WorkloadReport {
    fn of(workload: &workload::WorkloadReport) -> Self {
        let mut other = match json!(workload) {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        for told in [
            "name",
            "operations",
            "pages_verified",
            "mismatches",
            "loading_seconds",
            "latency",
            "each_second",
        ] {
            other.remove(told);
        }
        Self {
            workload: workload.name.clone(),
            operations: workload.operations,
            pages_verified: workload.pages_verified,
            mismatches: workload.mismatches,
            loading_seconds: workload.loading_seconds,
            latency: workload.latency,
            each_second: workload.each_second.clone(),
            other,
        }
    }
}

impl fmt::Display for GuestReport {
    /// A line for the guest, then one line for each workload.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interrupted = if self.interrupted {
            ", interrupted"
        } else {
            ""
        };
        writeln!(
            f,
            "{}: ran {:.1} s, {} pages verified, {} corrupt{interrupted}",
            self.name,
            self.duration_ms as f64 / 1000.0,
            self.pages_verified,
            self.mismatches,
        )?;
        for workload in &self.workloads {
            let Latency {
                p50_us,
                p99_us,
                max_us,
                ..
            } = workload.latency;
            writeln!(
                f,
                "  {}: {} operations of {p50_us:.1} us (p99 {p99_us:.1}, longest {max_us:.1}), {} pages \
                 verified, {} corrupt",
                workload.workload,
                workload.operations,
                workload.pages_verified,
                workload.mismatches,
            )?;
        }
        Ok(())
    }
}

impl GuestReport {
    /// The report of the guest `name`.
    #[must_use]
    pub fn new(name: &str, outcome: &Outcome) -> Self {
        let workloads = &outcome.report.workloads;
        let workloads: Vec<_> = workloads.iter().map(WorkloadReport::of).collect();
        Self {
            name: name.to_owned(),
            duration_ms: millis(outcome.ran),
            cpu_ms: millis(outcome.used.cpu),
            peak_bytes: outcome.used.peak_bytes,
            own_bytes: outcome.used.own_bytes,
            pages_verified: workloads.iter().map(|one| one.pages_verified).sum(),
            mismatches: workloads.iter().map(|one| one.mismatches).sum(),
            interrupted: outcome.interrupted,
            workloads,
            other: Map::new(),
        }
    }

    /// Finds the report in what a guest printed: its last line that is a JSON object and no [`GuestProgress`].
    #[must_use]
    pub fn last_in(output: &str) -> Option<Self> {
        output
            .lines()
            .rev()
            .filter(|line| {
                line.trim_start().starts_with('{') && GuestProgress::read(line).is_none()
            })
            .find_map(|line| serde_json::from_str(line).ok())
    }
}

/// What a guest says while it runs: a line of JSON on its standard output.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GuestProgress {
    /// How long it has run in milliseconds.
    pub ran_ms: u64,
    /// Operations that its workloads have completed.
    pub operations: u64,
    /// How long those took that ended since the line before; `None` if none did.
    pub latency: Option<Latency>,
}

/// A line with a [`GuestProgress`], which no report can be taken for.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProgressLine {
    progress: GuestProgress,
}

impl GuestProgress {
    pub(super) fn new(ran: Duration, look: Look) -> Self {
        Self {
            ran_ms: millis(ran),
            operations: look.operations,
            latency: Some(look.latency).filter(|latency| *latency != Latency::default()),
        }
    }

    /// The line, without its end.
    #[must_use]
    pub fn line(&self) -> String {
        let progress = self.clone();
        serde_json::to_string(&ProgressLine { progress }).expect("plain data")
    }

    /// What a line says; `None` if it is another line.
    #[must_use]
    pub fn read(line: &str) -> Option<Self> {
        let read = serde_json::from_str::<ProgressLine>(line).ok()?;
        Some(read.progress)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
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
    fn progress_is_read_back_and_is_no_report() {
        let latency = Latency {
            p50_us: 1.5,
            ..Latency::default()
        };
        let operations = 7;
        let look = Look {
            operations,
            latency,
        };
        let progress = GuestProgress::new(Duration::from_secs(1), look);
        let line = progress.line();
        assert_eq!(GuestProgress::read(&line), Some(progress));
        assert_eq!(GuestReport::last_in(&line), None);
        let killed = format!("{{\"name\":\"vm1\"}}\n{line}\n{}", &line[..9]);
        let report = GuestReport::last_in(&killed).expect("before the lines");
        assert_eq!(report.name, "vm1");
        assert_eq!(GuestProgress::read("{\"name\":\"vm1\"}"), None);
        let none = Latency::default();
        let idle = Look {
            operations,
            latency: none,
        };
        assert_eq!(GuestProgress::new(Duration::ZERO, idle).latency, None);
    }

    #[test]
    fn report_absent_or_of_the_wrong_type_is_none() {
        for output in ["", "hello", "[1]", "{\"pages_verified\":\"many\"}", "{"] {
            assert_eq!(GuestReport::last_in(output), None, "{output}");
        }
    }
}
