//! What of a run reaches the disk while it runs.
//!
//! Whoever interrupts an experiment after an hour, or whose machine loses power, wants the hour. So each sample is a line
//! of CSV that is written at once, and JSON, which needs its end, is made at the end.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::said::{OPERATIONS, P50, P99};
use crate::recording::{Column, Recording};
use crate::telemetry::{HostStatus, Series};

/// A file of results that cannot be written.
#[derive(Debug, Error)]
#[error("cannot write `{}`", path.display())]
pub struct StoreError {
    /// The file or directory.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

impl StoreError {
    /// An error of this file.
    pub(super) fn of(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { path, source }
    }
}

/// Writes a file, whole or not at all.
pub(super) fn put(path: &Path, text: &[u8]) -> Result<(), StoreError> {
    let next = path.with_added_extension("next");
    let put = fs::write(&next, text).and_then(|()| fs::rename(&next, path));
    put.map_err(|error| {
        // An error is ignored: what is left is a file that nobody reads.
        let _ = fs::remove_file(&next);
        StoreError::of(path)(error)
    })
}

/// The samples of one run.
#[derive(Debug)]
pub(super) struct Store {
    host: Csv,
    vms: Csv,
    json: PathBuf,
}

impl Store {
    /// Makes the files in `dir`.
    pub(super) fn create(dir: &Path) -> Result<Self, StoreError> {
        let names = |of: &mut dyn Iterator<Item = Series>| of.map(|series| series.name()).collect();
        let host: Vec<String> = names(&mut Series::of_host());
        let mut vms: Vec<String> = names(&mut Series::of_vm());
        vms.extend([OPERATIONS, P50, P99].map(str::to_owned));
        Ok(Self {
            host: Csv::create(dir.join("host.csv"), &["at_ms"], host)?,
            vms: Csv::create(dir.join("vms.csv"), &["at_ms", "vm"], vms)?,
            json: dir.join("samples.json"),
        })
    }

    /// Writes the latest sample of a recording, which is that of `status`.
    pub(super) fn add(
        &mut self,
        recording: &Recording,
        status: &HostStatus,
    ) -> Result<(), StoreError> {
        let at = recording.at_ms.last().copied().unwrap_or_default();
        let at = at.to_string();
        let of_host = |name: &String| recording.host.get(name);
        self.host.row(std::slice::from_ref(&at), of_host)?;
        let mut rows = String::new();
        for vm in &status.vms {
            let columns = recording.vms.get(&vm.name);
            let first = [at.clone(), vm.name.clone()];
            rows += &self.vms.text(&first, |name| columns?.get(name));
        }
        self.vms.write(&rows)
    }

    /// Writes the whole recording as JSON.
    pub(super) fn finish(&self, recording: &Recording) -> Result<(), StoreError> {
        let text = serde_json::to_vec(recording).expect("plain data with keys that are text");
        put(&self.json, &text)
    }
}

/// A table that grows line by line.
#[derive(Debug)]
struct Csv {
    path: PathBuf,
    file: File,
    /// The names of the series.
    names: Vec<String>,
}

impl Csv {
    fn create(path: PathBuf, first: &[&str], names: Vec<String>) -> Result<Self, StoreError> {
        let file = File::create_new(&path).map_err(StoreError::of(&path))?;
        let mut csv = Self { path, file, names };
        let first = first.iter().map(|name| (*name).to_owned());
        // A name with a label has quotes in it, which are doubled in a quoted cell.
        let names = csv.names.iter().map(|name| match name.contains('"') {
            true => format!("\"{}\"", name.replace('"', "\"\"")),
            false => name.clone(),
        });
        let head: Vec<String> = first.chain(names).collect();
        csv.write(&(head.join(",") + "\n"))?;
        Ok(csv)
    }

    /// A line: the first cells, then the latest value of each column.
    fn text<'a>(&self, first: &[String], column: impl Fn(&String) -> Option<&'a Column>) -> String {
        let mut line = first.join(",");
        for name in &self.names {
            line.push(',');
            if let Some(value) = column(name).and_then(|column| *column.last()?) {
                line += &value.to_string();
            }
        }
        line.push('\n');
        line
    }

    fn row<'a>(
        &mut self,
        first: &[String],
        column: impl Fn(&String) -> Option<&'a Column>,
    ) -> Result<(), StoreError> {
        let line = self.text(first, column);
        self.write(&line)
    }

    fn write(&mut self, text: &str) -> Result<(), StoreError> {
        let written = self.file.write_all(text.as_bytes());
        written.map_err(StoreError::of(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::said::said;
    use super::*;
    use crate::telemetry::fixture;

    #[test]
    fn each_sample_is_on_the_disk_at_once_and_all_are_in_the_json() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut store = Store::create(dir.path()).expect("room");
        let mut recording = Recording::default();
        let status = fixture::host();
        let web = status.vms[0].name.clone();
        let progress = memvisor_guest_agent::guest::GuestProgress {
            ran_ms: 1,
            operations: 7,
            latency: None,
        };
        recording.push(
            1000,
            &status,
            &BTreeMap::from([(web.clone(), said(&progress))]),
        );
        store.add(&recording, &status).expect("room");
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("there");
        let vms = read("vms.csv");
        let lines: Vec<&str> = vms.lines().collect();
        assert_eq!(lines.len(), 1 + status.vms.len());
        assert!(
            lines[0].starts_with("at_ms,vm,memvisor_vm_"),
            "{}",
            lines[0]
        );
        assert!(lines[0].contains("\"memvisor_vm_memory_bytes{home=\"\"resident\"\"}\""));
        assert!(
            lines[1].starts_with(&format!("1000,{web},")),
            "{}",
            lines[1]
        );
        assert!(lines[1].ends_with(",7,,"), "{}", lines[1]);
        let columns = |line: &str| line.matches(',').count();
        assert!(lines.iter().all(|line| columns(line) == columns(lines[0])));
        assert_eq!(read("host.csv").lines().count(), 2);
        store.finish(&recording).expect("room");
        let back: Recording = serde_json::from_str(&read("samples.json")).expect("JSON");
        assert_eq!(back, recording);
    }

    #[test]
    fn file_that_cannot_be_written_is_named() {
        // A device that is always full.
        let mut csv = Csv {
            path: "results/host.csv".into(),
            file: File::options()
                .write(true)
                .open("/dev/full")
                .expect("there"),
            names: Vec::new(),
        };
        let error = csv.write("1\n").expect_err("no room");
        assert_eq!(error.to_string(), "cannot write `results/host.csv`");
        assert_eq!(error.source.kind(), io::ErrorKind::StorageFull);
    }
}
