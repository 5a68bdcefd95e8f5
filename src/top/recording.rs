//! Reads what [`super::batch`] writes; of a recording that esxtop made, what has the same counters.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use thiserror::Error;

use super::fields::{Field, HOST, VM};
use super::sample::{Sample, VmSample};

/// The largest file that is read: all of it is kept in memory, and it is days of a host with many VMs.
const SIZE_MAX: u64 = 256 << 20;

/// How times are written; perfmon adds milliseconds.
const TIME: &str = "%m/%d/%Y %H:%M:%S%.f";

/// Why a recording cannot be shown.
#[derive(Debug, Error)]
pub enum RecordingError {
    /// The file cannot be read.
    #[error("cannot read `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is none, or damaged.
    #[error("`{path}`{at}: {wrong}; allowed: {allowed}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The line, if it is about one.
        at: String,
        /// What is wrong.
        wrong: String,
        /// What would be right.
        allowed: String,
    },
}

/// What a column holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Column {
    Host(usize),
    /// The place of the VM among those of the recording, and that of the field.
    Vm(usize, usize),
    Other,
}

/// What the first line says.
#[derive(Debug, Default)]
struct Headings {
    columns: Vec<Column>,
    vms: Vec<(u32, String)>,
}

/// The samples of a recording, of which there is at least one.
///
/// # Errors
/// [`RecordingError`].
pub(super) fn read(path: &Path) -> Result<Vec<Sample>, RecordingError> {
    let io = |source| RecordingError::Io {
        path: path.to_owned(),
        source,
    };
    let size = fs::metadata(path).map_err(io)?.len();
    if size > SIZE_MAX {
        let wrong = format!("it has {size} bytes");
        return Err(Reader(path).wrong(None, wrong, format!("up to {SIZE_MAX} bytes")));
    }
    parse(path, File::open(path).map_err(io)?)
}

/// The samples of the text of a recording.
///
/// # Errors
/// [`RecordingError`].
pub(super) fn parse(path: &Path, text: impl Read) -> Result<Vec<Sample>, RecordingError> {
    let reader = Reader(path);
    let mut lines = csv::Reader::from_reader(text);
    let headings = lines.headers().map_err(|error| reader.damaged(error))?;
    let headings = reader.headings(headings)?;
    let mut samples = Vec::new();
    for record in lines.records() {
        let record = record.map_err(|error| reader.damaged(error))?;
        samples.push(reader.sample(&headings, &record)?);
    }
    if samples.is_empty() {
        let wrong = "it has no line of numbers".to_owned();
        return Err(reader.wrong(None, wrong, "what `memvisor top -b` prints".to_owned()));
    }
    Ok(samples)
}

/// Reads the file of this path.
struct Reader<'a>(&'a Path);

impl Reader<'_> {
    /// The file without its directory, for a title.
    fn name(&self) -> std::borrow::Cow<'_, str> {
        let name = self.0.file_name().unwrap_or(self.0.as_os_str());
        name.to_string_lossy()
    }

    fn wrong(&self, line: Option<u64>, wrong: String, allowed: String) -> RecordingError {
        RecordingError::Wrong {
            path: self.0.to_owned(),
            at: line.map_or_else(String::new, |line| format!(", line {line}")),
            wrong,
            allowed,
        }
    }

    fn damaged(&self, error: csv::Error) -> RecordingError {
        let line = error.position().map(csv::Position::line);
        match error.into_kind() {
            csv::ErrorKind::Io(source) => RecordingError::Io {
                path: self.0.to_owned(),
                source,
            },
            csv::ErrorKind::UnequalLengths {
                expected_len, len, ..
            } => {
                let allowed = format!("{expected_len}, as many as the first line has");
                self.wrong(line, format!("it has {len} cells"), allowed)
            }
            _ => self.wrong(line, "it is no text".to_owned(), "CSV in UTF-8".to_owned()),
        }
    }

    fn headings(&self, cells: &csv::StringRecord) -> Result<Headings, RecordingError> {
        let mut headings = Headings::default();
        let first = cells.get(0).unwrap_or_default();
        if !first.starts_with("(PDH-CSV 4.0)") {
            let allowed = "what `memvisor top -b` prints".to_owned();
            return Err(self.wrong(Some(1), "this is no recording".to_owned(), allowed));
        }
        for cell in cells.iter().skip(1) {
            let column = headings.column(cell).unwrap_or(Column::Other);
            headings.columns.push(column);
        }
        Ok(headings)
    }

    fn sample(
        &self,
        headings: &Headings,
        cells: &csv::StringRecord,
    ) -> Result<Sample, RecordingError> {
        let line = cells.position().map(csv::Position::line);
        let time = cells.get(0).unwrap_or_default();
        let at = time_of(time).ok_or_else(|| {
            let allowed = "MM/DD/YYYY HH:MM:SS".to_owned();
            self.wrong(line, format!("`{time}` is no time"), allowed)
        })?;
        let mut sample = Sample {
            at,
            source: format!("replay of {}", self.name()).replace(char::is_control, "?"),
            why: String::new(),
            host: vec![None; HOST.len()],
            vms: Vec::new(),
            pools: Vec::new(),
        };
        let mut vms = vec![vec![None; VM.len()]; headings.vms.len()];
        for (column, cell) in headings.columns.iter().zip(cells.iter().skip(1)) {
            let (slot, field) = match *column {
                Column::Host(place) => (&mut sample.host[place], &HOST[place]),
                Column::Vm(vm, place) => (&mut vms[vm][place], &VM[place]),
                Column::Other => continue,
            };
            *slot = self.number(field, cell, line)?;
        }
        for ((id, name), numbers) in headings.vms.iter().zip(vms) {
            // A VM that did not run has no number at all.
            if numbers.iter().any(Option::is_some) {
                sample.vms.push(VmSample {
                    pool: String::new(),
                    id: *id,
                    name: name.clone(),
                    numbers,
                });
            }
        }
        Ok(sample)
    }

    fn number(
        &self,
        field: &Field,
        cell: &str,
        line: Option<u64>,
    ) -> Result<Option<f64>, RecordingError> {
        if cell.is_empty() {
            return Ok(None);
        }
        let number = cell
            .trim()
            .parse()
            .ok()
            .filter(|number| field.unit.allows(*number));
        let wrong = || format!("{} cannot be `{}`", field.counter, cell.escape_debug());
        let number = number.ok_or_else(|| self.wrong(line, wrong(), field.unit.allowed()))?;
        Ok(Some(number))
    }
}

