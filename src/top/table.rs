//! One row for each VM; the wider the screen, the more columns.

use super::bar;
use super::render::{Screen, count, mib, plain, speed};
use crate::telemetry::{HostStatus, Rates, VmRates, VmStatus};

/// Width of the name column.
const NAME_WIDTH: usize = 12;

/// The bar takes what the columns leave, but no more than this, so that bars stay comparable.
const BAR_MAX: usize = 40;

/// A column of numbers.
struct Column {
    title: &'static str,
    width: usize,
    /// The narrowest screen that shows it.
    from: usize,
    text: fn(&VmStatus, Option<&VmRates>) -> String,
}

const fn column(
    title: &'static str,
    width: usize,
    from: usize,
    text: fn(&VmStatus, Option<&VmRates>) -> String,
) -> Column {
    Column {
        title,
        width,
        from,
        text,
    }
}

/// The titles are those of esxtop where esxtop has the quantity. Sizes are in MiB; SWR/s and SWW/s are in MiB/s.
const COLUMNS: [Column; 17] = [
    column("HEALTH", 8, 0, |vm, _| vm.health.reading.to_string()),
    column("MEMSZ", 7, 0, |vm, _| mib(vm.configured_pages)),
    column("GRANT", 7, 0, |vm, _| mib(vm.granted_pages)),
    column("CNSM", 7, 0, |vm, _| mib(vm.consumed_pages)),
    column("SHRD", 7, 0, |vm, _| mib(vm.homes.shared_pages)),
    column("ZERO", 7, 88, |vm, _| mib(vm.homes.zero_pages)),
    column("ZIP", 7, 0, |vm, _| mib(vm.homes.compressed_pages)),
    column("SWCUR", 7, 0, |vm, _| mib(vm.homes.swapped_pages)),
    column("MCTLSZ", 7, 0, balloon_size),
    column("%ACTV", 7, 98, |vm, _| active(vm)),
    column("%LAT", 7, 98, latency),
    column("MCTLTGT", 8, 108, |vm, _| mib(vm.balloon.target_pages)),
    column("FLT/s", 7, 118, |_, rates| count(rates, |r| r.faults_per_s)),
    column("SZTGT", 7, 128, |vm, _| mib(vm.allocation.target_pages)),
    column("COW/s", 7, 148, |_, rates| count(rates, |r| r.breaks_per_s)),
    column("SWR/s", 7, 148, |_, rates| {
        speed(rates, |r| r.swap_in_bytes_per_s)
    }),
    column("SWW/s", 7, 148, |_, rates| {
        speed(rates, |r| r.swap_out_bytes_per_s)
    }),
];

/// The header and the rows of the table, one text for each. None is wider than the screen.
pub(super) fn rows(status: &HostStatus, rates: Option<&Rates>, screen: Screen) -> Vec<String> {
    let columns = || COLUMNS.iter().filter(|column| column.from <= screen.width);
    let taken: usize = NAME_WIDTH + columns().map(|column| column.width).sum::<usize>() + 1;
    let bar_width = screen.width.saturating_sub(taken).min(BAR_MAX);
    let mut header = format!("{:NAME_WIDTH$}", "NAME");
    for column in columns() {
        header += &format!("{:>1$}", column.title, column.width);
    }
    header += " HOMES";
    let mut rows = vec![clip(&header, screen.width)];
    for vm in &status.vms {
        let moved = rates.and_then(|rates| rates.vms.get(&vm.id));
        let mut row = format!("{:NAME_WIDTH$}", name(vm));
        for column in columns() {
            row += &format!("{:>1$}", (column.text)(vm, moved), column.width);
        }
        let row = clip(&row, screen.width);
        let bar = bar::bar(&vm.homes, bar_width, screen.colour);
        rows.push(format!("{row} {bar}"));
    }
    rows
}

/// The name, cut to its column, with a `!` if the VM is blocked.
fn name(vm: &VmStatus) -> String {
    let mark = if vm.blocked { "!" } else { "" };
    let name = plain(&vm.name);
    let room = NAME_WIDTH - mark.len();
    if name.chars().count() <= room {
        return name + mark;
    }
    let cut: String = name.chars().take(room - 1).collect();
    format!("{cut}…{mark}")
}

fn active(vm: &VmStatus) -> String {
    match vm.activity.active_pages {
        Some(_) => vm.activity.active_percent.to_string(),
        None => "-".to_owned(),
    }
}

/// The stalled time between two snapshots. With a single one, what the daemon says about the latest seconds.
fn latency(vm: &VmStatus, rates: Option<&VmRates>) -> String {
    let percent = rates.map_or(vm.stalls.latency_percent, |rates| rates.stalled_percent);
    format!("{percent:.1}")
}

fn balloon_size(vm: &VmStatus, _: Option<&VmRates>) -> String {
    if vm.balloon.agent {
        mib(vm.balloon.size_pages)
    } else {
        "-".to_owned()
    }
}

fn clip(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}
