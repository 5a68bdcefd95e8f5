//! `memvisor demo`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::exit::Exit;
use super::{print, values};
use crate::demo::DemoOptions;
use crate::host::EngineChoice;
use crate::units::Bytes;

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Memory that all guests together may use.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = values::memory)]
    memory: Bytes,

    /// The number of guests.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=64))]
    guests: u32,

    /// Memory of each guest.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = demo_guest)]
    guest_memory: Bytes,

    /// How long the guests run.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration)]
    duration: Duration,

    /// How guest memory is controlled, as for `memvisor host`.
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,

    /// Draw the screen on which most was saved as an SVG picture into this file.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,

    /// Print the result as JSON, and nothing else on standard output.
    #[arg(long)]
    json: bool,
}

/// Memory of a guest of the demo. Its workloads take fractions of that, so it has a least size.
fn demo_guest(text: &str) -> Result<Bytes, String> {
    let least = Bytes::from_mib(16);
    values::memory(text).and_then(|size| match size {
        _ if size < least => Err(format!("`{text}` is too small: at least {least}")),
        _ => Ok(size),
    })
}

impl DemoArgs {
    pub(super) fn options(&self) -> anyhow::Result<DemoOptions> {
        Ok(DemoOptions {
            program: std::env::current_exe().context("cannot find this executable")?,
            memory: self.memory,
            guests: self.guests,
            guest_memory: self.guest_memory,
            duration: self.duration,
            engine: self.engine,
            picture: self.picture.clone(),
            json: self.json,
        })
    }
}

pub(super) fn run(args: &DemoArgs) -> anyhow::Result<Exit> {
    let result = crate::demo::run(&args.options()?)?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&result)?))?;
    } else {
        print(&result.to_string())?;
    }
    Ok(Exit::Success)
}