impl Headings {
    /// What a column holds; `None` for what `top` does not know.
    fn column(&mut self, heading: &str) -> Option<Column> {
        let (_, path) = heading.strip_prefix(r"\\")?.split_once('\\')?;
        let (object, counter) = path.split_once('\\')?;
        let place = |table: &[Field]| table.iter().position(|field| field.counter == counter);
        if object == "Memory" {
            return place(HOST).map(Column::Host);
        }
        let instance = object.strip_prefix("Group Memory(")?.strip_suffix(')')?;
        let (id, name) = instance.split_once(':')?;
        let field = place(VM)?;
        let vm = (id.parse().ok()?, name.replace(char::is_control, "?"));
        let known = self.vms.iter().position(|known| *known == vm);
        let at = known.unwrap_or_else(|| {
            self.vms.push(vm);
            self.vms.len() - 1
        });
        Some(Column::Vm(at, field))
    }
}

fn time_of(text: &str) -> Option<Timestamp> {
    let time = DateTime::strptime(TIME, text).ok()?;
    TimeZone::UTC.to_timestamp(time).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::batch::Batch;
    use super::super::fields::Unit;
    use super::super::sample::tests::sample;
    use super::*;

    fn written(samples: &[Sample]) -> String {
        let mut text = Vec::new();
        let mut batch = Batch::begin(&mut text, "host", &samples[0]).expect("a vector");
        for sample in samples {
            batch.add(sample).expect("a vector");
        }
        drop(batch);
        String::from_utf8(text).expect("text")
    }

    fn read_again(text: &str) -> Result<Vec<Sample>, RecordingError> {
        parse(Path::new("x.csv"), text.as_bytes())
    }

    /// A sample as it is read again: it has no reasons and no resource pools.
    fn bare(mut sample: Sample) -> Sample {
        sample.source = "replay of x.csv".to_owned();
        sample.why = String::new();
        for vm in &mut sample.vms {
            vm.pool = String::new();
        }
        sample.pools.clear();
        sample
    }

    #[test]
    fn recording_has_the_form_of_esxtop() {
        let text = written(&[sample(3661)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        for heading in [
            r#"(PDH-CSV 4.0) (UTC)(0)"#,
            r#"\\host\Memory\Memory Overcommit (1 Minute Avg)"#,
            r#"\\host\Memory\PShare Savings MBytes"#,
            r#"\\host\Group Memory(1:web)\Memory Granted Size MBytes"#,
            r#"\\host\Group Memory(2:database-primary-01)\Swap Written MBytes/sec"#,
        ] {
            assert!(
                lines[0].contains(&format!("\"{heading}\"")),
                "{heading} in {}",
                lines[0]
            );
        }
        assert!(
            lines[1].starts_with("\"01/01/2026 01:01:01\",\"3727\","),
            "{}",
            lines[1]
        );
        assert!(lines[1].contains(",\"1.5\","), "{}", lines[1]);
    }

    #[test]
    fn vm_that_ends_leaves_empty_cells_and_one_that_starts_is_told_once() {
        let (both, mut one) = (sample(0), sample(1));
        let second = one.vms.pop().expect("two");
        let text = written(&[both.clone(), one.clone()]);
        assert_eq!(
            read_again(&text).expect("read"),
            [bare(both.clone()), bare(one.clone())]
        );
        let mut text = Vec::new();
        let mut batch = Batch::begin(&mut text, "host", &one).expect("a vector");
        assert_eq!(batch.add(&one).expect("written"), Vec::<String>::new());
        assert_eq!(batch.add(&both).expect("written"), [second.name]);
        assert_eq!(batch.add(&both).expect("written"), Vec::<String>::new());
    }

    #[test]
    fn damaged_recording_is_refused_with_its_line_and_what_is_allowed() {
        let good = written(&[sample(0)]);
        let (head, _) = good.split_once('\n').expect("two lines");
        for (text, parts) in [
            (String::new(), "line 1|no recording|top -b"),
            ("a,b\n1,2\n".to_owned(), "line 1|no recording"),
            (format!("{head}\n"), "no line of numbers|top -b"),
            (format!("{head}\n\"x\"\n"), "line 2|1 cells|as many as"),
            (
                good.replace("01/01/2026", "2026-01-01"),
                "line 2|is no time|MM/DD",
            ),
            (
                good.replace("\"1.5\"", "\"-1\""),
                "line 2|cannot be `-1`|from 0 on",
            ),
            (
                good.replace("\"1.5\"", "\"many\""),
                "line 2|MBytes Write/sec|`many`",
            ),
            (
                good.replace("\"3727\",\"3\"", "\"3727\",\"9\""),
                "line 2|Health|`9`|from 0 to 3",
            ),
        ] {
            let error = read_again(&text).expect_err(parts).to_string();
            assert!(error.starts_with("`x.csv`"), "{error}");
            for part in parts.split('|') {
                assert!(error.contains(part), "no {part} in: {error}");
            }
        }
    }

    #[test]
    fn recording_of_esxtop_is_read_as_far_as_it_is_known() {
        let text = "\"(PDH-CSV 4.0) (UTC)(0)\",\"\\\\esx\\Memory\\Free MBytes\",\
                    \"\\\\esx\\Physical Cpu(0)\\% Util Time\",\
                    \"\\\\esx\\Group Memory(19299:Krein)\\Memory Size MBytes\"\n\
                    \"05/15/2017 06:49:37.250\",\"812\",\"nothing\",\"4096\"\n";
        let samples = read_again(text).expect("read");
        let free = HOST
            .iter()
            .position(|field| field.name == "free")
            .expect("there");
        assert_eq!(samples[0].host(free), Some(812.0));
        assert_eq!(samples[0].vms[0].name, "Krein");
        assert_eq!(samples[0].at.as_millisecond() % 1000, 250);
    }

    /// Numbers as fields can have them.
    fn numbers(table: &'static [Field]) -> impl Strategy<Value = Vec<Option<f64>>> {
        let each = table.iter().map(|field| match field.unit {
            Unit::Word(words) => (0..words.len()).prop_map(|at| Some(at as f64)).boxed(),
            _ => prop_oneof![Just(None), (0.0..1e12f64).prop_map(Some), Just(Some(0.0))].boxed(),
        });
        each.collect::<Vec<_>>()
    }

    fn vm(id: u32) -> impl Strategy<Value = VmSample> {
        ("[a-z0-9][a-z0-9._-]{0,20}", numbers(VM)).prop_map(move |(name, numbers)| VmSample {
            pool: String::new(),
            id,
            name,
            numbers,
        })
    }

    proptest! {
        #[test]
        fn damaged_recording_is_read_or_refused(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            length in any::<prop::sample::Index>(),
        ) {
            let mut text = written(&[sample(0), sample(1)]).into_bytes();
            for (at, byte) in changes {
                let at = at.index(text.len());
                text[at] = byte;
            }
            text.truncate(length.index(text.len() + 1));
            for sample in parse(Path::new("x.csv"), &*text).into_iter().flatten() {
                let numbers = HOST.iter().zip(&sample.host);
                let numbers = numbers.chain(sample.vms.iter().flat_map(|vm| VM.iter().zip(&vm.numbers)));
                for (field, number) in numbers {
                    prop_assert!(number.is_none_or(|number| field.unit.allows(number)));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_recorded_is_replayed(
            rows in prop::collection::vec((0i64..4_000_000_000, numbers(HOST), prop::array::uniform3(numbers(VM)), 0u8..8), 1..5),
            vms in (vm(1), vm(7), vm(12)),
        ) {
            let vms = [vms.0, vms.1, vms.2];
            let mut samples = Vec::new();
            for (index, (second, host, numbers, runs)) in rows.into_iter().enumerate() {
                let there = vms.iter().zip(numbers).enumerate();
                // The first line names the VMs.
                let there = there.filter(|(at, _)| index == 0 || runs & 1 << at != 0);
                samples.push(Sample {
                    at: Timestamp::from_second(second).expect("a time"),
                    source: "replay of x.csv".to_owned(),
                    why: String::new(),
                    host,
                    vms: there.map(|(_, (vm, numbers))| VmSample { numbers, ..vm.clone() }).collect(),
                    pools: Vec::new(),
                });
            }
            let again = read_again(&written(&samples)).expect("its own");
            prop_assert_eq!(again, samples);
        }
    }
}
