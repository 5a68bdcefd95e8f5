//! `memvisor balloon laws`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::cli::exit::{Exit, UsageError};
use crate::cli::{print, table, values};
use crate::incident::{self, HEAD, Incident, Outcome, as_it_was, row};
use crate::policy::{Law, law};
use crate::settings::{HostSettings, Key, Layer, Layers, Profile, nearest};

#[derive(Debug, Args)]
pub(super) struct LawsArgs {
    /// The control laws [default: all].
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = of_name)]
    law: Vec<&'static dyn Law>,

    /// Run this incident, or all; may be given several times.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "all",
        value_delimiter = ','
    )]
    incident: Vec<String>,

    /// A setting of the host, such as Memvisor.PidIntegral=100; may be given more than once.
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::pair)]
    set: Vec<(Key, String)>,

    /// List laws and incidents.
    #[arg(long)]
    list: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// Write the runs of one incident to this file too, as a page with charts.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A law, by its name.
fn of_name(name: &str) -> Result<&'static dyn Law, String> {
    law::named(name).map_err(|error| {
        let near = nearest(name, law::NAMES.iter().copied());
        let near = near.first().map(|near| format!(" (`{near}`?)"));
        format!("{error}{}", near.unwrap_or_default())
    })
}

pub(super) fn run(args: &LawsArgs) -> anyhow::Result<Exit> {
    if args.list {
        print(&list())?;
        return Ok(Exit::Success);
    }
    let incidents = args.incidents()?;
    if args.html.is_some() && incidents.len() != 1 {
        let text = "--html shows one incident: name it with --incident";
        return Err(UsageError(text.to_owned()).into());
    }
    let settings = args.settings()?;
    let laws = if args.law.is_empty() {
        law::ALL
    } else {
        &args.law
    };
    let outcomes: Vec<Outcome> = (incidents.iter())
        .flat_map(|incident| {
            let of_law = laws
                .iter()
                .map(|law| incident::run(incident, *law, &settings));
            let was = std::iter::once_with(|| as_it_was(incident, &settings));
            of_law.chain(was).collect::<Vec<_>>()
        })
        .collect();
    if let Some(path) = &args.html {
        let command = format!("memvisor balloon laws --incident {}", incidents[0].name);
        let page = incident::page(&outcomes, &command);
        std::fs::write(path, page).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&outcomes)?))?;
    } else {
        print(&text(&outcomes))?;
    }
    Ok(Exit::Success)
}

impl LawsArgs {
    fn incidents(&self) -> Result<Vec<&'static Incident>, UsageError> {
        let mut chosen = Vec::new();
        for name in &self.incident {
            if name == "all" {
                return Ok(incident::ALL.iter().collect());
            }
            let found = incident::ALL.iter().find(|incident| incident.name == name);
            chosen.push(found.ok_or_else(|| unknown(name))?);
        }
        Ok(chosen)
    }

    fn settings(&self) -> Result<HostSettings, UsageError> {
        let mut layer = Layer::default();
        for (key, value) in &self.set {
            if *key == Key::BalloonLaw {
                let text = "Memvisor.BalloonLaw is what --law chooses here";
                return Err(UsageError(text.to_owned()));
            }
            let put = layer.put(key.spec().name, value);
            put.map_err(|error| UsageError(error.to_string()))?;
        }
        Ok(Layers::new(Profile::default(), Layer::default(), layer).effective())
    }
}

fn unknown(name: &str) -> UsageError {
    let near = nearest(name, incident::NAMES.iter().copied());
    let near = near.first().map(|near| format!(" (`{near}`?)"));
    let all = incident::NAMES.join(", ");
    UsageError(format!(
        "there is no incident `{}`{}; allowed: all, {all}",
        name.escape_debug(),
        near.unwrap_or_default()
    ))
}

fn list() -> String {
    let laws = law::ALL.iter().map(|law| [law.name(), law.about()]);
    let incidents = incident::ALL.iter().flat_map(|incident| {
        let naive = incident.naive;
        [
            [incident.name.to_owned(), incident.about.to_owned()],
            [String::new(), incident.source.to_owned()],
            [
                String::new(),
                format!("({}) {}", naive.name(), naive.about()),
            ],
        ]
    });
    let laws: Vec<_> = laws.map(|row| row.map(str::to_owned)).collect();
    format!(
        "Laws\n{}\nIncidents\n{}",
        table::aligned(&laws),
        table::aligned(&incidents.collect::<Vec<_>>())
    )
}

fn text(outcomes: &[Outcome]) -> String {
    let head = std::iter::once("INCIDENT").chain(HEAD).map(str::to_owned);
    let mut rows: Vec<Vec<String>> = vec![head.collect()];
    rows.extend(outcomes.iter().map(|outcome| {
        let cells = row(outcome);
        std::iter::once(outcome.incident.to_owned())
            .chain(cells)
            .collect()
    }));
    table::labelled(&rows)
}
