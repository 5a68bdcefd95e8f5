//! Makes a scenario of the values of a file. All that is wrong is reported at once.

use std::str::FromStr;

use super::tree::{Entry, Node, Table, leaves};
use super::vm::{self, WrittenVm};
use super::{Problem, Scenario};
use crate::policy::{FreeState, HostSnapshot, Policy, VmSnapshot, policies};
use crate::settings::{HostSettings, Layer, Layers, Profile, check_vm_name, shown};
use crate::units::{Bytes, Pages, VmId};

const TABLES: &str = "[host], [settings], [vm.NAME]";
const HOST_KEYS: &str = "memory, used, free, overhead, state, profile, policy";
const SIZES: &str = "a size such as 8G, 179M or 500 pages";

/// A file on its way to a scenario.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub problems: Vec<Problem>,
}

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
pub(super) fn scenario(root: &Table) -> Result<Scenario, Vec<Problem>> {
    let mut reading = Reading::default();
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
            ("vm", Node::List(list)) => vms = reading.listed_vms(entry.line, list),
            ("host" | "settings" | "vm", other) => {
                let kind = other.kind();
                let text = format!("`{key}` is no {kind}; allowed: {TABLES}");
                reading.wrong(entry.line, text);
            }
            _ => {
                let key = shown(key);
                let text = format!("there is no table [{key}]; allowed: {TABLES}");
                reading.wrong(entry.line, text);
            }
        }
    }
    reading.finish(&host, settings, vms)
}

impl Reading {
    pub(super) fn wrong(&mut self, line: Option<usize>, text: String) {
        self.problems.push(Problem { line, text });
    }

    /// The text of a value; `None`, with a problem noted, if it has none. `of` is its place.
    pub(super) fn scalar<'a>(&mut self, of: &str, name: &str, entry: &'a Entry) -> Option<&'a str> {
        if let Node::Scalar(text) = &entry.value {
            return Some(text);
        }
        let (name, kind) = (shown(name), entry.value.kind());
        let text =
            format!("{of}: {name} cannot be this {kind}; allowed: a number, a text, true or false");
        self.wrong(entry.line, text);
        None
    }

    /// Notes a value that could be read. One that could not, or is there already, becomes a problem.
    pub(super) fn put<T>(
        &mut self,
        place: &mut Option<T>,
        value: Result<T, String>,
        of: &str,
        entry: &Entry,
    ) {
        let key = &entry.key;
        match value {
            Ok(_) if place.is_some() => {
                self.wrong(entry.line, format!("{of}: {key} is given twice"));
            }
            Ok(value) => *place = Some(value),
            Err(error) => self.wrong(entry.line, format!("{of}: {key} cannot be {error}")),
        }
    }

    fn host(&mut self, line: Option<usize>, table: &Table) -> WrittenHost {
        let mut host = WrittenHost {
            line,
            ..WrittenHost::default()
        };
        for entry in table {
            let of = "[host]";
            let Some(text) = self.scalar(of, &entry.key, entry) else {
                continue;
            };
            match entry.key.as_str() {
                "memory" => self.put(&mut host.memory, at_least_a_page(text), of, entry),
                "used" => self.put(&mut host.used, size(text), of, entry),
                "free" => self.put(&mut host.free, size(text), of, entry),
                "overhead" => self.put(&mut host.overhead, size(text), of, entry),
                "state" => self.put(&mut host.state, state(text), of, entry),
                "profile" => self.put(&mut host.profile, profile(text), of, entry),
                "policy" => self.put(&mut host.policy, policy(text), of, entry),
                key => {
                    let key = shown(key);
                    let text = format!("there is no `{key}` in [host]; allowed: {HOST_KEYS}");
                    self.wrong(entry.line, text);
                }
            }
            if ["used", "free", "overhead"].contains(&entry.key.as_str()) {
                host.line = entry.line;
            }
        }
        host
    }

    fn settings(&mut self, table: &Table) -> Layer {
        let mut layer = Layer::default();
        for (name, entry) in leaves(table) {
            let Some(text) = self.scalar("[settings]", &name, entry) else {
                continue;
            };
            match layer.put(&name, text) {
                Ok(None) => {}
                Ok(Some(_)) => self.wrong(entry.line, format!("{} is given twice", shown(&name))),
                Err(error) => self.wrong(entry.line, error.to_string()),
            }
        }
        layer
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
            policy: host.policy.unwrap_or_default(),
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

/// The most pages that an address space has.
const MOST: u64 = (1 << 52) - 1;

/// A size with its unit. A fraction of a page is dropped, but a size between zero and one page is refused.
pub(super) fn size(text: &str) -> Result<Pages, String> {
    let error = |why: &str| Err(format!("`{}`{why}; allowed: {SIZES}", shown(text)));
    let trimmed = text.trim();
    let digits = trimmed.trim_start_matches(|c: char| c.is_ascii_digit());
    let number = &trimmed[..trimmed.len() - digits.len()];
    let pages = match digits.trim() {
        "" if number.trim_start_matches('0').is_empty() && !number.is_empty() => Some(0),
        "" if !number.is_empty() => return error(", which has no unit"),
        "p" | "page" | "pages" => number.parse().ok(),
        _ => match Bytes::from_str(trimmed) {
            Ok(bytes) if bytes.0 > 0 && bytes.pages() == Pages(0) => {
                return error(", which is less than a page of 4096 bytes");
            }
            bytes => bytes.ok().map(|bytes| bytes.pages().0),
        },
    };
    match pages {
        Some(pages) if pages <= MOST => Ok(Pages(pages)),
        _ => error(""),
    }
}

fn at_least_a_page(text: &str) -> Result<Pages, String> {
    match size(text)? {
        Pages(0) => Err(format!("`{}`; allowed: {SIZES}", shown(text))),
        pages => Ok(pages),
    }
}

fn state(text: &str) -> Result<FreeState, String> {
    let named = FreeState::ALL.into_iter();
    let found = named.into_iter().find(|state| state.to_string() == text);
    found.ok_or_else(|| format!("`{}`; allowed: high, clear, soft, hard, low", shown(text)))
}

fn policy(text: &str) -> Result<&'static dyn Policy, String> {
    let error = |_| format!("`{}`; allowed: {}", shown(text), policies::names());
    policies::named(text).map_err(error)
}

fn profile(text: &str) -> Result<Profile, String> {
    let profile = text.parse().ok();
    profile.ok_or_else(|| format!("`{}`; allowed: {}", shown(text), Profile::NAMES))
}
