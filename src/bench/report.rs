//! What was measured: medians and spread, and those of a peer on the same content in the same run.

use std::fmt::{Display, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::Bench;

/// Which of two values is the better one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Better {
    /// The larger, as of rates.
    More,
    /// The smaller, as of times.
    Less,
}

/// What a value was measured on, and how to read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Case {
    /// The benchmark.
    pub bench: Bench,
    /// What it was measured on.
    pub case: String,
    /// What was measured.
    pub metric: &'static str,
    /// The unit of the value.
    pub unit: &'static str,
    /// Which value is better.
    pub better: Better,
}

impl Case {
    /// A case of which the larger value is the better one.
    #[must_use]
    pub fn more(bench: Bench, on: &dyn Display, metric: &'static str, unit: &'static str) -> Self {
        Self {
            bench,
            case: on.to_string(),
            metric,
            unit,
            better: Better::More,
        }
    }

    /// A case of which the smaller value is the better one.
    #[must_use]
    pub fn less(bench: Bench, on: &dyn Display, metric: &'static str, unit: &'static str) -> Self {
        Self {
            better: Better::Less,
            ..Self::more(bench, on, metric, unit)
        }
    }
}

/// The values of some runs.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Series(Vec<f64>);

impl Series {
    /// Adds the value of one more run.
    pub fn push(&mut self, value: f64) {
        let at = self.0.partition_point(|other| *other <= value);
        self.0.insert(at, value);
    }

    /// The number of runs.
    #[must_use]
    pub const fn runs(&self) -> usize {
        self.0.len()
    }

    /// The value in the middle, or the mean of the two in the middle; zero without runs.
    #[must_use]
    pub fn median(&self) -> f64 {
        let half = self.0.len() / 2;
        match (self.0.len() % 2, self.0.get(half)) {
            (_, None) => 0.0,
            (1, Some(middle)) => *middle,
            (_, Some(above)) => f64::midpoint(self.0[half - 1], *above),
        }
    }

    /// The least value; zero without runs.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or(0.0)
    }

    /// The largest value; zero without runs.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(0.0)
    }
}

/// One case with the values of memvisor and of a peer.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// The case.
    pub case: Case,
    /// The values of memvisor.
    pub ours: Series,
    /// The name of the peer, and its values.
    pub peer: Option<(&'static str, Series)>,
}

impl Row {
    /// How many times better memvisor is than the peer: above 1 memvisor wins. `None` without a peer, or if
    /// one of the medians is zero.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let (ours, peer) = (self.ours.median(), self.peer.as_ref()?.1.median());
        if ours == 0.0 || peer == 0.0 {
            return None;
        }
        Some(match self.case.better {
            Better::More => ours / peer,
            Better::Less => peer / ours,
        })
    }
}

/// A [`Row`] as JSON.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The benchmark.
    pub bench: String,
    /// What it was measured on.
    pub case: String,
    /// What was measured.
    pub metric: String,
    /// The unit of the values.
    pub unit: String,
    /// The median of memvisor.
    pub ours: f64,
    /// What memvisor is compared with.
    pub peer: Option<String>,
    /// The peer's median.
    pub peer_value: Option<f64>,
    /// The peer's least value.
    pub peer_min: Option<f64>,
    /// The peer's largest value.
    pub peer_max: Option<f64>,
    /// How many times better memvisor is; `null` without a peer, or if one of the medians is zero.
    pub ratio: Option<f64>,
    /// How often memvisor was measured.
    pub runs: usize,
    /// Its least value.
    pub min: f64,
    /// Its largest value.
    pub max: f64,
}

impl From<&Row> for Entry {
    fn from(row: &Row) -> Self {
        let Row { case, ours, peer } = row;
        Self {
            bench: case.bench.to_string(),
            case: case.case.clone(),
            metric: case.metric.to_owned(),
            unit: case.unit.to_owned(),
            ours: ours.median(),
            peer: peer.as_ref().map(|(name, _)| (*name).to_owned()),
            peer_value: peer.as_ref().map(|(_, series)| series.median()),
            peer_min: peer.as_ref().map(|(_, series)| series.min()),
            peer_max: peer.as_ref().map(|(_, series)| series.max()),
            ratio: row.ratio(),
            runs: ours.runs(),
            min: ours.min(),
            max: ours.max(),
        }
    }
}

/// All that was measured, in the order in which it was measured. It can be read while it grows.
#[derive(Debug, Default)]
pub struct Report {
    cases: Mutex<Vec<Measured>>,
    remarks: Mutex<Vec<String>>,
}

/// One case with the values of memvisor and of all its peers.
#[derive(Debug)]
struct Measured {
    case: Case,
    ours: Series,
    peers: Vec<(&'static str, Series)>,
}

impl Report {
    /// Notes a value of one run: of `peer`, or of memvisor if it is `None`.
    pub fn note(&self, case: &Case, peer: Option<&'static str>, value: f64) {
        let mut cases = lock(&self.cases);
        let known = cases.iter().position(|known| known.case == *case);
        let at = known.unwrap_or_else(|| {
            cases.push(Measured {
                case: case.clone(),
                ours: Series::default(),
                peers: Vec::new(),
            });
            cases.len() - 1
        });
        let Measured { ours, peers, .. } = &mut cases[at];
        let Some(peer) = peer else {
            return ours.push(value);
        };
        match peers.iter_mut().find(|(name, _)| *name == peer) {
            Some((_, series)) => series.push(value),
            None => peers.push((peer, Series(vec![value]))),
        }
    }

    /// Notes a value of memvisor in one run.
    pub fn ours(&self, case: &Case, value: f64) {
        self.note(case, None, value);
    }

