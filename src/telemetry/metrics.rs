//! The status as metrics, for programs that watch many hosts.
//!
//! Prometheus and its kin want flat names, base units and the same names for ever, where the status nests, counts in
//! pages and microseconds, and gets a field whenever somebody needs one. If metrics were written by hand, one field after
//! the other, names, units, help and documentation would drift apart. So `TABLE` is plain data: each metric names the
//! fields of the status that it shows and what these count in, and the text ([`openmetrics`]) and the table in
//! docs/metrics.md follow from it. Tests hold it to the status: each field is shown, or left out with a reason.
//!
//! The text is OpenMetrics 1.0. The label `vm` is the name of the VM, `pool` that of the resource pool. Where a metric has several fields, one more label
//! tells them apart; its values are the names of the fields without their units.

use std::fmt::Write;

use serde_json::Value;

use super::HostStatus;
use crate::units::PAGE_SIZE;

/// The content type of [`openmetrics`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The beginning of the paths of fields that each VM has.
pub(super) const OF_VM: &str = "vms[].";

/// The beginning of the paths of fields that each resource pool has.
pub(super) const OF_POOL: &str = "pools[].";

/// What a metric is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Only grows while its VM lives.
    Counter,
    /// A state at the moment of the snapshot.
    Gauge,
    /// Text: the fields are labels, the value is 1.
    Info,
    /// One of some words: the value is 1 for the word that holds, and 0 for the others.
    StateSet(&'static [&'static str]),
}

/// What the fields of a metric count in, from which follows what the metric counts in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unit {
    /// Things, or a truth as 0 or 1.
    None,
    /// Pages to which something happened.
    Moves,
    /// Pages as an amount of memory, shown in bytes.
    Pages,
    Bytes,
    /// Shown in seconds, as microseconds are.
    Millis,
    Micros,
    /// Shown as a part of 1.
    Percent,
}

