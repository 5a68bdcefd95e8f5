//! What a host did over time: the model behind reports, comparisons and the live page.
//!
//! A status is a nest of fields at one moment; a chart wants one number over time. If every sample were kept as it comes,
//! ten minutes of eight VMs would be tens of megabytes of repeated keys. So a [`Recording`] is columns: the moments once,
//! and for the host and each VM one column a [`Series`] with a value, or none, for each moment. VMs
//! come and go, and so their columns begin or end with gaps.
//!
//! What guests say of their work is no part of the status. Whoever knows it adds it to a sample under a name of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::telemetry::{HostStatus, Series};

/// The numbers of a host and its VMs at equal moments.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Recording {
    /// When each sample was taken, in milliseconds since the recording began; they ascend.
    pub at_ms: Vec<u64>,
    /// The host's columns by the names of their series.
    pub host: BTreeMap<String, Column>,
    /// Each VM's columns. A VM that is powered on again under its name goes on in the same columns.
    pub vms: BTreeMap<String, BTreeMap<String, Column>>,
    /// What was changed, and when, in the order of time.
    pub marks: Vec<Mark>,
}

/// A recording as it is read: its columns may be of any length.
#[derive(Deserialize)]
struct Unchecked {
    at_ms: Vec<u64>,
    host: BTreeMap<String, Column>,
    vms: BTreeMap<String, BTreeMap<String, Column>>,
    marks: Vec<Mark>,
}

/// A column that is not as long as the recording has moments.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{series}` of {of} has {values} values, for {moments} moments")]
struct Uneven {
    series: String,
    of: String,
    values: usize,
    moments: usize,
}

impl TryFrom<Unchecked> for Recording {
    type Error = Uneven;

    fn try_from(read: Unchecked) -> Result<Self, Uneven> {
        let Unchecked {
            at_ms,
            host,
            vms,
            marks,
        } = read;
        let of_vms = vms.iter().map(|(vm, columns)| (vm.as_str(), columns));
        for (of, columns) in of_vms.chain([("the host", &host)]) {
            let uneven = columns.iter().find(|(_, it)| it.len() != at_ms.len());
            if let Some((series, column)) = uneven {
                return Err(Uneven {
                    series: series.clone(),
                    of: of.to_owned(),
                    values: column.len(),
                    moments: at_ms.len(),
                });
            }
        }
        Ok(Self {
            at_ms,
            host,
            vms,
            marks,
        })
    }
}

/// A remark at a moment: a setting changed, a guest started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// Milliseconds since the recording began.
    pub at_ms: u64,
    /// What happened, as a few words.
    pub text: String,
}

/// The values of one series, one for each moment; `None` where there was none.
pub type Column = Vec<Option<f64>>;

/// What a VM's guest says of its work, by names like `guest_operations_total`.
pub type Said = BTreeMap<String, f64>;

impl Recording {
    /// Adds a sample. `said` is by the names of VMs.
    ///
    /// # Panics
    /// If `at_ms` is earlier than the latest sample.
    pub fn push(&mut self, at_ms: u64, status: &HostStatus, said: &BTreeMap<String, Said>) {
        assert!(self.at_ms.last().is_none_or(|last| *last <= at_ms));
        let before = self.at_ms.len();
        self.at_ms.push(at_ms);
        let json = serde_json::to_value(status).expect("plain data with keys that are text");
        for series in Series::of_host() {
            put(&mut self.host, series.name(), before, series.read(&json));
        }
        for (vm, json) in status
            .vms
            .iter()
            .zip(json["vms"].as_array().into_iter().flatten())
        {
            let columns = self.vms.entry(vm.name.clone()).or_default();
            for series in Series::of_vm() {
                put(columns, series.name(), before, series.read(json));
            }
            for (name, value) in said.get(&vm.name).into_iter().flatten() {
                put(columns, name.clone(), before, Some(*value));
            }
        }
        // Of VMs that are gone, and of numbers that were not said this time.
        for columns in self.vms.values_mut().chain([&mut self.host]) {
            for column in columns.values_mut() {
                column.resize(before + 1, None);
            }
        }
    }

    /// Adds a remark at a moment that is not before the latest one.
    pub fn mark(&mut self, at_ms: u64, text: String) {
        self.marks.push(Mark { at_ms, text });
    }
}

/// Puts a value into a column, after `before` moments.
fn put(columns: &mut BTreeMap<String, Column>, name: String, before: usize, value: Option<f64>) {
    let column = columns.entry(name).or_default();
    column.resize(before, None);
    column.push(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::fixture;

    #[test]
    fn columns_have_a_value_or_a_gap_for_each_moment() {
        let both = fixture::host();
        let mut alone = fixture::host();
        let web = alone.vms.remove(0).name;
        alone.vms[0].blocked = false;
        let said = |operations| {
            let said = Said::from([("guest_operations_total".to_owned(), operations)]);
            BTreeMap::from([(web.clone(), said)])
        };
        let mut recording = Recording::default();
        recording.push(0, &alone, &BTreeMap::new());
        recording.push(1000, &both, &said(5.0));
        recording.push(2000, &both, &BTreeMap::new());
        recording.push(3000, &alone, &BTreeMap::new());
        assert_eq!(recording.at_ms, [0, 1000, 2000, 3000]);
        let of = |vm: &str, name: &str| recording.vms[vm][name].clone();
        let budget = Some(268_435_456.0);
        assert_eq!(recording.host["memvisor_host_budget_bytes"], [budget; 4]);
        let shares = Some(both.vms[0].allocation.shares as f64);
        assert_eq!(of(&web, "memvisor_vm_shares"), [None, shares, shares, None]);
        let operations = of(&web, "guest_operations_total");
        assert_eq!(operations, [None, Some(5.0), None, None]);
        let blocked = of(&both.vms[1].name, "memvisor_vm_blocked");
        assert_eq!(blocked, [0.0, 1.0, 1.0, 0.0].map(Some));
        let json = serde_json::to_string(&recording).expect("plain data");
        let read: Recording = serde_json::from_str(&json).expect("what was written");
        assert_eq!(read, recording);
    }

    #[test]
    fn column_of_another_length_is_refused_by_its_name() {
        let read = |kv: &str| {
            let host = r#""at_ms": [0, 100], "host": {"free": [1.0, null]}, "marks": []"#;
            let text = format!(r#"{{{host}, "vms": {{"kv": {{"ops": {kv}}}}}}}"#);
            serde_json::from_str::<Recording>(&text)
        };
        assert!(read("[null, 5.0]").is_ok());
        for (kv, values) in [("[]", 0), ("[1.0]", 1), ("[1.0, 2.0, 3.0]", 3)] {
            let error = read(kv).expect_err("uneven").to_string();
            let expected = format!("`ops` of kv has {values} values, for 2 moments");
            assert!(error.contains(&expected), "{error}");
        }
    }
}
