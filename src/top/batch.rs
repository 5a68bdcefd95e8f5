//! Recordings in the form of esxtop's batch mode: CSV as perfmon writes it, a line for each sample.
//!
//! The first column is the time, as UTC, and each other one a counter: `\\HOST\Memory\COUNTER` of the host,
//! `\\HOST\Group Memory(ID:NAME)\COUNTER` of a VM. Programs that draw such files take numbers alone, so words are
//! written as their places (see [`Unit::Word`](super::fields::Unit::Word)), and numbers in full, so that what is read back
//! is what was written. A number that there is not is an empty cell.
//!
//! The first line fixes the columns, so it fixes the VMs: a VM that ends leaves its cells empty, and one that starts
//! later has none. Writing another first line in the middle would serve only readers that expect it.

use std::fmt::Write as _;
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
    /// The text of the cell that is being written.
    cell: String,
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
            cell: String::new(),
            told: None,
        })
    }

    /// Writes a line; returns the names of VMs that are new and have no column.
    ///
    /// # Errors
    /// What the output says.
    pub(super) fn add(&mut self, sample: &Sample) -> io::Result<Vec<String>> {
        let time = sample.at.strftime(TIME).to_string();
        self.out.write_field(time).map_err(plain_io)?;
        sample
            .host
            .iter()
            .try_for_each(|number| self.write(*number))?;
        for at in 0..self.vms.len() {
            match sample.vm(self.vms[at]) {
                Some(vm) => vm
                    .numbers
                    .iter()
                    .try_for_each(|number| self.write(*number))?,
                None => VM.iter().try_for_each(|_| self.write(None))?,
            }
        }
        self.out.write_record(None::<&[u8]>).map_err(plain_io)?;
        self.out.flush()?;
        let is_new = |id: u32| !self.vms.contains(&id) && self.told.is_none_or(|told| id > told);
        // Numbers of VMs only grow.
        let new: Vec<_> = sample.vms.iter().filter(|vm| is_new(vm.id)).collect();
        self.told = new.iter().map(|vm| vm.id).max().or(self.told);
        Ok(new.iter().map(|vm| vm.name.clone()).collect())
    }

    /// Writes a cell.
    fn write(&mut self, number: Option<f64>) -> io::Result<()> {
        self.cell.clear();
        if let Some(number) = number {
            // A text takes what it is given.
            let _ = write!(self.cell, "{number}");
        }
        self.out.write_field(&self.cell).map_err(plain_io)
    }
}

/// What the output said, such as that the reader went away.
fn plain_io(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}