/// The field, or fields with the label that tells them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fields {
    Of(&'static str),
    By(&'static str, &'static [&'static str]),
}

/// A metric: a family of samples.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Metric {
    /// Its name, with its unit but without the `_total` of counters and the `_info` of texts.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) unit: Unit,
    pub(super) fields: Fields,
    pub(super) help: &'static str,
}

use Fields::{By, Of};
use Kind::{Counter, Gauge, Info, StateSet};
use Unit::{Bytes, Micros, Millis, Moves, None as Plain, Pages, Percent};

/// Declares [`TABLE`]; an entry is `kind name in unit, fields, help`.
macro_rules! metrics {
    ($($kind:expr, $name:literal, $unit:expr, $fields:expr, $help:literal;)+) => {
        /// All metrics, in the order in which they are written.
        pub(super) const TABLE: &[Metric] = &[$(Metric {
            name: concat!("memvisor_", $name),
            kind: $kind,
            unit: $unit,
            fields: $fields,
            help: $help,
        },)+];
    };
}

metrics! {
    Info, "host", Plain, By("", &["version", "engine", "policy", "balloon_law"]), "What the host runs.";
    Gauge, "host_uptime_seconds", Millis, Of("uptime_ms"), "Time since the daemon started.";
    Gauge, "host_vms", Plain, Of("vms"), "Running VMs.";
    StateSet(&["high", "clear", "soft", "hard", "low"]), "host_state", Plain, Of("free_state"), "How short of free memory the host is.";
    StateSet(&["awesome", "good", "hmm", "oops"]), "host_health", Plain, Of("health.reading"), "How well the host is, in the words of the field.";
    Gauge, "host_budget_bytes", Pages, Of("budget_pages"), "Memory that the daemon may use for guests.";
    Gauge, "host_machine_bytes", Bytes, Of("machine.memory_bytes"), "Memory of the machine.";
    Gauge, "host_machine_limit_bytes", Bytes, Of("machine.limit_bytes"), "The least limit of the daemon's cgroups, if it is below that.";
    Gauge, "host_overhead_bytes", Bytes, Of("machine.overhead_bytes"), "What a host with this budget may need beside it.";
    Gauge, "host_process_bytes", Bytes, By("of", &["machine.daemon_bytes", "machine.guests_bytes"]), "Memory of the daemon's own process, and of guests' processes beside their RAM; the budget counts neither.";
    Gauge, "host_pressure_ratio", Percent, By("window", &["machine.pressure.some.ten_seconds_percent", "machine.pressure.some.minute_percent"]), "The part of the time in which at least one task waited for memory of the machine (PSI).";
    Gauge, "host_pressure_full_ratio", Percent, By("window", &["machine.pressure.full.ten_seconds_percent", "machine.pressure.full.minute_percent"]), "The same of all tasks at once.";
    Counter, "host_pressure_seconds", Micros, Of("machine.pressure.some.total_us"), "Time in which at least one task waited for memory of the machine.";
    Counter, "host_pressure_full_seconds", Micros, Of("machine.pressure.full.total_us"), "The same of all tasks at once.";
    Gauge, "host_used_bytes", Pages, Of("used_pages"), "Memory in use, metadata included.";
    Gauge, "host_free_bytes", Pages, Of("free_pages"), "Budget less used.";
    Gauge, "host_metadata_bytes", Pages, Of("metadata_pages"), "What of the used memory is page tables, indexes and the like.";
    Gauge, "host_threshold_bytes", Pages, By("state", &["thresholds.high_pages", "thresholds.soft_pages", "thresholds.hard_pages", "thresholds.low_pages"]), "Free memory below which each state is entered.";
    Gauge, "host_min_free_bytes", Pages, Of("thresholds.min_free_pages"), "Free memory that the host aims to keep.";
    Gauge, "host_reserved_bytes", Pages, Of("reserved_pages"), "The sum of all reservations.";
    Gauge, "host_unreserved_bytes", Pages, Of("unreserved_pages"), "What can still be reserved.";
    Gauge, "host_overcommit_ratio", Percent, By("average", &["overcommit.now_percent", "overcommit.one_minute_percent", "overcommit.five_minutes_percent", "overcommit.fifteen_minutes_percent"]), "Sizes of the VMs by the budget, less 1; 0 where they fit.";
    Gauge, "host_shared_bytes", Pages, Of("share.shared_pages"), "Guest memory mapped onto shared frames.";
    Gauge, "host_shared_frames_bytes", Pages, Of("share.frames"), "The frames behind it.";
    Gauge, "host_shared_saved_bytes", Pages, Of("share.saved_pages"), "What sharing saves.";
    Gauge, "host_break_cost_bytes", Pages, Of("share.break_cost_pages"), "Memory that it would take if all shared pages were written.";
    Gauge, "host_share_reserve_bytes", Pages, Of("share.reserve_pages"), "What of that is kept free.";
    Gauge, "host_swap_cache_bytes", Pages, Of("swap_cache.size_pages"), "Disk space that the host cache may take; 0 if there is none.";
    Gauge, "host_swap_cache_taken_bytes", Pages, Of("swap_cache.taken_pages"), "Disk space that files of VMs take of that.";
    Gauge, "host_share_hints", Plain, Of("share.hints"), "Contents seen once, waiting for an equal page.";
    Gauge, "host_pool_bytes", Pages, Of("share.pool_pages"), "The share pools as the kernel counts them.";
    Gauge, "host_settled_vms", Plain, Of("share.settled_vms"), "VMs in which nothing is left to be shared.";

    Info, "resource_pool", Plain, By("", &["pools[].parent"]), "Where the resource pool stands.";
    Gauge, "resource_pool_vms", Plain, Of("pools[].vms"), "VMs in it or in pools in it.";
    Gauge, "resource_pool_allocated_bytes", Pages, Of("pools[].allocated_pages"), "Guest memory that they hold, shared pages counted in full.";
    Gauge, "resource_pool_target_bytes", Pages, Of("pools[].target_pages"), "Guest memory that the policy wants them to have.";
    Gauge, "resource_pool_reservation_bytes", Pages, Of("pools[].reservation_pages"), "Memory that they are guaranteed together.";
    Gauge, "resource_pool_limit_bytes", Pages, Of("pools[].limit_pages"), "Memory that they never exceed together; absent if there is no limit.";
    Gauge, "resource_pool_promised_bytes", Pages, Of("pools[].promised_pages"), "What is promised to those directly in it.";
    Gauge, "resource_pool_unreserved_bytes", Pages, Of("pools[].unreserved_pages"), "What can still be promised to a VM in it.";
    Gauge, "resource_pool_shares", Plain, By("which", &["pools[].shares", "pools[].counted_shares", "pools[].inner_shares"]), "Its shares as set (shares), what it counts beside its siblings (counted_shares), and the shares of all that is directly in it (inner_shares).";
    Gauge, "resource_pool_expandable", Plain, Of("pools[].expandable"), "1 if reservations in it that exceed its own are taken from its parent.";
    Gauge, "resource_pool_scalable_shares", Plain, Of("pools[].scalable_shares"), "1 if the shares of the pools directly in it grow with what is in these.";
    Gauge, "resource_pool_limited", Plain, Of("pools[].limited"), "1 if a limit keeps those in it from what they want.";

    Info, "vm", Plain, By("", &["vms[].id", "vms[].engine", "vms[].workload", "vms[].pool"]), "What the VM is.";
    StateSet(&["awesome", "good", "hmm", "oops"]), "vm_health", Plain, Of("vms[].health.reading"), "How well the VM is, in the words of the field.";
    Gauge, "vm_uptime_seconds", Millis, Of("vms[].uptime_ms"), "Time since its power-on.";
    Gauge, "vm_configured_bytes", Pages, Of("vms[].configured_pages"), "Its size.";
    Gauge, "vm_memory_bytes", Pages, By("home", &["vms[].homes.resident_pages", "vms[].homes.shared_pages", "vms[].homes.compressed_pages", "vms[].homes.zero_pages", "vms[].homes.swapped_pages", "vms[].homes.ballooned_pages", "vms[].homes.untouched_pages"]), "Where its memory is; the homes add up to its size.";
    Gauge, "vm_granted_bytes", Pages, Of("vms[].granted_pages"), "Memory that can be read without a refill.";
    Gauge, "vm_consumed_bytes", Pages, Of("vms[].consumed_pages"), "Host memory that it costs.";
    Gauge, "vm_shared_saved_bytes", Pages, Of("vms[].saved_pages"), "Its part of what sharing saves.";
    Gauge, "vm_break_cost_bytes", Pages, Of("vms[].break_cost_pages"), "Memory that it would take if the VM wrote all its shared pages.";
    Gauge, "vm_sharing_bytes", Pages, By("why", &["vms[].sharing.shared_pages", "vms[].sharing.zero_pages", "vms[].sharing.unscanned_pages", "vms[].sharing.volatile_pages", "vms[].sharing.unique_pages", "vms[].sharing.other_salt_pages", "vms[].sharing.vma_budget_pages", "vms[].sharing.no_memory_pages", "vms[].sharing.large_pages", "vms[].sharing.moving_pages", "vms[].sharing.off_pages", "vms[].sharing.compressed_pages", "vms[].sharing.swapped_pages", "vms[].sharing.ballooned_pages", "vms[].sharing.untouched_pages"]), "Where its memory stands with sharing, and why it is not shared; the parts add up to its size.";
    Gauge, "vm_hinted_bytes", Pages, Of("vms[].hinted_pages"), "Its pages that wait as hints for one of equal content.";
    Gauge, "vm_overhead_bytes", Pages, Of("vms[].overhead_pages"), "Metadata that the daemon keeps for it.";
    Gauge, "vm_cache_bytes", Pages, Of("vms[].zip_pages"), "Host memory of its compression cache.";
    Gauge, "vm_cache_cap_bytes", Pages, Of("vms[].zip.cap_pages"), "The most that the settings let its compression cache have.";
    Gauge, "vm_cache_limit_bytes", Pages, Of("vms[].zip.limit_pages"), "Above this, its oldest compressed pages move on to the swap file.";
    Gauge, "vm_credit_bytes", Pages, Of("vms[].credit_pages"), "Memory that an inline guest holds in advance.";
    Gauge, "vm_kernel_bytes", Pages, Of("vms[].kernel_pages"), "Its RAM and its compression cache as the kernel counts them.";
    Gauge, "vm_reservation_bytes", Pages, Of("vms[].allocation.reservation_pages"), "Memory that it is guaranteed.";
    Gauge, "vm_limit_bytes", Pages, Of("vms[].allocation.limit_pages"), "Memory that it never exceeds; absent if that is its size.";
    Gauge, "vm_shares", Plain, Of("vms[].allocation.shares"), "Its weight when memory is short.";
    Gauge, "vm_target_bytes", Pages, Of("vms[].allocation.target_pages"), "Memory that the policy wants it to have.";
    Gauge, "vm_entitlement_bytes", Pages, Of("vms[].allocation.entitlement_pages"), "Memory that it could have now if it wanted more.";
    Gauge, "vm_active_bytes", Pages, Of("vms[].activity.active_pages"), "Memory that it is estimated to use; absent until it was sampled.";
    Gauge, "vm_active_ratio", Percent, By("average", &["vms[].activity.active_percent", "vms[].activity.slow_percent", "vms[].activity.fast_percent", "vms[].activity.next_percent"]), "The part of its size that it is estimated to use: the greatest of three averages (active), and each of them.";
    Gauge, "vm_referenced_bytes", Pages, Of("vms[].activity.referenced_pages"), "Memory that its page tables say was accessed lately; absent unless `vm show` has asked for it just before.";
    Gauge, "vm_balloon_agent", Plain, Of("vms[].balloon.agent"), "1 if a balloon agent is connected.";
    Gauge, "vm_balloon_waited_for", Plain, Of("vms[].balloon.waited_for"), "1 if the policy counts on its balloon: it is at its target, or comes closer.";
    Gauge, "vm_balloon_bytes", Pages, Of("vms[].balloon.size_pages"), "Memory in its balloon.";
    Gauge, "vm_balloon_target_bytes", Pages, Of("vms[].balloon.target_pages"), "The size that its agent is asked to reach.";
    Gauge, "vm_balloon_max_bytes", Pages, Of("vms[].balloon.max_pages"), "The most that its balloon may take.";
    Gauge, "vm_balloon_manual_bytes", Pages, Of("vms[].balloon.manual_pages"), "The target set by hand; absent while the policy decides.";
    Counter, "vm_balloon_moved_bytes", Pages, By("how", &["vms[].balloon.session.inflated_pages", "vms[].balloon.session.deflated_pages", "vms[].balloon.session.refused_pages", "vms[].balloon.session.invalid_pages", "vms[].balloon.session.reported_pages"]), "Memory that its agents gave (inflated) and took back (deflated), that was refused, that is none of its RAM (invalid), and that was free in the guest and dropped (reported).";
    Counter, "vm_balloon_events", Plain, By("event", &["vms[].balloon.session.mismatches", "vms[].balloon.session.reliefs", "vms[].balloon.session.resets", "vms[].balloon.session.throttles", "vms[].balloon.session.messages"]), "What happened in the sessions of its agents; messages of both sides.";
    Counter, "vm_balloon_message_bytes", Bytes, Of("vms[].balloon.session.message_bytes"), "Size of the messages of its agents and to them.";
    Counter, "vm_double_paged_pages", Moves, Of("vms[].balloon.double_paged"), "Pages given up just after the host had brought them back.";
    Gauge, "vm_guest_memory_bytes", Bytes, By("kind", &["vms[].guest.total_bytes", "vms[].guest.free_bytes", "vms[].guest.available_bytes", "vms[].guest.cache_bytes"]), "Memory as the guest tells it; absent where it does not.";
    Counter, "vm_guest_swap_in_bytes", Bytes, Of("vms[].guest.swap_in_bytes"), "Read from the guest's own swap device, as it tells.";
    Counter, "vm_guest_swap_out_bytes", Bytes, Of("vms[].guest.swap_out_bytes"), "Written to the guest's own swap device, as it tells.";
    Counter, "vm_guest_faults", Plain, By("kind", &["vms[].guest.major_faults", "vms[].guest.minor_faults"]), "The guest's own page faults, as it tells: major_faults needed I/O, minor_faults did not.";
    Counter, "vm_guest_oom_kills", Plain, Of("vms[].guest.oom_kills"), "Processes that the guest killed for want of memory, as it tells.";
    Counter, "vm_guest_swap_wait_seconds", Micros, Of("vms[].guest.swap_wait_us"), "Time that its threads waited for its own swap device, as it tells.";
    Gauge, "vm_swap_slots", Plain, Of("vms[].swap.slots"), "Slots of its swap file in use.";
    Gauge, "vm_swap_target_bytes", Pages, Of("vms[].swap.target_pages"), "What the policy wants in its compression cache and its swap file.";
    Counter, "vm_swap_in_bytes", Bytes, Of("vms[].swap.in_bytes"), "Read from its swap file.";
    Counter, "vm_swap_out_bytes", Bytes, Of("vms[].swap.out_bytes"), "Written to its swap file.";
    Counter, "vm_unswapped_pages", Moves, Of("vms[].swap.unswapped"), "Pages brought back from its swap file without being asked for by the guest.";
    Counter, "vm_swap_errors", Plain, Of("vms[].swap.errors"), "Writes that its full or failing swap file refused.";
    Gauge, "vm_swap_cached_bytes", Pages, Of("vms[].swap.cached_pages"), "Its swapped pages in the host cache.";
    Counter, "vm_swap_cache_in_bytes", Bytes, Of("vms[].swap.cache_in_bytes"), "Read from the host cache for its guest.";
    Counter, "vm_swap_cache_out_bytes", Bytes, Of("vms[].swap.cache_out_bytes"), "Written to the host cache.";
    Counter, "vm_swap_cache_errors", Plain, Of("vms[].swap.cache_errors"), "Operations that its full or failing file of the host cache refused.";
    Counter, "vm_demoted_pages", Moves, Of("vms[].swap.demoted"), "Pages moved from the host cache to its swap file.";
    Counter, "vm_faults", Plain, By("kind", &["vms[].faults.first_touch", "vms[].faults.refill_zip", "vms[].faults.refill_swap", "vms[].faults.cow_break", "vms[].faults.pop"]), "Faults that were answered, by what had to be done.";
    Counter, "vm_inline_faults", Plain, Of("vms[].faults.inline"), "Those of them that the guest served itself.";
    Counter, "vm_parked_faults", Plain, Of("vms[].faults.parked"), "Faults that had to wait.";
    Gauge, "vm_fault_latency_seconds", Micros, By("percentile", &["vms[].faults.latency.p50_us", "vms[].faults.latency.p99_us"]), "That part of its faults since power-on took no longer; absent before the first.";
    Counter, "vm_stall_seconds", Micros, By("cause", &["vms[].stalls.first_touch_us", "vms[].stalls.refill_zip_us", "vms[].stalls.refill_swap_us", "vms[].stalls.cow_break_us", "vms[].stalls.open_us", "vms[].stalls.blocked_us", "vms[].stalls.memory_us", "vms[].stalls.busy_us"]), "For how long its threads stood still because of the host, each by itself.";
    Counter, "vm_stalled_seconds", Micros, Of("vms[].stalls.stalled_us"), "Time in which at least one of its threads stood still because of the host.";
    Gauge, "vm_stalled_ratio", Percent, By("window", &["vms[].stalls.latency_percent", "vms[].stalls.latency_minute_percent"]), "The part of the time in which at least one thread stood still: of five seconds (latency), and averaged over a minute.";
    Counter, "vm_scanned_pages", Moves, Of("vms[].scan.pages_scanned"), "Pages that the sharing scanner scanned.";
    Counter, "vm_shared_pages", Moves, By("how", &["vms[].scan.merged", "vms[].scan.attached"]), "Pages mapped onto a shared frame: by the scanner (merged), or because the guest asked (attached).";
    Counter, "vm_zeroed_pages", Moves, Of("vms[].scan.zero_found"), "Pages that the scanner found to be zero and gave back.";
    Counter, "vm_volatile_pages", Moves, Of("vms[].scan.volatile"), "Pages left alone because they had changed since the last scan.";
    Counter, "vm_scan_passes", Plain, Of("vms[].scan.passes"), "Passes over the whole VM that have ended.";
    Gauge, "vm_settled", Plain, Of("vms[].scan.settled"), "1 if nothing is left to be shared in it.";
    Counter, "vm_evicted_pages", Moves, By("how", &["vms[].evict.to_zero", "vms[].evict.to_shared", "vms[].evict.to_zip", "vms[].evict.to_swap"]), "Pages evicted, by where they went.";
    Counter, "vm_incompressible_pages", Moves, Of("vms[].evict.incompressible"), "Evicted pages that did not compress to half a page.";
    Counter, "vm_spilled_pages", Moves, Of("vms[].evict.spilled"), "Compressed pages that moved on to the swap file.";
    Counter, "vm_unevictable_pages", Moves, Of("vms[].evict.given_up"), "Pages that neither cache nor swap file would take.";
    Gauge, "vm_process_bytes", Bytes, Of("vms[].process_bytes"), "What its process takes beside its RAM; the budget does not count it.";
    Counter, "vm_cold_pages", Moves, Of("vms[].evict.cold"), "Evicted pages that their guest had not touched for Memvisor.ColdAge.";
    Counter, "vm_cold_refaulted_pages", Moves, Of("vms[].evict.cold_back"), "Such pages that their guest wanted back from a store.";
    Counter, "vm_early_refaulted_pages", Moves, Of("vms[].evict.early_refaults"), "Pages that their guest wanted back when they had just left RAM for a store.";
    Gauge, "vm_large_bytes", Pages, Of("vms[].large.pages"), "Its RAM that is in large pages.";
    Counter, "vm_large_made", Plain, Of("vms[].large.made"), "Large pages that were made.";
    Counter, "vm_large_broken", Plain, Of("vms[].large.broken"), "Large pages that were broken.";
    Gauge, "vm_mappings", Plain, Of("vms[].vmas"), "Mappings of the guest's process that its RAM takes, at most.";
    Gauge, "vm_mappings_budget", Plain, Of("vms[].vma_budget"), "The most that changes by choice may lead to.";
    Gauge, "vm_blocked", Plain, Of("vms[].blocked"), "1 if it must wait with its next page of memory.";
}

impl Unit {
    /// The unit of the metric; empty for none.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Moves => "pages",
            Self::Pages | Self::Bytes => "bytes",
            Self::Millis | Self::Micros => "seconds",
            Self::Percent => "ratio",
        }
    }

    /// The value of a field in the unit of the metric; `None` where the field is null.
    pub(super) fn convert(self, field: &Value) -> Option<String> {
        let number = match field {
            Value::Bool(truth) => return Some(u8::from(*truth).to_string()),
            Value::Array(elements) => return Some(elements.len().to_string()),
            Value::Number(number) => number,
            _ => return None,
        };
        let divided = |by: f64| number.as_f64().map(|value| (value / by).to_string());
        match self {
            Self::None | Self::Moves | Self::Bytes => Some(number.to_string()),
            // Whole numbers, because the sizes of large hosts in bytes need not fit into the digits of a float.
            Self::Pages => Some((number.as_u64()? * PAGE_SIZE as u64).to_string()),
            Self::Millis => divided(1e3),
            Self::Micros => divided(1e6),
            Self::Percent => divided(1e2),
        }
    }
}

