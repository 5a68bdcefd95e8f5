//! A replay over time, as a recording that the pages of reports draw.

use std::collections::BTreeMap;
use std::time::Instant;

use super::guest::Guest;
use super::story::Story;
use crate::page::Budget;
use crate::policy::FreeState;
use crate::recording::{Column, Recording};
use crate::trace::format::Place;
use crate::units::Pages;
use crate::vm::Cause;

/// Samples of a replay: as many as a chart has points.
const SAMPLES: u64 = 400;

/// The numbers of a replay at equal moments.
#[derive(Debug)]
pub(super) struct OverTime {
    every_us: u64,
    due_us: u64,
    recording: Recording,
    names: Vec<String>,
}

impl OverTime {
    pub(super) fn new(story: &Story) -> Self {
        Self {
            every_us: (story.length_us / SAMPLES).max(1000),
            due_us: 0,
            recording: Recording::default(),
            names: story.vms.iter().map(|vm| vm.facts.name.clone()).collect(),
        }
    }

    /// When the next sample is due.
    pub(super) const fn due_us(&self) -> u64 {
        self.due_us
    }

    pub(super) fn sample(
        &mut self,
        (now_us, now): (u64, Instant),
        (budget, state): (&Budget, FreeState),
        guests: &[Option<Guest>],
    ) {
        self.due_us = now_us + self.every_us;
        if guests.iter().all(Option::is_none) {
            return;
        }
        let before = self.recording.at_ms.len();
        self.recording.at_ms.push(now_us / 1000);
        let bytes = |pages: Pages| pages.bytes().0 as f64;
        let host = [
            ("memvisor_host_budget_bytes", bytes(budget.total())),
            ("memvisor_host_used_bytes", bytes(budget.used())),
            ("memvisor_host_free_bytes", bytes(budget.free())),
            ("memvisor_host_state", f64::from(state as u8)),
        ];
        for (name, value) in host {
            put(&mut self.recording.host, name, before, value);
        }
        for (name, guest) in self.names.iter().zip(guests) {
            if let Some(guest) = guest {
                let columns = self.recording.vms.entry(name.clone()).or_default();
                of_guest(guest, now, |name, value| put(columns, name, before, value));
            }
        }
        for columns in self.recording.vms.values_mut() {
            for column in columns.values_mut() {
                column.resize(before + 1, None);
            }
        }
    }

    pub(super) fn into_recording(self) -> Recording {
        self.recording
    }
}

fn of_guest(guest: &Guest, now: Instant, mut put: impl FnMut(&str, f64)) {
    let vm = &guest.vm;
    let bytes = |pages: u64| Pages(pages).bytes().0 as f64;
    let homes = vm.table.counts();
    for place in Place::ALL {
        let name = format!("memvisor_vm_memory_bytes{{home=\"{place}\"}}");
        put(&name, bytes(homes[place as usize]));
    }
    let zip = u64::from(vm.zip.lock().pages_used());
    put(
        "memvisor_vm_configured_bytes",
        bytes(vm.params.pages.into()),
    );
    put("memvisor_vm_consumed_bytes", bytes(vm.held().0 + zip));
    put(
        "memvisor_vm_target_bytes",
        bytes(vm.orders.allocation_target().0),
    );
    let size = Pages(vm.params.pages.into());
    if let Some(active) = vm.activity.pages(size, 0) {
        put("memvisor_vm_active_bytes", bytes(active.0));
    }
    let counts = guest.moves.counts();
    let kinds = [
        (
            "faults_total{kind=\"first_touch\"}",
            counts.first_touches + counts.refills_zero,
        ),
        ("faults_total{kind=\"refill_zip\"}", counts.refills_zip),
        ("faults_total{kind=\"refill_swap\"}", counts.refills_swap),
        ("evicted_pages_total{how=\"to_zero\"}", counts.evicted_zero),
        ("evicted_pages_total{how=\"to_zip\"}", counts.evicted_zip),
        ("evicted_pages_total{how=\"to_swap\"}", counts.evicted_swap),
    ];
    for (name, count) in kinds {
        put(&format!("memvisor_vm_{name}"), count as f64);
    }
    let stalled = guest.vm.stalled(|| 1, now).threads;
    let causes = [
        ("first_touch", Cause::FirstTouch),
        ("refill_zip", Cause::RefillZip),
        ("refill_swap", Cause::RefillSwap),
        ("open", Cause::Open),
        ("memory", Cause::Memory),
    ];
    for (name, cause) in causes {
        let name = format!("memvisor_vm_stall_seconds_total{{cause=\"{name}\"}}");
        put(&name, stalled[cause].as_secs_f64());
    }
}

/// Puts a value into a column, after `before` moments.
fn put(columns: &mut BTreeMap<String, Column>, name: &str, before: usize, value: f64) {
    let column = columns.entry(name.to_owned()).or_default();
    column.resize(before, None);
    column.push(Some(value));
}