    /// Notes a value of a peer in one run.
    pub fn peer(&self, case: &Case, peer: &'static str, value: f64) {
        self.note(case, Some(peer), value);
    }

    /// Notes something that a reader has to know, such as what could not be compared, and why.
    pub fn remark(&self, text: String) {
        lock(&self.remarks).push(text);
    }

    /// All remarks so far.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        lock(&self.remarks).clone()
    }

    /// A row for each case and peer. Cases that only peers have are left out.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let cases = lock(&self.cases);
        let is_measured = |case: &&Measured| case.ours.runs() > 0;
        for Measured { case, ours, peers } in cases.iter().filter(is_measured) {
            let row = |peer| Row {
                case: case.clone(),
                ours: ours.clone(),
                peer,
            };
            if peers.is_empty() {
                rows.push(row(None));
            }
            rows.extend(peers.iter().map(|peer| row(Some(peer.clone()))));
        }
        rows
    }

    /// The same for JSON.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.rows().iter().map(Entry::from).collect()
    }

    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let head = [
            "BENCH", "CASE", "METRIC", "OURS", "LEAST", "MOST", "PEER", "THEIRS", "RATIO", "UNIT",
        ];
        let mut lines = vec![head.map(str::to_owned)];
        for row in self.rows() {
            let (name, value) = match &row.peer {
                Some((name, series)) => ((*name).to_owned(), number(series.median())),
                None => ("-".to_owned(), "-".to_owned()),
            };
            let Row { case, ours, .. } = &row;
            lines.push([
                case.bench.to_string(),
                case.case.clone(),
                case.metric.to_owned(),
                number(ours.median()),
                number(ours.min()),
                number(ours.max()),
                name,
                value,
                row.ratio().map_or("-".to_owned(), ratio),
                case.unit.to_owned(),
            ]);
        }
        let width = |column: usize| lines.iter().map(|line| line[column].len()).max();
        let widths: [usize; 10] = std::array::from_fn(|column| width(column).unwrap_or(0));
        let mut text = String::new();
        for line in &lines {
            for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
                // Words at the left, numbers at the right.
                let _ = match column {
                    0..=2 | 6 | 9 => write!(text, "{cell:<width$}  "),
                    _ => write!(text, "{cell:>width$}  "),
                };
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number with about three digits.
#[must_use]
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        ..0.01 => format!("{value:.4}"),
        ..1.0 => format!("{value:.3}"),
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        ..10_000.0 => format!("{value:.0}"),
        ..1e6 => format!("{:.1}k", value / 1e3),
        _ => format!("{:.2}M", value / 1e6),
    }
}

/// A ratio with its sign.
#[must_use]
pub fn ratio(value: f64) -> String {
    format!("{}x", number(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(better: Better) -> Case {
        Case {
            better,
            ..Case::more(Bench::Scan, &"random", "cold scan", "pages/s")
        }
    }

    #[test]
    fn median_is_in_the_middle_whatever_the_order() {
        let mut series = Series::default();
        assert_eq!(
            (series.median(), series.min(), series.max()),
            (0.0, 0.0, 0.0)
        );
        for value in [9.0, 1.0, 5.0] {
            series.push(value);
        }
        assert_eq!(
            (series.median(), series.min(), series.max()),
            (5.0, 1.0, 9.0)
        );
        series.push(7.0);
        assert_eq!((series.median(), series.runs()), (6.0, 4));
    }

    #[test]
    fn ratio_says_how_many_times_better_we_are() {
        for (better, expected) in [(Better::More, 4.0), (Better::Less, 0.25)] {
            let report = Report::default();
            report.peer(&case(better), "ksm", 2.0);
            assert_eq!(report.rows(), [], "we have nothing");
            report.ours(&case(better), 8.0);
            report.peer(&case(better), "read", 0.0);
            let rows = report.rows();
            assert_eq!(rows.len(), 2);
            assert_eq!(rows[0].ratio(), Some(expected));
            assert_eq!(rows[1].ratio(), None, "they have nothing");
        }
    }

    #[test]
    fn entry_has_the_documented_fields() {
        let report = Report::default();
        for value in [3.0, 1.0, 2.0] {
            report.ours(&case(Better::More), value);
        }
        report.peer(&case(Better::More), "ksm", 1.0);
        let json = serde_json::to_value(report.entries()).expect("plain data");
        let expected = serde_json::json!([{
            "bench": "scan", "case": "random", "metric": "cold scan", "unit": "pages/s",
            "ours": 2.0, "peer": "ksm", "peer_value": 1.0, "peer_min": 1.0, "peer_max": 1.0, "ratio": 2.0, "runs": 3,
            "min": 1.0, "max": 3.0,
        }]);
        assert_eq!(json, expected);
        let back: Vec<Entry> = serde_json::from_value(json).expect("the same");
        assert_eq!(back, report.entries());
    }

    #[test]
    fn table_has_a_line_for_each_row_and_names_the_peer() {
        let report = Report::default();
        report.ours(&case(Better::More), 1_234_567.0);
        let table = report.table();
        assert_eq!(table.lines().count(), 2);
        assert!(table.contains("1.23M"), "{table}");
        report.peer(&case(Better::More), "ksm", 300_000.0);
        let table = report.table();
        assert!(
            table.contains("300.0k") && table.contains("4.12x"),
            "{table}"
        );
    }

    #[test]
    fn numbers_have_three_digits_or_so() {
        for (value, text) in [
            (0.0, "0"),
            (0.001_234, "0.0012"),
            (0.1234, "0.123"),
            (1.234, "1.23"),
            (12.34, "12.3"),
            (1234.4, "1234"),
            (12_340.0, "12.3k"),
            (1_234_000.0, "1.23M"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
