//! `memvisor pool`: the resource pools of a running host.

use clap::{Args, Subcommand};

use super::exit::{Exit, UsageError};
use super::vm::{ClientArgs, output};
use super::{print, table};
use crate::settings::{PoolPatch, PoolSettingsError, check_pool_name};
use crate::telemetry::{HostStatus, PoolStatus};
use crate::units::Pages;

#[derive(Debug, Args)]
pub(super) struct PoolArgs {
    #[command(subcommand)]
    request: Request,

    #[command(flatten)]
    common: ClientArgs,

    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Request {
    /// Add a resource pool.
    Add {
        /// Its name.
        #[arg(value_parser = name)]
        name: String,
        #[command(flatten)]
        settings: Settings,
    },
    /// Change settings of a resource pool, such as shares=high limit=128M; all of them or none. The value `default`
    /// takes back what was set by hand, and the word `default` alone all of that. `root` has only scalable-shares.
    Set {
        /// The pool.
        #[arg(value_parser = name)]
        name: String,
        /// parent, shares, reservation, limit, expandable or scalable-shares, and the value.
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
    },
    /// List the resource pools with their VMs, as a tree.
    Ls,
    /// Remove a resource pool in which nothing is.
    Rm {
        /// The pool.
        #[arg(value_parser = name)]
        name: String,
    },
}

/// The settings of a new pool. The text is read where all settings of pools are.
#[derive(Debug, Args)]
struct Settings {
    /// The pool that it stands in [default: root].
    #[arg(long, value_name = "NAME")]
    parent: Option<String>,

    /// Its weight against the VMs and pools beside it: low, normal, high or a number [default: normal].
    #[arg(long, value_name = "SHARES")]
    shares: Option<String>,

    /// Memory that is guaranteed to those in it together [default: 0].
    #[arg(long, value_name = "SIZE")]
    reservation: Option<String>,

    /// Memory that those in it never exceed together, or unlimited [default: unlimited].
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    limit: Option<String>,

    /// Whether reservations in it that exceed its own are taken from its parent [default: yes].
    #[arg(long, value_name = "yes|no")]
    expandable: Option<String>,

    /// Whether the shares of the pools directly in it grow with what is in these [default: no].
    #[arg(long, value_name = "yes|no")]
    scalable_shares: Option<String>,
}

impl Settings {
    fn patch(&self) -> Result<PoolPatch, PoolSettingsError> {
        let mut patch = PoolPatch::default();
        for (key, text) in [
            ("parent", &self.parent),
            ("shares", &self.shares),
            ("reservation", &self.reservation),
            ("limit", &self.limit),
            ("expandable", &self.expandable),
            ("scalable-shares", &self.scalable_shares),
        ] {
            if let Some(text) = text {
                patch.put(key, text)?;
            }
        }
        Ok(patch)
    }
}

fn name(text: &str) -> Result<String, String> {
    check_pool_name(text).map_err(|error| error.in_full())?;
    Ok(text.to_owned())
}

pub(super) fn run(args: PoolArgs) -> anyhow::Result<Exit> {
    let patch = args.request.patch()?;
    let client = args.common.client()?;
    match args.request {
        Request::Add { name, .. } => output(&client.add_pool(&name, &patch)?, args.json, one)?,
        Request::Set { name, .. } => output(&client.set_pool(&name, &patch)?, args.json, one)?,
        Request::Ls if args.json => output(&client.pools()?, true, |_| String::new())?,
        Request::Ls => print(&tree(&client.status()?))?,
        Request::Rm { name } => client.remove_pool(&name)?,
    }
    Ok(Exit::Success)
}

impl Request {
    /// The settings to change. A fault in them counts as a wrong command line.
    fn patch(&self) -> Result<PoolPatch, UsageError> {
        let patch = match self {
            Self::Add { settings, .. } => settings.patch(),
            Self::Set { settings, .. } => {
                PoolPatch::from_words(settings.iter().map(String::as_str))
            }
            Self::Ls | Self::Rm { .. } => Ok(PoolPatch::default()),
        };
        patch.map_err(|error| UsageError(error.in_full()))
    }
}

fn size(pages: Pages) -> String {
    pages.bytes().to_string()
}

fn limit(pool: &PoolStatus) -> String {
    pool.limit_pages.map_or_else(|| "none".to_owned(), size)
}

const fn yes(truth: bool) -> &'static str {
    if truth { "yes" } else { "no" }
}