impl Fields {
    pub(super) const fn paths(&self) -> &[&'static str] {
        match self {
            Self::Of(path) => std::slice::from_ref(path),
            Self::By(_, paths) => paths,
        }
    }
}

impl Metric {
    /// The name of its samples.
    pub(super) fn sample(&self) -> String {
        let suffix = match self.kind {
            Counter => "_total",
            Info => "_info",
            Gauge | StateSet(_) => "",
        };
        format!("{}{suffix}", self.name)
    }

    /// The word for its kind.
    pub(super) const fn kind_name(&self) -> &'static str {
        match self.kind {
            Counter => "counter",
            Gauge => "gauge",
            Info => "info",
            StateSet(_) => "stateset",
        }
    }

    fn write(&self, status: &Value, to: &mut String) -> std::fmt::Result {
        let (name, unit) = (self.name, self.unit.name());
        writeln!(to, "# TYPE {name} {}", self.kind_name())?;
        if !unit.is_empty() {
            writeln!(to, "# UNIT {name} {unit}")?;
        }
        writeln!(to, "# HELP {name} {}", self.help)?;
        let is_of = |part: &str| {
            self.fields
                .paths()
                .iter()
                .all(|path| path.starts_with(part))
        };
        let parts = [(OF_VM, "vms", "vm"), (OF_POOL, "pools", "pool")];
        let Some((_, all, label)) = parts.into_iter().find(|(part, ..)| is_of(part)) else {
            return self.write_of(status, &[], to);
        };
        for one in status[all].as_array().into_iter().flatten() {
            self.write_of(one, &[(label, text(&one["name"]))], to)?;
        }
        Ok(())
    }

    /// Writes the samples of `of`: of the host or a VM, which `labels` tells.
    fn write_of(&self, of: &Value, labels: &[(&str, String)], to: &mut String) -> std::fmt::Result {
        let sample = self.sample();
        let with = |more: &[(&str, String)]| labelled(&[labels, more].concat());
        let field = |path: &str| find(of, path);
        match (self.kind, self.fields) {
            (Info, fields) => {
                let texts = fields.paths().iter();
                let texts: Vec<_> = texts
                    .map(|path| (label_of(path), text(field(path))))
                    .collect();
                writeln!(to, "{sample}{} 1", with(&texts))
            }
            (StateSet(words), Of(path)) => words.iter().try_for_each(|word| {
                let holds = u8::from(field(path) == word);
                let state = with(&[(self.name, (*word).to_owned())]);
                writeln!(to, "{sample}{state} {holds}")
            }),
            (_, fields) => fields.paths().iter().try_for_each(|path| {
                let Some(value) = self.unit.convert(field(path)) else {
                    return Ok(());
                };
                let labels = match fields {
                    Of(_) => with(&[]),
                    By(label, _) => with(&[(label, label_of(path).to_owned())]),
                };
                writeln!(to, "{sample}{labels} {value}")
            }),
        }
    }
}

