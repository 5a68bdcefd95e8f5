//! The status of VMs as text for people.

use std::fmt::Display;

use super::share;
use crate::telemetry::{Health, HostStatus, MachineStatus, VmRates, VmStatus};
use crate::units::{Bytes, Pages};

/// A line for each VM under a header, and how the host is.
pub(super) fn vm_list(host: &HostStatus) -> String {
    let mut text = format!(
        "{:<20} {:>4} {:>8} {:<7} {:>10} {:>10} {:>10}  {}\n",
        "NAME", "ID", "PID", "HEALTH", "SIZE", "CONSUMED", "BALLOON", "WORKLOAD"
    );
    for vm in &host.vms {
        text += &format!(
            "{:<20} {:>4} {:>8} {:<7} {:>10} {:>10} {:>10}  {}\n",
            vm.name,
            vm.id,
            vm.pid,
            vm.health.reading,
            vm.configured_pages.bytes(),
            vm.consumed_pages.bytes(),
            vm.balloon.size_pages.bytes(),
            vm.workload.escape_debug(),
        );
    }
    text += &format!("machine: {}\n", machine(&host.machine));
    text + &format!("host: {}\n", health(&host.health))
}

/// What the host runs on, and what runs on it beside the budget.
fn machine(machine: &MachineStatus) -> String {
    let known = |bytes: Option<Bytes>| bytes.map_or("?".to_owned(), |bytes| bytes.to_string());
    let mut text = format!("{} of memory", known(machine.memory_bytes));
    if let (Some(limit), Some(group)) = (machine.limit_bytes, &machine.cgroup) {
        text += &format!(", {limit} for cgroup {group}");
    }
    text += &format!(
        "; --memory {}, beside it {} for the daemon and {} for guests' processes",
        machine.budget,
        known(machine.daemon_bytes),
        machine.guests_bytes,
    );
    if let Some(pressure) = &machine.pressure {
        let whose = match &pressure.cgroup {
            Some(group) => format!(" of cgroup {group}"),
            None => String::new(),
        };
        text += &format!(
            "; pressure{whose}: some {:.1} %, full {:.1} % of ten seconds",
            pressure.some.ten_seconds_percent, pressure.full.ten_seconds_percent,
        );
    }
    text
}

/// A reading and its reason.
pub(super) fn health(health: &Health) -> String {
    format!("{}: {}", health.reading, health.why)
}

/// Everything about one VM, a line for each subject. `law` is the control law of its host.
pub(super) fn vm(vm: &VmStatus, law: &str) -> String {
    let mut text = String::new();
    let mut row = |label: &str, value: &dyn Display| text += &format!("{label:<12} {value}\n");
    row("name", &vm.name);
    row(
        "process",
        &format!("pid {}, id {}, engine {}", vm.pid, vm.id, vm.engine),
    );
    row("workload", &vm.workload.escape_debug());
    row("uptime", &format!("{} s", vm.uptime_ms / 1000));
    row("health", &health(&vm.health));
    row("size", &vm.configured_pages.bytes());
    for (home, pages) in vm.homes.each() {
        row(&format!("  {home}"), &sized(pages));
    }
    row("granted", &sized(vm.granted_pages));
    row("consumed", &sized(vm.consumed_pages));
    row("shares save", &sized(vm.saved_pages));
    row(
        "writes cost",
        &format!(
            "{} if it wrote all its shared pages",
            sized(vm.break_cost_pages)
        ),
    );
    row("overhead", &sized(vm.overhead_pages));
    row("zip cache", &zip(vm));
    row("credits", &sized(vm.credit_pages));
    row("kernel says", &sized(vm.kernel_pages));
    let own = vm
        .process_bytes
        .map_or("?".to_owned(), |own| own.to_string());
    row(
        "its process",
        &format!("{own} beside its RAM, not in the budget"),
    );
    if let Some(processor) = vm.placed_on {
        row(
            "placed",
            &format!("on processor {processor}, because another was crowded"),
        );
    }
    row("allocation", &allocation(vm));
    row("active", &activity(vm));
    row("balloon", &balloon(vm, law));
    row("  agents", &session(vm));
    row("guest says", &guest(vm));
    row("swap", &swap(vm));
    row("  host cache", &host_cache(vm));
    row("  lately", &moved(&vm.rates));
    row("faults", &faults(vm));
    row("latency", &latency(vm));
    row("stalled", &stalled(vm));
    row("  threads", &stalls(vm));
    row("sharing", &"");
    for (reason, text) in share::reasons(&vm.sharing) {
        row(&format!("  {reason}"), &text);
    }
    row("scanned", &scanned(vm));
    row("evicted", &evicted(vm));
    row("large pages", &large(vm));
    row("mappings", &format!("{} of {}", vm.vmas, vm.vma_budget));
    row("blocked", &yes(vm.blocked));
    row("salted", &yes(vm.salt_set));
    text
}

