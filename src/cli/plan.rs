//! `memvisor plan`: the policy as a calculator.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::exit::{Exit, UsageError};
use super::phrases::{self, size};
use super::vm::output;
use super::{explained, print, table, values};
use crate::calculator::{Format, PoolReport, Report, Scenario, VmReport};
use crate::policy::{Policy, policies};
use crate::units::Pages;

/// The most bytes of a file: ten thousand VMs fit.
const FILE_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// The host and its VMs, in TOML or JSON; `-` is standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The policy [default: the file's, or that of its profile]; `memvisor policies` lists them.
    #[arg(long, value_name = "NAME", value_parser = policies::named)]
    policy: Option<&'static dyn Policy>,

    /// Explain what is decided about one VM, and what would change it.
    #[arg(long, value_name = "VM", value_parser = values::name)]
    why: Option<String>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &PlanArgs) -> anyhow::Result<Exit> {
    let (name, text) = read(&args.file)?;
    let format = Format::of(&args.file, &text);
    let scenario = Scenario::parse(&name, format, &text);
    let mut scenario = scenario.map_err(|error| UsageError(error.to_string()))?;
    scenario.policy = args.policy.unwrap_or(scenario.policy);
    let Some(vm) = &args.why else {
        output(&scenario.report(), args.json, decided)?;
        return Ok(Exit::Success);
    };
    let explained = scenario.explain(vm).ok_or_else(|| {
        let known = scenario.names.join(", ");
        UsageError(format!("there is no VM `{vm}` in {name}; allowed: {known}"))
    })?;
    if args.json {
        let mut value = serde_json::to_value(explained)?;
        value["name"] = vm.as_str().into();
        print(&format!("{}\n", serde_json::to_string_pretty(&value)?))?;
    } else {
        print(&explained::text(vm, &explained))?;
    }
    Ok(Exit::Success)
}

/// The name of the file for errors, and its text.
fn read(path: &Path) -> anyhow::Result<(String, String)> {
    let mut text = String::new();
    let (name, read) = if path == Path::new("-") {
        let name = "standard input".to_owned();
        (
            name,
            io::stdin().take(FILE_MAX + 1).read_to_string(&mut text),
        )
    } else {
        let file = File::open(path);
        let read = file.and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text));
        (path.display().to_string(), read)
    };
    read.with_context(|| format!("cannot read {name}"))?;
    if text.len() as u64 > FILE_MAX {
        let error = format!("{name} is longer than {FILE_MAX} bytes");
        return Err(UsageError(error).into());
    }
    Ok((name, text))
}

/// A plan for people.
fn decided(report: &Report) -> String {
    format!(
        "{}\n{}{}{}",
        host(report),
        pools(report),
        table::numbers(&rows(report)),
        legend(report)
    )
}

fn host(report: &Report) -> String {
    let thresholds = &report.thresholds_pages;
    let came = if report.state_before == report.state {
        String::new()
    } else {
        format!(" (it was {})", report.state_before)
    };
    let mut text = format!(
        "host       {} of memory, {} used, {} free; {} is no VM's\n",
        size(report.memory_pages),
        size(report.used_pages),
        size(report.free_pages),
        size(report.overhead_pages),
    );
    text += &format!("policy     {}\n", report.policy);
    text += &format!(
        "state      {}{came}: {}\n",
        report.state,
        phrases::actions(report.state, report.mechanisms)
    );
    text += &format!(
        "thresholds {}\n",
        phrases::thresholds(report.generation, thresholds)
    );
    text += &format!(
        "available  {} to all VMs, {} missing; {}\n",
        size(report.available_pages),
        size(report.shortfall_pages),
        report.price_pages_per_share.map_or_else(
            || "enough for what they want".to_owned(),
            |price| format!("a share buys {} of memory in use", phrases::price(price))
        )
    );
    if let Some(stuck) = report.stuck {
        text += &format!("stuck      {}\n", phrases::stuck(stuck));
    }
    if report.beyond_pages > Pages(0) {
        text += &format!(
            "note       the VMs hold {} more than there is, which no running host does. The \
             targets are where it\n           would come to rest if all VMs went on wanting that much\n",
            size(report.beyond_pages)
        );
    }
    text
}

const POOL_HEAD: [&str; 8] = [
    "POOL", "IN", "SHARES", "RESERVED", "LIMIT", "WANTS", "TARGET", "SHORT",
];

/// The resource pools, if there are any beside the root.
fn pools(report: &Report) -> String {
    if report.pools.len() < 2 {
        return String::new();
    }
    let row = |pool: &PoolReport| {
        let limit = pool.limit_pages.map_or_else(|| "none".to_owned(), size);
        let short = match (pool.limited, pool.price_pages_per_share) {
            (true, _) => "by a limit".to_owned(),
            (false, None) => "no".to_owned(),
            (false, Some(price)) => format!("a share buys {}", phrases::price(price)),
        };
        let or_none = |text: String| match pool.parent {
            Some(_) => text,
            None => "-".to_owned(),
        };
        [
            pool.name.clone(),
            pool.parent.clone().unwrap_or_else(|| "-".to_owned()),
            or_none(pool.shares.to_string()),
            or_none(size(pool.reservation_pages)),
            or_none(limit),
            size(pool.demand_pages),
            size(pool.target_pages),
            short,
        ]
    };
    let mut rows = vec![POOL_HEAD.map(str::to_owned)];
    rows.extend(report.pools.iter().map(row));
    format!("{}\n", table::numbers(&rows))
}

const HEAD: [&str; 13] = [
    "VM",
    "SHARES",
    "RESERVED",
    "LIMIT",
    "ACTIVE",
    "HOLDS",
    "SHARES/MiB",
    "TARGET",
    "BALLOON",
    "SWAP",
    "EVICT",
    "WAITS",
    "WHY",
];

fn rows(report: &Report) -> Vec<[String; HEAD.len()]> {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(report.vms.iter().map(row));
    rows
}

fn row(vm: &VmReport) -> [String; HEAD.len()] {
    let size = |pages| match pages {
        Pages(0) => "0".to_owned(),
        pages => size(pages),
    };
    let or = |pages: Option<Pages>, none: &str| pages.map_or_else(|| none.to_owned(), size);
    let way = |from, to| {
        if from == to {
            size(to)
        } else {
            format!("{} -> {}", size(from), size(to))
        }
    };
    let ratio = vm.shares_per_mib.map(|ratio| format!("{ratio:.2}"));
    [
        vm.name.clone(),
        vm.shares.to_string(),
        size(vm.reservation_pages),
        or(vm.limit_pages, "none"),
        or(vm.active_pages, "unknown"),
        size(vm.consumed_pages),
        ratio.unwrap_or_else(|| "-".to_owned()),
        size(vm.target_pages),
        way(vm.balloon_pages, vm.balloon_target_pages),
        way(vm.swap_pages, vm.swap_target_pages),
        size(vm.evict_pages),
        if vm.blocked { "yes" } else { "no" }.to_owned(),
        phrases::word(vm.why).to_owned(),
    ]
}

/// The meaning of the words in the last column.
fn legend(report: &Report) -> String {
    let mut seen = Vec::new();
    for vm in &report.vms {
        if !seen.contains(&vm.why) {
            seen.push(vm.why);
        }
    }
    let rows: Vec<[String; 2]> = seen
        .into_iter()
        .map(|why| [phrases::word(why), phrases::reason(why)].map(str::to_owned))
        .collect();
    format!("\n{}", table::aligned(&rows))
}
