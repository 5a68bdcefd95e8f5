//! Makes a scenario of the values of a file. All that is wrong is reported at once.

use memvisor_wire::vm_name::check_vm_name;

use super::Scenario;
use super::vm::{self, WrittenVm};
use crate::policy::{FreeState, HostSnapshot, Policy, VmSnapshot, policies};
use crate::settings::{HostSettings, Layer, Layers, Node, Problem, Profile, Reading, Table, shown};
use crate::units::{Bytes, Pages, VmId};

const HOST_KEYS: &str = "memory, used, free, overhead, state, profile, policy";
/// What [`size`] reads.
pub(super) const SIZES: &str = "a size of at least a page, such as 8G, 179M or 500 pages";

/// The table `[host]`.
#[derive(Debug, Default)]
struct WrittenHost {
    /// The line of the table or of the key that says how full the host is.
    line: Option<usize>,
    memory: Option<Pages>,
    used: Option<Pages>,
    free: Option<Pages>,
    overhead: Option<Pages>,
    state: Option<FreeState>,
    profile: Option<Profile>,
    policy: Option<&'static dyn Policy>,
}

/// The scenario of a file.
pub(super) fn scenario(mut reading: Reading, root: &Table) -> Result<Scenario, Vec<Problem>> {
    let (mut host, mut settings) = (WrittenHost::default(), Layer::default());
    let mut vms = Vec::new();
    let mut seen = Vec::new();
    for entry in root {
        let key = entry.key.as_str();
        if seen.contains(&key) {
            reading.wrong(entry.line, format!("`{}` is given twice", shown(key)));
        }
        seen.push(key);
        match (key, &entry.value) {
            ("host", Node::Table(table)) => host = reading.host(entry.line, table),
            ("settings", Node::Table(table)) => settings = reading.settings(table),
            ("vm", Node::Table(table)) => vms = reading.named_vms(table),
            ("vm", Node::Array(list)) => vms = reading.listed_vms(entry.line, list),
            _ => reading.astray(entry, "[host], [settings], [vm.NAME]"),
        }
    }
    reading.finish(&host, settings, vms)
}

impl Reading {
    fn host(&mut self, line: Option<usize>, table: &Table) -> WrittenHost {
        let mut host = WrittenHost {
            line,
            ..WrittenHost::default()
        };
        for leaf in self.leaves("[host]: ", table) {
            let size = size(leaf.text);
            match leaf.key.as_str() {
                "memory" => {
                    let memory = size.filter(|memory| *memory > Pages(0));
                    self.put(&mut host.memory, &leaf, memory, SIZES);
                }
                "used" => self.put(&mut host.used, &leaf, size, SIZES),
                "free" => self.put(&mut host.free, &leaf, size, SIZES),
                "overhead" => self.put(&mut host.overhead, &leaf, size, SIZES),
                "state" => {
                    let names = FreeState::ALL.map(|state| state.to_string());
                    let at = names.iter().position(|name| name == leaf.text);
                    let state = at.map(|at| FreeState::ALL[at]);
                    self.put(&mut host.state, &leaf, state, &names.join(", "));
                }
                "profile" => self.choice(&mut host.profile, &leaf),
                "policy" => {
                    let policy = policies::named(leaf.text).ok();
                    self.put(&mut host.policy, &leaf, policy, &policies::names());
                }
                _ => self.unknown(&leaf, HOST_KEYS),
            }
            if ["used", "free", "overhead"].contains(&leaf.key.as_str()) {
                host.line = leaf.line;
            }
        }
        host
    }

    fn named_vms(&mut self, table: &Table) -> Vec<WrittenVm> {
        let mut vms = Vec::new();
        for entry in table {
            let name = shown(&entry.key);
            let Node::Table(table) = &entry.value else {
                let text = format!("`{name}` must be a table [vm.{name}]");
                self.wrong(entry.line, text);
                continue;
            };
            vms.push(vm::read(self, &entry.key, entry.line, table));
        }
        vms
    }

    fn listed_vms(&mut self, line: Option<usize>, list: &[Node]) -> Vec<WrittenVm> {
        let mut vms = Vec::new();
        for (number, node) in (1..).zip(list) {
            let Node::Table(table) = node else {
                self.wrong(line, format!("[[vm]] number {number} must be a table"));
                continue;
            };
            let line = table.first().map_or(line, |entry| entry.line);
            let name = table.iter().find_map(|entry| match &entry.value {
                Node::Scalar(name) if entry.key == "name" => Some(name.as_str()),
                _ => None,
            });
            let Some(name) = name else {
                let text = format!("[[vm]] number {number} needs a name, such as name = \"web\"");
                self.wrong(line, text);
                continue;
            };
            vms.push(vm::read(self, name, line, table));
        }
        vms
    }

