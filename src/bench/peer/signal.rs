//! The least that a fault can cost when its own thread serves it: a signal, and a handler that makes one
//! system call. There is no daemon, no page table, no accounting and nothing to decompress.
//!
//! It runs in a process of its own, because a signal handler belongs to the whole process.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::ValueEnum;

use super::super::content::Dice;
use super::super::driven::{Touches, nanoseconds};
use super::super::{BenchError, Setup};
use crate::sys::{Memfd, SelfServed};
use crate::units::{PAGE_SIZE, PageBuf};

/// Its name in reports.
pub(crate) const NAME: &str = "signal";

/// What the handler does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Remedy {
    /// Fill a hole with a copy of a prepared page, as at the end of a refill.
    Copy,
    /// Map a prepared page over one that can only be read, as at the end of a break.
    Map,
}

/// Has a process touch `pages` pages in random order.
pub(crate) fn faults(setup: &Setup<'_>, remedy: Remedy, pages: u32) -> Result<Touches, BenchError> {
    let output = Command::new(&setup.program)
        .args(["bench-signal", &remedy.to_string(), &pages.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .process_group(0)
        .output()
        .map_err(BenchError::io("start a process with faults of its own"))?;
    if !output.status.success() {
        return Err(BenchError::GuestEnded(NAME.to_owned()));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| BenchError::io("understand a process")(error.into()))
}

/// What that process does; how long its accesses took.
pub(crate) fn run(remedy: Remedy, pages: u32) -> Result<Touches, BenchError> {
    const BYTE: u8 = 0x5a;
    let io = BenchError::io("serve faults by a signal handler");
    let content = PageBuf([BYTE; PAGE_SIZE]);
    let memory = match remedy {
        Remedy::Copy => SelfServed::of_copies(pages, Box::new(PageBuf([BYTE; PAGE_SIZE]))),
        Remedy::Map => Memfd::create("memvisor-bench-copies", pages).and_then(|file| {
            (0..pages).try_for_each(|page| file.write_page(page, &content))?;
            SelfServed::of_mappings(file)
        }),
    };
    let memory = memory.map_err(io)?;
    let time = |page| {
        let start = Instant::now();
        match remedy {
            Remedy::Copy => drop(std::hint::black_box(memory.touch(page))),
            Remedy::Map => memory.poke(page, u64::from_ne_bytes([BYTE; 8])),
        }
        nanoseconds(start)
    };
    let order = Dice::new(1, 3).order(pages);
    let times: Vec<u64> = order.into_iter().map(time).collect();
    let mut found = PageBuf::zeroed();
    let is_wrong = |page: &u32| {
        memory.read(*page, &mut found);
        found != content
    };
    match (0..pages).filter(is_wrong).count() {
        0 => Ok(times.into()),
        wrong => Err(BenchError::Corrupt {
            name: NAME.to_owned(),
            pages: wrong as u64,
        }),
    }
}
