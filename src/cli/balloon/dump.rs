//! `memvisor balloon dump`.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use crate::cli::exit::Exit;
use crate::cli::{complain, print};
use crate::laboratory::dump;
use crate::laboratory::tape::{Tape, TapeError};

#[derive(Debug, Args)]
pub(super) struct DumpArgs {
    /// The recording.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// Write the recording there for Wireshark, and print nothing.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pcapng: Option<PathBuf>,
}

/// Reads a recording.
pub(super) fn load(path: &Path) -> anyhow::Result<Tape> {
    let read = |source| TapeError::Read {
        path: path.to_owned(),
        source,
    };
    let file = fs::read(path).map_err(read)?;
    Tape::read(&file).with_context(|| format!("cannot read `{}`", path.display()))
}

pub(super) fn run(args: &DumpArgs) -> anyhow::Result<Exit> {
    let tape = load(&args.file)?;
    if let Some(path) = &args.pcapng {
        write_pcapng(&tape, path).with_context(|| format!("cannot write `{}`", path.display()))?;
    } else if args.json {
        print(&(dump::object(&tape).to_string() + "\n"))?;
    } else {
        print(&dump::text(&tape))?;
    }
    if tape.stop.is_whole() {
        return Ok(Exit::Success);
    }
    complain(&format!("`{}` is {}", args.file.display(), tape.stop));
    Ok(Exit::Failure)
}

fn write_pcapng(tape: &Tape, path: &Path) -> anyhow::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    dump::pcapng(tape, &mut file)?;
    Ok(file.flush()?)
}
