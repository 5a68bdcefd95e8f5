//! Pages about a host: the report of a run, as one file, and the live page that a host serves.
//!
//! A report travels: it is opened from a disk years later, on a telephone, or printed. So it is one file that needs
//! nothing from elsewhere, and its numbers are in it as data. The live page shows the same model while it grows. If each
//! of them were drawn by its own code they would come to disagree, and so both are the same document: [`page`] puts the
//! style sheet, the script and the data into it, and a host serves the three apart ([`live_page`], [`STYLE`], [`SCRIPT`]),
//! because a page from a server should not be allowed to run what stands in its text.
//!
//! - What is drawn is a table (`charts.rs`): each chart names series of docs/metrics.md. Only these are in the data.
//! - What is in the data is the recording's own columns (`data.rs`), thinned if they are too many.
//! - How it is drawn is the script's: runs and numbers (`model.js`), one chart by the library uPlot (`chart.js`, `vendor`),
//!   and the document (`page.js`).
//!
//! Names of VMs and texts come from others. In the data no `<` stays one, so nothing in it can end the element that it
//! stands in, and the script makes texts of them and never markup.

mod charts;
mod data;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::recording::Recording;
use crate::telemetry::HostStatus;

/// All that the page of a report tells.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Report<'a> {
    /// What was run: the name of a scenario.
    pub title: String,
    /// Names and values to begin with: the command that makes the report again, machine, host, seed, date.
    pub facts: Vec<(String, String)>,
    /// Why the run ended early, if it did.
    pub unfinished: Option<String>,
    /// What was measured, run by run. With more than one the page compares.
    pub runs: Vec<Run<'a>>,
    /// What should have been, and what was.
    pub expectations: Vec<Expectation>,
    /// More that is best read as tables.
    pub tables: Vec<Table>,
}

/// One run of a host.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Run<'a> {
    /// What it was a run of. Runs of one variant are repetitions, and are compared with other variants together.
    pub variant: String,
    /// Which of the repetitions it is, from 1.
    pub repetition: u32,
    /// Its numbers.
    pub recording: &'a Recording,
}

/// What should have been in a run, and what was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Expectation {
    /// The run, in the words of its variant and repetition.
    pub run: String,
    /// What was expected, as it was written.
    pub text: String,
    /// What was measured, with its unit.
    pub measured: String,
    /// Whether it held; `None` if that could not be judged, or if there was nothing to hold.
    pub held: Option<bool>,
}

/// A table of texts. Each row has as many cells as the head.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Table {
    /// What it shows.
    pub caption: String,
    /// The names of the columns.
    pub head: Vec<String>,
    /// Row by row.
    pub rows: Vec<Vec<String>>,
}

/// The style sheet of both pages.
pub const STYLE: &str = concat!(
    include_str!("vendor/uPlot.min.css"),
    "\n",
    include_str!("page.css")
);

/// The script of both pages.
pub const SCRIPT: &str = concat!(
    // Paper is finer than most screens, and the library draws as finely as the screen is.
    "if (devicePixelRatio < 2) devicePixelRatio = 2;\n/*\n",
    // Reports are copies of the library too.
    include_str!("vendor/LICENSE"),
    "*/\n",
    include_str!("vendor/uPlot.iife.min.js"),
    "\n",
    include_str!("model.js"),
    include_str!("chart.js"),
    include_str!("page.js")
);

/// The page of a report: one document that needs nothing from elsewhere.
#[must_use]
pub fn page(report: &Report<'_>) -> String {
    // It says that the page can load nothing and send nothing, whatever is in it.
    let policy = include_str!("policy.html");
    let head = format!("{policy}<style>{STYLE}</style>");
    let script = format!("<script>{SCRIPT}</script>");
    document(&report.title, &head, &data::of_report(report), &script)
}

/// The page that draws what `/events` of its host sends, and finds [`STYLE`] and [`SCRIPT`] beside itself.
#[must_use]
pub fn live_page() -> String {
    let head = "<link rel=\"stylesheet\" href=\"/page.css\">";
    let script = "<script src=\"/page.js\"></script>";
    document("memvisor", head, &data::of_live_page(), script)
}

/// What the live page is sent: a run of one sample, as JSON in a line. Its moment is the age of the daemon, which begins
/// anew when another daemon answers.
#[must_use]
pub fn event(status: &HostStatus) -> String {
    let mut recording = Recording::default();
    recording.push(status.uptime_ms, status, &BTreeMap::new());
    data::of_sample(&recording)
}

fn document(title: &str, head: &str, data: &str, script: &str) -> String {
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n{head}</head>\n\
         <body><noscript>This page draws its charts by a script, which the browser has not run.</noscript>\n\
         <main id=\"page\"></main>\n<script type=\"application/json\" id=\"data\">{data}</script>\n\
         {script}</body></html>\n"
    )
}

#[cfg(test)]
mod tests;