/// The field at `path`, which begins at the host or, with `vms[]` or `pools[]`, at a VM or a pool. Null where something above it is.
pub(super) fn find<'a>(of: &'a Value, path: &str) -> &'a Value {
    let inner = [OF_VM, OF_POOL]
        .iter()
        .find_map(|part| path.strip_prefix(part));
    let path = inner.unwrap_or(path);
    path.split('.').fold(of, |value, key| &value[key])
}

/// The name of the field at `path` without its unit.
pub(super) fn label_of(path: &str) -> &str {
    let name = path.rsplit('.').next().unwrap_or(path);
    let mut units = ["_pages", "_bytes", "_us", "_percent"].iter();
    units
        .find_map(|unit| name.strip_suffix(unit))
        .unwrap_or(name)
}

fn text(value: &Value) -> String {
    let text = value.as_str().map(str::to_owned);
    text.unwrap_or_else(|| value.to_string())
}

/// Labels as they stand behind the name of a sample. What a guest says of itself may be among them.
fn labelled(labels: &[(&str, String)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let quoted = labels.iter().map(|(name, value)| {
        let value = value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        format!("{name}=\"{value}\"")
    });
    format!("{{{}}}", quoted.collect::<Vec<_>>().join(","))
}

/// The status as OpenMetrics text, of the type [`CONTENT_TYPE`].
#[must_use]
pub fn openmetrics(status: &HostStatus) -> String {
    let status = serde_json::to_value(status).expect("plain data with keys that are text");
    let mut to = String::new();
    let written = TABLE
        .iter()
        .try_for_each(|metric| metric.write(&status, &mut to));
    written.expect("a string takes everything");
    to.push_str("# EOF\n");
    to
}

#[cfg(test)]
mod tests;