    fn finish(
        mut self,
        host: &WrittenHost,
        settings: Layer,
        vms: Vec<WrittenVm>,
    ) -> Result<Scenario, Vec<Problem>> {
        self.names(&vms);
        if host.memory.is_none() {
            let text = format!("[host] needs memory, {SIZES}");
            self.wrong(host.line, text);
        }
        let profile = host.profile.unwrap_or_default();
        let settings = Layers::new(profile, settings, Layer::default()).effective();
        let snapshots = self.snapshots(&vms, &settings);
        let (Some(memory), true) = (host.memory, self.problems.is_empty()) else {
            return Err(self.problems);
        };
        let held = sum(snapshots.iter().map(VmSnapshot::backing));
        let used = self.used(host, memory, held);
        if !self.problems.is_empty() {
            return Err(self.problems);
        }
        Ok(Scenario {
            profile,
            policy: host.policy.unwrap_or_else(|| profile.policy()),
            host: HostSnapshot {
                least_free: None,
                budget: memory,
                used,
                state: host.state.unwrap_or_default(),
                vms: snapshots,
                seed: 0,
            },
            config: settings.policy(),
            names: vms.into_iter().map(|vm| vm.name).collect(),
        })
    }

    fn names(&mut self, vms: &[WrittenVm]) {
        if vms.is_empty() {
            self.wrong(None, "there is no VM; write [vm.NAME] for each".to_owned());
        }
        let mut seen = std::collections::HashSet::new();
        for vm in vms {
            if let Err(error) = check_vm_name(&vm.name) {
                self.wrong(vm.line, error.to_string());
            } else if !seen.insert(&vm.name) {
                self.wrong(vm.line, format!("VM {} is there twice", vm.name));
            }
        }
    }

    fn snapshots(&mut self, vms: &[WrittenVm], settings: &HostSettings) -> Vec<VmSnapshot> {
        let mut snapshots = Vec::with_capacity(vms.len());
        for (number, vm) in (1..).zip(vms) {
            match vm.snapshot(VmId(number), settings) {
                Ok(snapshot) => snapshots.push(snapshot),
                Err(problem) => self.problems.extend(problem),
            }
        }
        snapshots
    }

    /// The host pages in use, of which the VMs hold `held`. If the VMs hold more than the host has, so does this.
    fn used(&mut self, host: &WrittenHost, memory: Pages, held: Pages) -> Pages {
        let given = [host.used, host.free, host.overhead];
        if given.iter().flatten().count() > 1 {
            let text = "[host]: used, free and overhead follow from each other: give one of them";
            self.wrong(host.line, text.to_owned());
        }
        let bytes = Pages::bytes;
        let (key, value, used) = match given {
            [Some(used), ..] => ("used", used, used),
            [_, Some(free), _] => ("free", free, memory.saturating_sub(free)),
            [.., overhead] => return sum([held, overhead.unwrap_or_default()]),
        };
        if value > memory {
            let text = format!(
                "[host]: {key} is {}, more than the memory of {}",
                bytes(value),
                bytes(memory)
            );
            self.wrong(host.line, text);
        } else if held > used {
            let text = format!(
                "[host]: {key} {} means that {} are in use, but the VMs hold {}; allowed: used of at \
                 least what they hold, or VMs that hold less (consumed, swapped, balloon)",
                bytes(value),
                bytes(used),
                bytes(held)
            );
            self.wrong(host.line, text);
        }
        used
    }
}

pub(super) fn sum(pages: impl IntoIterator<Item = Pages>) -> Pages {
    Pages(
        pages
            .into_iter()
            .fold(0, |sum, pages| pages.0.saturating_add(sum)),
    )
}

/// A size. A fraction of a page is dropped, but a size between zero and one page is refused.
pub(super) fn size(text: &str) -> Option<Pages> {
    let bytes: Bytes = text.parse().ok()?;
    let pages = bytes.pages();
    (bytes == Bytes(0) || pages > Pages(0)).then_some(pages)
}
