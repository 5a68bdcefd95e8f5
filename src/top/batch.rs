//! Recordings in the form of esxtop's batch mode: CSV as perfmon writes it, a line for each sample.
//!
//! The first column is the time, as UTC, and each other one a counter: `\\HOST\Memory\COUNTER` of the host,
//! `\\HOST\Group Memory(ID:NAME)\COUNTER` of a VM. Programs that draw such files take numbers alone, so words are
//! written as their places (see [`Unit::Word`](super::fields::Unit::Word)), and numbers in full, so that what is read back
//! is what was written. A number that there is not is an empty cell.
//!
//! The first line fixes the columns, so it fixes the VMs: a VM that ends leaves its cells empty, and one that starts
//! later has none. Writing another first line in the middle would serve only readers that expect it.

use std::io::{self, Write};

use super::fields::{HOST, VM};
use super::sample::Sample;

/// The first column's heading.
pub(super) const TIME_HEADING: &str = "(PDH-CSV 4.0) (UTC)(0)";

/// How times are written.
const TIME: &str = "%m/%d/%Y %H:%M:%S";

/// Writes a recording.
pub(super) struct Batch<W: Write> {
    out: csv::Writer<W>,
    /// The VMs that have columns.
    vms: Vec<u32>,
    /// The latest VM without columns that was told of.
    told: Option<u32>,
}

impl<W: Write> Batch<W> {
    /// Writes the headings for the VMs of `first`.
    ///
    /// # Errors
    /// What the output says.
    pub(super) fn begin(out: W, host: &str, first: &Sample) -> io::Result<Self> {
        let style = csv::QuoteStyle::Always;
        let mut out = csv::WriterBuilder::new()
            .quote_style(style)
            .from_writer(out);
        let mut headings = vec![TIME_HEADING.to_owned()];
        let counters = HOST
            .iter()
            .map(|field| format!(r"\\{host}\Memory\{}", field.counter));
        headings.extend(counters);
        for vm in &first.vms {
            let group = format!(r"\\{host}\Group Memory({}:{})", vm.id, vm.name);
            headings.extend(VM.iter().map(|field| format!(r"{group}\{}", field.counter)));
        }
        out.write_record(&headings).map_err(plain_io)?;
        Ok(Self {
            out,
            vms: first.vms.iter().map(|vm| vm.id).collect(),
            told: None,
        })
    }

    /// Writes a line; returns the names of VMs that are new and have no column.
    ///
    /// # Errors
    /// What the output says.
    pub(super) fn add(&mut self, sample: &Sample) -> io::Result<Vec<String>> {
        let mut cells = vec![sample.at.strftime(TIME).to_string()];
        cells.extend(sample.host.iter().map(cell));
        for id in &self.vms {
            match sample.vm(*id) {
                Some(vm) => cells.extend(vm.numbers.iter().map(cell)),
                None => cells.extend(VM.iter().map(|_| String::new())),
            }
        }
        self.out.write_record(&cells).map_err(plain_io)?;
        self.out.flush()?;
        let is_new = |id: u32| !self.vms.contains(&id) && self.told.is_none_or(|told| id > told);
        // Numbers of VMs only grow.
        let new: Vec<_> = sample.vms.iter().filter(|vm| is_new(vm.id)).collect();
        self.told = new.iter().map(|vm| vm.id).max().or(self.told);
        Ok(new.iter().map(|vm| vm.name.clone()).collect())
    }
}

fn cell(number: &Option<f64>) -> String {
    number.map_or_else(String::new, |number| number.to_string())
}

/// What the output said, such as that the reader went away.
fn plain_io(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}
