//! `memvisor trace`.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::complain;
use super::exit::{Exit, UsageError};
use crate::trace::format::{Event, PoolFacts, Pools, What};
use crate::trace::{Block, Reader, Record, Stop};
use crate::units::Pages;

#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    #[command(subcommand)]
    command: TraceCommand,
}

#[derive(Debug, Subcommand)]
enum TraceCommand {
    /// Print what is in a trace, as far as it is whole.
    Dump(DumpArgs),
}

#[derive(Debug, Args)]
struct DumpArgs {
    /// The trace.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Print a JSON object a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &TraceArgs) -> anyhow::Result<Exit> {
    let TraceCommand::Dump(args) = &args.command;
    let file = args.file.display();
    let open = File::open(&args.file).with_context(|| format!("cannot read `{file}`"))?;
    let stopped = |stop: &Stop| format!("{file}: {stop}");
    let reader = Reader::new(BufReader::new(open));
    let reader = reader.map_err(|stop| UsageError(stopped(&stop)))?;
    let mut out = BufWriter::new(io::stdout().lock());
    let print: fn(&mut dyn Write, &Block) -> io::Result<()> =
        if args.json { as_json } else { as_text };
    for block in reader {
        match block {
            Ok(block) => print(&mut out, &block)?,
            Err(stop) => {
                out.flush()?;
                complain(&format!("{}; what is before it is printed", stopped(&stop)));
                return Ok(Exit::Failure);
            }
        }
    }
    out.flush()?;
    Ok(Exit::Success)
}

/// A block or an event in JSON. VM 0 is the host.
#[derive(Serialize)]
struct Line<T> {
    vm: u32,
    #[serde(flatten)]
    what: T,
}

/// A block that is not of events.
#[derive(Serialize)]
struct Facts<T> {
    at_us: u64,
    what: &'static str,
    #[serde(flatten)]
    facts: T,
}

fn as_json(out: &mut dyn Write, block: &Block) -> io::Result<()> {
    if let Record::Events(events) = &block.record {
        for event in events {
            line(out, block, event)?;
        }
        return Ok(());
    }
    let what = name(&block.record);
    let at_us = block.at_us;
    match &block.record {
        Record::Host(facts) => line(out, block, Facts { at_us, what, facts }),
        Record::Vm(facts) => line(out, block, Facts { at_us, what, facts }),
        Record::Gone(facts) => line(out, block, Facts { at_us, what, facts }),
        Record::Lost(facts) => line(out, block, Facts { at_us, what, facts }),
        Record::End(facts) => line(out, block, Facts { at_us, what, facts }),
        Record::Pools(facts) => line(out, block, Facts { at_us, what, facts }),
        Record::Events(_) => Ok(()),
    }
}

fn line(out: &mut dyn Write, block: &Block, what: impl Serialize) -> io::Result<()> {
    let vm = block.vm.0;
    serde_json::to_writer(&mut *out, &Line { vm, what })?;
    writeln!(out)
}

const fn name(record: &Record) -> &'static str {
    match record {
        Record::Host(_) => "host",
        Record::Vm(_) => "vm",
        Record::Gone(_) => "gone",
        Record::Events(_) => "events",
        Record::Lost(_) => "lost",
        Record::End(_) => "end",
        Record::Pools(_) => "pools",
    }
}

fn as_text(out: &mut dyn Write, block: &Block) -> io::Result<()> {
    let Record::Events(events) = &block.record else {
        return facts_as_text(out, block);
    };
    let Block { vm, at_us, .. } = block;
    writeln!(
        out,
        "{}  vm {vm}  {} events in {} bytes",
        seconds(*at_us),
        events.len(),
        block.bytes
    )?;
    events
        .iter()
        .try_for_each(|event| event_as_text(out, event))
}

fn event_as_text(out: &mut dyn Write, event: &Event) -> io::Result<()> {
    let (at, gfn) = (seconds(event.at_us), event.gfn);
    match event.what {
        What::Moved { from, to } => writeln!(out, "{at}  gfn {gfn:#x}  {from} -> {to}"),
        What::Accessed => writeln!(out, "{at}  gfn {gfn:#x}  accessed"),
        What::Compressed { bytes } => writeln!(out, "{at}  gfn {gfn:#x}  compresses to {bytes}"),
        What::Hashed { class } => writeln!(out, "{at}  gfn {gfn:#x}  is of class {class:08x}"),
    }
}

fn facts_as_text(out: &mut dyn Write, block: &Block) -> io::Result<()> {
    let facts = match &block.record {
        Record::Host(host) => {
            let settings = host.settings.iter();
            let settings = settings.map(|(name, value)| format!("\n    {name} = {value}"));
            format!(
                "memvisor {}, {} of memory, {} used without VMs, policy {}{}",
                host.version,
                host.memory.bytes(),
                host.overhead.bytes(),
                host.policy,
                settings.collect::<String>()
            )
        }
        Record::Vm(vm) => format!(
            "{}: {} pages, {} shares, {} reserved, limit {}{}",
            vm.name,
            vm.pages,
            vm.shares,
            vm.reservation.bytes(),
            limit(vm.limit),
            match vm.pool.as_str() {
                "" => String::new(),
                pool => format!(", in resource pool {pool}"),
            }
        ),
        Record::Gone(stalls) => format!(
            "gone; its threads stood still for {} ms: first touches {}, cache {}, swap file {}, breaks {}, opened {}, \
             waits {}",
            stalls.sum_us() / 1000,
            stalls.first_touch_us / 1000,
            stalls.refill_zip_us / 1000,
            stalls.refill_swap_us / 1000,
            stalls.break_us / 1000,
            stalls.open_us / 1000,
            stalls.wait_us / 1000
        ),
        Record::Lost(lost) => format!("{} events are missing", lost.events),
        Record::End(end) => format!("the end: {}", end.why),
        Record::Pools(Pools { pools }) => {
            let pools = pools
                .iter()
                .map(|pool| format!("\n    {}", pool_as_text(pool)));
            format!("resource pools{}", pools.collect::<String>())
        }
        Record::Events(_) => String::new(),
    };
    let whose = match block.vm.0 {
        0 => "host".to_owned(),
        vm => format!("vm {vm}"),
    };
    writeln!(out, "{}  {whose}  {facts}", seconds(block.at_us))
}

fn limit(limit: Option<Pages>) -> String {
    limit.map_or("none".to_owned(), |limit| limit.bytes().to_string())
}

fn pool_as_text(pool: &PoolFacts) -> String {
    let is = |truth| if truth { "yes" } else { "no" };
    let own = pool.parent.as_ref().map(|parent| {
        format!(
            "in {parent}, {} shares, {} reserved, limit {}, expandable {}, ",
            pool.shares,
            pool.reservation.bytes(),
            limit(pool.limit),
            is(pool.expandable)
        )
    });
    format!(
        "{}: {}scalable shares {}",
        pool.name,
        own.unwrap_or_default(),
        is(pool.scalable)
    )
}

fn seconds(at_us: u64) -> String {
    format!("{:>6}.{:06}", at_us / 1_000_000, at_us % 1_000_000)
}
