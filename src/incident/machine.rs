//! The host of an incident: the daemon's policy, in virtual time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::catalogue::Incident;
use super::guest::{Agent, Guest, STEP_US, STEPS_PER_S};
use super::measure::{Figures, Measure};
use crate::balloon::{AgentProgress, Relief, SwapWaits};
use crate::host::Laws;
use crate::policy::{Config, FreeState, HostSnapshot, Law, Plan, Policy, VmSnapshot};
use crate::recording::{Column, Mark, Recording};
use crate::settings::HostSettings;
use crate::units::{Pages, VmId};

/// What the host knows of a guest beside its pages, as the daemon keeps it.
#[derive(Debug, Default)]
struct Line {
    progress: AgentProgress,
    alive: bool,
    relief: Relief,
    waits: SwapWaits,
    /// What its balloon held and it had free, when it reported.
    free: Option<Pages>,
    /// For how long it waited for the host, in microseconds a second, averaged over a second.
    stall_us_per_s: u64,
    stalled_us: u64,
    target: Pages,
}

struct Machine {
    policy: &'static dyn Policy,
    config: Config,
    budget: Pages,
    state: FreeState,
    guests: Vec<Guest>,
    lines: Vec<Line>,
    laws: Laws,
    base: Instant,
    step: u64,
}

/// Runs an incident to its end.
pub(super) fn play(
    incident: &Incident,
    law: &'static dyn Law,
    settings: &HostSettings,
    as_it_was: bool,
) -> (Figures, Recording) {
    let described = incident.guests.iter().map(|guest| {
        let mut guest = *guest;
        guest.agent = Agent {
            relief: guest.agent.relief && !as_it_was,
            ..guest.agent
        };
        Guest::new(guest)
    });
    let guests: Vec<Guest> = described.collect();
    let config = Config {
        law,
        balloon_max_percent: incident.balloon_max_percent,
        // Only what is swapped costs the guests of this model something.
        zip_enabled: false,
        ..settings.policy()
    };
    let mut machine = Machine {
        policy: <&dyn Policy>::default(),
        config,
        budget: incident.budget,
        state: FreeState::default(),
        lines: guests.iter().map(|_| Line::default()).collect(),
        guests,
        laws: Laws::default(),
        base: Instant::now(),
        step: 0,
    };
    let mut measure = Measure::new(&machine.guests);
    let mut recording = Recording::default();
    while machine.step < incident.seconds * STEPS_PER_S {
        machine.step();
        let targets: Vec<Pages> = machine.lines.iter().map(|line| line.target).collect();
        measure.note(&machine.guests, &targets, machine.state.is_short());
        if machine.step.is_multiple_of(STEPS_PER_S) {
            machine.sample(&mut recording);
        }
    }
    recording.marks = marks(incident);
    (
        measure.figures(&machine.guests, incident.last_change_s()),
        recording,
    )
}

/// When guests change what they do.
fn marks(incident: &Incident) -> Vec<Mark> {
    let changes = incident.guests.iter().flat_map(|guest| {
        let loads = guest.loads.iter().filter(|load| load.at_s > 0);
        loads.map(|load| Mark {
            at_ms: 1000 * load.at_s,
            text: format!("{} touches {}", guest.name, load.hot.bytes()),
        })
    });
    let mut marks: Vec<Mark> = changes.collect();
    marks.sort_by_key(|mark| mark.at_ms);
    marks
}

impl Machine {
    fn now(&self) -> Instant {
        self.base + Duration::from_micros(self.step * STEP_US)
    }

    fn used(&self) -> Pages {
        Pages(self.guests.iter().map(Guest::resident).sum())
    }

    /// A plan, and then what guests do until the next.
    fn step(&mut self) {
        let now = self.now();
        self.watch(now);
        let mut host = self.snapshot(now);
        self.laws.recall(&mut host, self.config.law, now);
        let plan = self.policy.plan(&host, &self.config);
        self.laws.keep(&plan, self.config.law, now);
        self.state = plan.state;
        self.carry_out(&plan, now);
        self.run(&plan);
        self.step += 1;
    }

    /// What the daemon finds out about agents before each plan.
    fn watch(&mut self, now: Instant) {
        for (guest, line) in self.guests.iter().zip(&mut self.lines) {
            let held = Pages(guest.ballooned);
            line.alive = line.progress.note(now, true, line.target, held);
            let stalled = guest.stall_host_us - line.stalled_us;
            line.stalled_us = guest.stall_host_us;
            let rate = stalled * STEPS_PER_S;
            line.stall_us_per_s = (line.stall_us_per_s * (STEPS_PER_S - 1) + rate) / STEPS_PER_S;
            if self.step.is_multiple_of(STEPS_PER_S) {
                line.waits.note(now, Some(guest.stall_own_us));
                line.free = Some(Pages(guest.ballooned + guest.free()));
            }
        }
    }