fn large(vm: &VmStatus) -> String {
    let large = &vm.large;
    let (pages, made, broken) = (sized(large.pages), large.made, large.broken);
    format!("{pages}; {made} made, {broken} broken")
}

fn allocation(vm: &VmStatus) -> String {
    let limit = vm.allocation.limit_pages;
    format!(
        "target {}, entitled to {}, reservation {}, limit {}, {} shares",
        vm.allocation.target_pages.bytes(),
        vm.allocation.entitlement_pages.bytes(),
        vm.allocation.reservation_pages.bytes(),
        limit.map_or_else(|| "none".to_owned(), |pages| pages.bytes().to_string()),
        vm.allocation.shares,
    )
}

fn activity(vm: &VmStatus) -> String {
    let activity = &vm.activity;
    let Some(active) = activity.active_pages else {
        return "not known yet".to_owned();
    };
    let referenced = activity.referenced_pages.map_or_else(
        || "not asked yet".to_owned(),
        |pages| pages.bytes().to_string(),
    );
    format!(
        "{} ({} %: slow {}, fast {}, next {}); page tables: {referenced}",
        active.bytes(),
        activity.active_percent,
        activity.slow_percent,
        activity.fast_percent,
        activity.next_percent,
    )
}

fn balloon(vm: &VmStatus, law: &str) -> String {
    let balloon = &vm.balloon;
    let policy = format!("the policy (law {law})");
    format!(
        "{}, target {} set by {}, max {}, agent {}; {} pages paged twice",
        balloon.size_pages.bytes(),
        balloon.target_pages.bytes(),
        balloon.manual_pages.map_or(policy.as_str(), |_| "hand"),
        balloon.max_pages.bytes(),
        if balloon.agent {
            "connected"
        } else {
            "missing"
        },
        balloon.double_paged,
    )
}

/// What the sessions with its agents have seen.
fn session(vm: &VmStatus) -> String {
    let session = &vm.balloon.session;
    format!(
        "gave {} pages, took {}, reported {} free, {} refused, {} outside of RAM; {} resets, {} reliefs, {} mismatches, \
         {} throttled",
        session.inflated_pages.0,
        session.deflated_pages.0,
        session.reported_pages.0,
        session.refused_pages.0,
        session.invalid_pages.0,
        session.resets,
        session.reliefs,
        session.mismatches,
        session.throttles,
    )
}

fn guest(vm: &VmStatus) -> String {
    let guest = &vm.guest;
    let said = |value: Option<Bytes>| value.map_or("?".to_owned(), |value| value.to_string());
    format!(
        "{} of {} free, {} file cache, paged {} in and {} out, {} killed for want of memory",
        said(guest.free_bytes),
        said(guest.total_bytes),
        said(guest.cache_bytes),
        said(guest.swap_in_bytes),
        said(guest.swap_out_bytes),
        (guest.oom_kills).map_or("?".to_owned(), |kills| kills.to_string()),
    )
}

fn zip(vm: &VmStatus) -> String {
    let zip = &vm.zip;
    let (limit, cap) = (zip.limit_pages.bytes(), zip.cap_pages.bytes());
    let mut text = format!("{}, limit {limit} of {cap}", sized(vm.zip_pages));
    if zip.oldest_save_us > 0 || zip.ram_saves_us > 0 {
        text += &format!(
            ": a MiB of its oldest saves {} us/s, of RAM {} us/s",
            zip.oldest_save_us, zip.ram_saves_us
        );
    }
    text
}

fn swap(vm: &VmStatus) -> String {
    let swap = &vm.swap;
    let back = match swap.unswap_rate {
        0 => String::new(),
        rate => format!("; {}/s come back", Pages(rate.into()).bytes()),
    };
    format!(
        "{} slots, target {}, {} in by {} reads, {} out by {} writes{back}",
        swap.slots,
        swap.target_pages.bytes(),
        swap.in_bytes,
        swap.reads,
        swap.out_bytes,
        swap.writes,
    )
}

fn host_cache(vm: &VmStatus) -> String {
    let swap = &vm.swap;
    format!(
        "{}, {} in, {} out; {} demoted",
        sized(swap.cached_pages),
        swap.cache_in_bytes,
        swap.cache_out_bytes,
        Pages(swap.demoted).bytes(),
    )
}

/// What the stores took and gave in the latest seconds.
fn moved(rates: &VmRates) -> String {
    let each = |bytes: f64| format!("{:.2} MiB/s", bytes / 1_048_576.0);
    format!(
        "swapped {} in, {} out; compressed {}, decompressed {}",
        each(rates.swap_in_bytes_per_s),
        each(rates.swap_out_bytes_per_s),
        each(rates.zip_bytes_per_s),
        each(rates.unzip_bytes_per_s),
    )
}

