//! Runs side by side: the figures that each run has, and what was expected, of several results directories or of the
//! variants of one.
//!
//! Two medians differ even if nothing does. So each figure has the spread of its repetitions beside it, and a ratio says
//! whether the spreads are apart.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::judge::{median, spread};
use super::results::{Results, ResultsError};
use super::run::Recordings;
use super::units::number;

/// Runs side by side.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Compared {
    /// What is compared: variants, behind the name of their directory if there are several.
    pub sides: Vec<String>,
    /// What ended early, as sentences.
    pub unfinished: Vec<String>,
    /// Figure by figure.
    pub rows: Vec<Row>,
}

/// A figure of all sides.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// What it counts in.
    pub unit: String,
    /// Side by side; `None` where it was not measured.
    pub values: Vec<Option<Middle>>,
}

/// A figure of the repetitions of one side.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Middle {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
    /// How many repetitions.
    pub runs: usize,
    /// The median by that of the first side; `None` for the first side itself, or where that has none or 0.
    pub ratio: Option<f64>,
    /// Whether the spreads of the two have nothing in common; false if one of them is a single run.
    pub apart: bool,
}

/// Reads results directories and puts their variants side by side.
///
/// # Errors
/// [`ResultsError`] of the first that cannot be read.
pub fn compare(dirs: &[PathBuf]) -> Result<(Vec<Results>, Compared), ResultsError> {
    let read: Result<Vec<_>, _> = dirs.iter().map(|dir| Results::read(dir)).collect();
    let all = read?;
    let many = dirs.len() > 1;
    let named = dirs.iter().zip(&all).map(|(dir, results)| {
        let name = if many { label(dir) } else { String::new() };
        (name, results)
    });
    let compared = side_by_side(&named.collect::<Vec<_>>());
    Ok((all, compared))
}

/// What a directory is called in a table.
fn label(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or(dir.as_os_str());
    name.to_string_lossy().into_owned()
}

/// A page with the charts of all runs.
///
/// # Errors
/// [`ResultsError`] if a recording cannot be read.
pub fn page(dirs: &[PathBuf], all: &[Results]) -> Result<String, ResultsError> {
    let mut read = Vec::new();
    for (dir, results) in dirs.iter().zip(all) {
        let mut recordings = Vec::new();
        for variant in &results.variants {
            let mut runs = Vec::new();
            for repetition in &variant.repetitions {
                runs.extend(Results::recording(dir, repetition)?);
            }
            recordings.push((variant.name.clone(), runs));
        }
        read.push((label(dir), results, recordings));
    }
    Ok(drawn(&read))
}

/// A page with the charts of runs that have been read: results by the names of their directories, with the recordings
/// of each variant.
#[must_use]
pub fn drawn(all: &[(String, &Results, Recordings)]) -> String {
    super::page::of_many(all)
}

/// Puts the variants of results side by side, each behind the name of its directory.
#[must_use]
pub fn side_by_side(all: &[(String, &Results)]) -> Compared {
    let mut compared = Compared {
        sides: Vec::new(),
        unfinished: Vec::new(),
        rows: Vec::new(),
    };
    let mut sides = Vec::new();
    for (dir, results) in all {
        if let Some(why) = &results.why {
            let behind = if dir.is_empty() { "" } else { ": " };
            compared.unfinished.push(format!("{dir}{behind}{why}"));
        }
        for variant in &results.variants {
            let between = if dir.is_empty() || variant.name.is_empty() {
                ""
            } else {
                " "
            };
            compared
                .sides
                .push(format!("{dir}{between}{}", variant.name));
            sides.push(side(results, &variant.name));
        }
    }
    for (name, unit) in sides.iter().flatten().map(|(name, unit, _)| (name, unit)) {
        let is_there = |row: &Row| row.name == *name && row.unit == *unit;
        if !compared.rows.iter().any(is_there) {
            compared.rows.push(row(name, unit, &sides));
        }
    }
    compared
}

/// All values of a figure: what it is, what it counts in, the values.
type Values = (String, String, Vec<f64>);

/// The figures of the whole runs of a variant, and what was measured of expectations.
fn side(results: &Results, variant: &str) -> Vec<Values> {
    let variants = results.variants.iter();
    let runs = variants
        .filter(|one| one.name == variant)
        .flat_map(|one| &one.repetitions)
        .filter(|run| run.whole);
    let mut figures: Vec<Values> = Vec::new();
    for figure in runs.flat_map(|run| &run.figures) {
        let known = figures
            .iter_mut()
            .find(|(name, unit, _)| *name == figure.name && *unit == figure.unit);
        match known {
            Some((.., values)) => values.push(figure.value),
            None => figures.push((figure.name.clone(), figure.unit.clone(), vec![figure.value])),
        }
    }
    let verdicts = results
        .verdicts
        .iter()
        .filter(|verdict| verdict.variant == variant);
    let measured = verdicts.filter(|verdict| !verdict.values.is_empty());
    figures.extend(measured.map(|verdict| {
        (
            verdict.text.clone(),
            verdict.unit.clone(),
            verdict.values.clone(),
        )
    }));
    figures
}

fn row(name: &str, unit: &str, sides: &[Vec<Values>]) -> Row {
    let values = |side: &Vec<Values>| -> Option<Middle> {
        let found = side
            .iter()
            .find(|(other, in_unit, _)| other == name && in_unit == unit);
        let values = &found?.2;
        let (least, most) = spread(values)?;
        Some(Middle {
            median: median(values)?,
            least,
            most,
            runs: values.len(),
            ratio: None,
            apart: false,
        })
    };
    let mut values: Vec<_> = sides.iter().map(values).collect();
    let (first, others) = values.split_at_mut(1);
    if let Some(Some(first)) = first.first() {
        for other in others.iter_mut().flatten() {
            let ratio = other.median / first.median;
            other.ratio = Some(ratio).filter(|ratio| ratio.is_finite());
            // One run has no spread that could tell.
            let are_known = first.runs > 1 && other.runs > 1;
            let are_apart = other.least > first.most || other.most < first.least;
            other.apart = are_known && are_apart;
        }
    }
    Row {
        name: name.to_owned(),
        unit: unit.to_owned(),
        values,
    }
}

impl Row {
    /// The row as texts.
    #[must_use]
    pub fn cells(&self) -> Vec<String> {
        let cell = |value: &Option<Middle>| {
            let Some(value) = value else {
                return "-".to_owned();
            };
            let of = |value| number(value, &self.unit);
            let mut text = of(value.median);
            if value.least < value.most {
                text += &format!(" ({} to {})", of(value.least), of(value.most));
            }
            if let Some(ratio) = value.ratio {
                // What may be chance is marked.
                let doubt = if value.apart { "" } else { "~" };
                text += &format!(" {doubt}x{ratio:.2}");
            }
            text
        };
        let mut cells = vec![self.name.clone()];
        cells.extend(self.values.iter().map(cell));
        cells
    }
}