    fn snapshot(&self, now: Instant) -> HostSnapshot {
        let vm = |(id, (guest, line)): (u32, (&Guest, &Line))| VmSnapshot {
            shares: 1000,
            resident: Pages(guest.resident()),
            swapped: Pages(guest.swapped),
            ballooned: Pages(guest.ballooned),
            untouched: Pages(guest.untouched()),
            agent: true,
            agent_alive: line.alive,
            balloon_brings: line.progress.brings(),
            balloon_max: guest.is.size,
            relief: line.relief.ceiling(now),
            balloon_free: line.free,
            active: Some(guest.active()),
            stall_us_per_s: line.stall_us_per_s,
            guest_stall_us_per_s: line.waits.us_per_s(now),
            swap_room: guest.is.size,
            ..VmSnapshot::new(VmId(id), guest.is.size)
        };
        HostSnapshot {
            budget: self.budget,
            used: self.used(),
            least_free: None,
            state: self.state,
            vms: (1..)
                .zip(self.guests.iter().zip(&self.lines))
                .map(vm)
                .collect(),
            resource_pools: Vec::new(),
            seed: self.step,
        }
    }

    fn carry_out(&mut self, plan: &Plan, now: Instant) {
        let at_s = self.step / STEPS_PER_S;
        let is_first = self.step.is_multiple_of(STEPS_PER_S);
        let parts = self.guests.iter_mut().zip(&mut self.lines).zip(&plan.vms);
        for ((guest, line), order) in parts {
            guest.evict(order.evict.0);
            // As the session does: relief holds at once, in a state that gives it.
            if guest.begs > 0 && guest.is.agent.relief && plan.state <= FreeState::Soft {
                let held = Pages(guest.ballooned);
                line.relief.ask(now, held, Pages(guest.begs));
            }
            let most = line.relief.ceiling(now).unwrap_or(order.balloon_target);
            line.target = order.balloon_target.min(most);
            // A blocked guest runs no agent.
            if !order.blocked || plan.stuck.is_some() {
                guest.follow(line.target.0, at_s, is_first);
            }
        }
    }

    fn run(&mut self, plan: &Plan) {
        let at_s = self.step / STEPS_PER_S;
        let free = self.budget.saturating_sub(self.used());
        let mut left = free.saturating_sub(plan.floor).0;
        let count = self.guests.len();
        for turn in 0..count {
            // Another one is first each time, because the first finds most.
            let at = (turn + usize::try_from(self.step).unwrap_or(0)) % count;
            let blocked = plan.vms[at].blocked && plan.stuck.is_none();
            self.guests[at].run(at_s, &mut left, blocked);
        }
    }

    fn sample(&self, recording: &mut Recording) {
        let before = recording.at_ms.len();
        recording.at_ms.push(self.step * STEP_US / 1000);
        let bytes = |pages: u64| Pages(pages).bytes().0 as f64;
        let used = self.used();
        let host = [
            ("memvisor_host_budget_bytes", bytes(self.budget.0)),
            ("memvisor_host_used_bytes", bytes(used.0)),
            (
                "memvisor_host_free_bytes",
                bytes(self.budget.saturating_sub(used).0),
            ),
            ("memvisor_host_state", f64::from(self.state as u8)),
        ];
        put(&mut recording.host, before, &host);
        for (guest, line) in self.guests.iter().zip(&self.lines) {
            let home = |home: &str| format!("memvisor_vm_memory_bytes{{home=\"{home}\"}}");
            let stall =
                |cause: &str| format!("memvisor_vm_stall_seconds_total{{cause=\"{cause}\"}}");
            let values = [
                (home("resident"), bytes(guest.resident())),
                (home("swapped"), bytes(guest.swapped)),
                (home("ballooned"), bytes(guest.ballooned)),
                (home("untouched"), bytes(guest.untouched())),
                (
                    "memvisor_vm_configured_bytes".into(),
                    bytes(guest.is.size.0),
                ),
                ("memvisor_vm_consumed_bytes".into(), bytes(guest.resident())),
                ("memvisor_vm_balloon_bytes".into(), bytes(guest.ballooned)),
                ("memvisor_vm_active_bytes".into(), bytes(guest.active().0)),
                (
                    "memvisor_vm_balloon_target_bytes".into(),
                    bytes(line.target.0),
                ),
                (stall("refill_swap"), guest.stall_host_us as f64 / 1e6),
                (
                    "memvisor_vm_guest_swap_wait_seconds_total".into(),
                    guest.stall_own_us as f64 / 1e6,
                ),
                ("guest_operations_total".into(), guest.accesses as f64),
            ];
            let columns = recording.vms.entry(guest.is.name.to_owned()).or_default();
            put(columns, before, &values);
        }
    }
}

fn put(columns: &mut BTreeMap<String, Column>, before: usize, values: &[(impl AsRef<str>, f64)]) {
    for (name, value) in values {
        let column = columns.entry(name.as_ref().to_owned()).or_default();
        column.resize(before, None);
        column.push(Some(*value));
    }
}