/// The settings of a pool in force, in a line.
fn one(pool: &PoolStatus) -> String {
    let place = pool.parent.as_ref().map(|parent| {
        format!(
            "in {parent}, {} shares, reservation {}, limit {}, expandable {}, ",
            pool.shares,
            size(pool.reservation_pages),
            limit(pool),
            yes(pool.expandable),
        )
    });
    format!(
        "{}: {}scalable shares {}; {} unreserved\n",
        pool.name,
        place.unwrap_or_default(),
        yes(pool.scalable_shares),
        size(pool.unreserved_pages),
    )
}

const HEAD: [&str; 8] = [
    "POOL",
    "SHARES",
    "RESERVED",
    "LIMIT",
    "PROMISED",
    "UNRESERVED",
    "HOLDS",
    "TARGET",
];

/// The pools and VMs, each below the pool that it is in.
fn tree(host: &HostStatus) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    if let Some(root) = host.pools.first() {
        below(host, root, 0, &mut rows);
    }
    let expandable = |pool: &&PoolStatus| pool.parent.is_some() && !pool.expandable;
    let fixed: Vec<&str> = host
        .pools
        .iter()
        .filter(expandable)
        .map(|pool| pool.name.as_str())
        .collect();
    let mut text = table::numbers(&rows);
    if !fixed.is_empty() {
        text += &format!("not expandable: {}\n", fixed.join(", "));
    }
    let scalable = host.pools.iter().filter(|pool| pool.scalable_shares);
    let scalable: Vec<&str> = scalable.map(|pool| pool.name.as_str()).collect();
    if !scalable.is_empty() {
        text += &format!("scalable shares in: {}\n", scalable.join(", "));
    }
    text
}

fn below(host: &HostStatus, pool: &PoolStatus, depth: usize, rows: &mut Vec<[String; HEAD.len()]>) {
    let indent = |depth: usize| "  ".repeat(depth);
    let is_root = pool.parent.is_none();
    let or_none = |text: String| if is_root { "-".to_owned() } else { text };
    let grown = if pool.counted_shares == pool.shares {
        pool.shares.to_string()
    } else {
        format!("{} (set {})", pool.counted_shares, pool.shares)
    };
    rows.push([
        format!("{}{}/", indent(depth), pool.name),
        or_none(grown),
        or_none(size(pool.reservation_pages)),
        or_none(limit(pool)),
        size(pool.promised_pages),
        size(pool.unreserved_pages),
        size(pool.allocated_pages),
        size(pool.target_pages),
    ]);
    for vm in host.vms.iter().filter(|vm| vm.pool == pool.name) {
        let limit = vm.allocation.limit_pages;
        rows.push([
            format!("{}{}", indent(depth + 1), vm.name),
            vm.allocation.shares.to_string(),
            size(vm.allocation.reservation_pages),
            limit.map_or_else(|| "none".to_owned(), size),
            "-".to_owned(),
            "-".to_owned(),
            size(vm.consumed_pages),
            size(vm.allocation.target_pages),
        ]);
    }
    let inner = host
        .pools
        .iter()
        .filter(|inner| inner.parent.as_ref() == Some(&pool.name));
    for inner in inner {
        below(host, inner, depth + 1, rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::fixture;

    #[test]
    fn tree_shows_vms_below_their_pools_and_what_is_left() {
        let text = tree(&fixture::host());
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let first: Vec<&str> = lines.iter().map(|line| line[0]).collect();
        assert_eq!(
            first,
            ["POOL", "root/", "database-primary-01", "prod/", "web"]
        );
        assert!(text.contains("\n    web "), "{text}");
        assert!(
            lines[3].contains(&"163840") && lines[3].contains(&"192.0"),
            "{text}"
        );
        let line = one(&fixture::host().pools[1]);
        assert!(
            line.contains("in root, 163840 shares, reservation 24.0 MiB"),
            "{line}"
        );
    }
}
