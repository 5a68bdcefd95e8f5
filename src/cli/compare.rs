//! `memvisor compare`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::exit::{Exit, UsageError};
use super::{complain, print, table};
use crate::chain::chain;
use crate::scenario::compare;

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// Results directories of `memvisor run`; of a single one, its variants are compared.
    #[arg(value_name = "DIR", required = true, num_args = 1..)]
    dirs: Vec<PathBuf>,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// Write the runs to this file too, as a page with their charts side by side.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(super) fn run(args: &CompareArgs) -> anyhow::Result<Exit> {
    let compared = compare::compare(&args.dirs);
    let (all, compared) = compared.map_err(|error| UsageError(chain(&error)))?;
    if compared.sides.is_empty() {
        let text = "nothing was measured there: the runs ended before they began";
        return Err(UsageError(text.to_owned()).into());
    }
    for unfinished in &compared.unfinished {
        complain(unfinished);
    }
    if let Some(path) = &args.html {
        let page = compare::page(&args.dirs, &all);
        let page = page.map_err(|error| UsageError(chain(&error)))?;
        std::fs::write(path, page).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&compared)?))?;
        return Ok(Exit::Success);
    }
    let mut rows = vec![head(&compared)];
    rows.extend(compared.rows.iter().map(compare::Row::cells));
    print(&table::aligned(&rows))?;
    if compared.sides.len() > 1 {
        print(
            "\nMedians, with the least and the most of the repetitions. x: by the first; ~: their spreads overlap, or \
             one is a\nsingle run, so the difference may be chance.\n",
        )?;
    }
    Ok(Exit::Success)
}

fn head(compared: &compare::Compared) -> Vec<String> {
    let name = |side: &String| match side.as_str() {
        "" => "MEDIAN".to_owned(),
        side => side.to_owned(),
    };
    let sides = compared.sides.iter().map(name);
    std::iter::once("FIGURE".to_owned()).chain(sides).collect()
}