fn faults(vm: &VmStatus) -> String {
    let faults = &vm.faults;
    format!(
        "{} first touch, {} from zip, {} from swap, {} copy-on-write, {} popped; {} parked",
        faults.first_touch,
        faults.refill_zip,
        faults.refill_swap,
        faults.cow_break,
        faults.pop,
        faults.parked,
    )
}

fn latency(vm: &VmStatus) -> String {
    vm.faults.latency.map_or_else(
        || "no fault yet".to_owned(),
        |latency| format!("p50 {} us, p99 {} us", latency.p50_us, latency.p99_us),
    )
}

/// Microseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "milliseconds are shown")]
fn seconds(micros: u64) -> String {
    format!("{:.3} s", micros as f64 / 1e6)
}

fn stalled(vm: &VmStatus) -> String {
    let stalls = &vm.stalls;
    format!(
        "{}, {:.2} % of the latest seconds, {:.2} % of a minute",
        seconds(stalls.stalled_us),
        stalls.latency_percent,
        stalls.latency_minute_percent,
    )
}

/// How long its threads stood still, by cause.
fn stalls(vm: &VmStatus) -> String {
    let causes = vm
        .stalls
        .each()
        .map(|(cause, micros)| format!("{} {cause}", seconds(micros)));
    let own = vm
        .guest
        .swap_wait_us
        .map_or_else(|| "?".to_owned(), seconds);
    format!("{}; {own} at its own swap disk, it says", causes.join(", "))
}

fn scanned(vm: &VmStatus) -> String {
    let scan = &vm.scan;
    format!(
        "{} pages in {} passes, {} merged, {} attached, {} zero, {} changed too often; {}",
        scan.pages_scanned,
        scan.passes,
        scan.merged,
        scan.attached,
        scan.zero_found,
        scan.volatile,
        if scan.settled { "settled" } else { "goes on" },
    )
}

fn evicted(vm: &VmStatus) -> String {
    let evict = &vm.evict;
    format!(
        "{} zero, {} shared, {} compressed, {} swapped; {} incompressible, {} spilled, {} given up; \
         {} were cold, of which {} came back; {} came back early",
        evict.to_zero,
        evict.to_shared,
        evict.to_zip,
        evict.to_swap,
        evict.incompressible,
        evict.spilled,
        evict.given_up,
        evict.cold,
        evict.cold_back,
        evict.early_refaults,
    )
}

fn sized(pages: Pages) -> String {
    format!("{} ({} pages)", pages.bytes(), pages.0)
}

const fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::fixture;

    #[test]
    fn vm_shows_each_home_and_counter() {
        let text = vm(&fixture::host().vms[0], "pid");
        for part in [
            "  resident   70.0 MiB (17920 pages)",
            "target 110.0 MiB set by the policy (law pid), max 166.0 MiB, agent connected",
            "(1280 pages), limit 12.0 MiB of 64.0 MiB: a MiB of its oldest saves 4 us/s, of RAM 920 us/s",
            "health       hmm: the host swaps: 0.0 KiB/s in, 512.0 KiB/s out",
            "  lately     swapped 0.00 MiB/s in, 0.50 MiB/s out; compressed 0.00 MiB/s",
            "shares save  30.0 MiB (7680 pages)",
            "overhead     1.0 MiB (256 pages)",
            "target 120.0 MiB, entitled to 130.0 MiB, reservation 16.0 MiB",
            "  agents     gave 26000 pages, took 400, reported 90 free, 12 refused, 1 outside of RAM; 2 resets, 5 reliefs, \
             3 mismatches, 7 throttled",
            "p50 11 us, p99 240 us",
            "2000 compressed, 1000 swapped; 900 incompressible, 100 spilled, 0 given up; 1400 were cold, of which 30 came back; 80 came back early",
            "mappings     120 of 8000",
            "stalled      2.800 s, 12.34 % of the latest seconds, 5.06 % of a minute",
            "0.331 s first touch, 0.004 s from zip, 0.000 s from swap, 0.001 s copy-on-write",
            "2.500 s blocked, 0.061 s no memory, 0.001 s busy; ? at its own swap disk",
        ] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
    }

    #[test]
    fn list_has_a_line_for_each_vm_and_no_control_characters() {
        let mut host = fixture::host();
        host.vms[0].workload = "\x1b[2J".to_owned();
        let text = vm_list(&host);
        assert_eq!(text.lines().count(), 5);
        let machine = "machine: 8.00 GiB of memory, 352.0 MiB for cgroup /sys/fs/cgroup/memvisor; --memory auto, beside \
                       it 14.0 MiB for the daemon and 6.0 MiB for guests' processes; pressure: some 1.5 %, full 0.5 % of ten \
                       seconds";
        assert!(text.contains(machine), "{text}");
        let told = "host: oops: VM database-primary-01: it must wait";
        assert!(text.contains(" hmm ") && text.contains(told), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
    }
}
