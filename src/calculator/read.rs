//! Makes a scenario of the values of a file. All that is wrong is reported at once.

use std::collections::{BTreeMap, HashSet};

use memvisor_wire::vm_name::check_vm_name;
use serde::Deserialize;
use toml::Spanned;

use super::Scenario;
use super::vm::WrittenVm;
use crate::policy::{FreeState, HostSnapshot, Policy, ResourcePool, VmSnapshot};
use crate::settings::{
    HostSettings, Keys, Layer, Layers, Problem, Profile, Reading, Scalar, pool_tree, shown,
};
use crate::units::{Bytes, Pages, VmId};

/// What [`size`] reads.
pub(super) const SIZES: &str = "a size of at least a page, such as 8G, 179M or 500 pages";

/// The tables of a file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Written {
    host: Option<WrittenHost>,
    settings: Keys,
    vm: BTreeMap<String, Spanned<Keys>>,
    pool: BTreeMap<String, Spanned<Keys>>,
}

/// The table `[host]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct WrittenHost {
    memory: Spanned<Size>,
    used: Option<Spanned<Size>>,
    free: Option<Spanned<Size>>,
    overhead: Option<Spanned<Size>>,
    #[serde(default)]
    state: FreeState,
    #[serde(default)]
    profile: Profile,
    policy: Option<&'static dyn Policy>,
}

/// What [`size`] reads.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "Scalar")]
struct Size(Pages);

impl TryFrom<Scalar> for Size {
    type Error = String;

    fn try_from(written: Scalar) -> Result<Self, String> {
        let text = written.to_string();
        let size = size(&text).map(Self);
        size.ok_or_else(|| format!("cannot be `{}`; allowed: {SIZES}", shown(&text)))
    }
}

/// The scenario of a file.
pub(super) fn scenario(mut reading: Reading, written: &Written) -> Result<Scenario, Vec<Problem>> {
    let host = written.host.as_ref();
    if reading.problems.is_empty() && written.vm.is_empty() {
        reading.wrong(None, "there is no VM; write [vm.NAME] for each");
    }
    if reading.problems.is_empty() && host.is_none() {
        reading.wrong(None, &format!("[host] needs memory, {SIZES}"));
    }
    if let Some(host) = host.filter(|host| host.memory.get_ref().0 == Pages(0)) {
        let text = format!("[host]: memory cannot be 0; allowed: {SIZES}");
        reading.wrong(host.memory.span(), &text);
    }
    let layer = reading.settings(&written.settings);
    let profile = host.map(|host| host.profile).unwrap_or_default();
    let settings = Layers::new(profile, layer, Layer::default()).effective();
    let pools = reading.pools(&written.pool);
    let pools = pools.into_iter().map(|(name, table)| (name, table.patch));
    // What is no tree was noted when the pools were read.
    let pools = pool_tree(&pools.collect()).unwrap_or_default();
    let (names, vms) = reading.snapshots(&written.vm, &settings, &pools);
    let Some(host) = host.filter(|_| reading.problems.is_empty()) else {
        return Err(reading.problems);
    };
    let used = reading.used(host, sum(vms.iter().map(VmSnapshot::backing)));
    if !reading.problems.is_empty() {
        return Err(reading.problems);
    }
    Ok(Scenario {
        profile,
        policy: host.policy.unwrap_or_else(|| profile.policy()),
        host: HostSnapshot {
            least_free: None,
            resource_pools: pools,
            budget: host.memory.get_ref().0,
            used,
            state: host.state,
            vms,
            seed: 0,
        },
        config: settings.policy(),
        names,
    })
}

impl Reading {
    /// The names of the VMs, in the order of the file, and those that can be.
    fn snapshots(
        &mut self,
        tables: &BTreeMap<String, Spanned<Keys>>,
        host: &HostSettings,
        pools: &[ResourcePool],
    ) -> (Vec<String>, Vec<VmSnapshot>) {
        let mut tables: Vec<_> = tables.iter().collect();
        tables.sort_by_key(|(_, table)| table.span().start);
        let (mut seen, mut names, mut vms) = (HashSet::new(), Vec::new(), Vec::new());
        for (id, (key, table)) in (1..).zip(tables) {
            // One of `[[vm]]` has its name among its keys.
            let name = table.get_ref().get("name");
            let name = name.map_or_else(|| key.clone(), ToString::to_string);
            if let Err(error) = check_vm_name(&name) {
                self.wrong(table.span(), &error.to_string());
            } else if !seen.insert(name.clone()) {
                self.wrong(table.span(), &format!("VM {name} is there twice"));
            }
            vms.extend(self.snapshot(VmId(id), &name, table, (host, pools)));
            names.push(name);
        }
        (names, vms)
    }

    fn snapshot(
        &mut self,
        id: VmId,
        name: &str,
        table: &Spanned<Keys>,
        (host, pools): (&HostSettings, &[ResourcePool]),
    ) -> Option<VmSnapshot> {
        let wrong = |error: &str| format!("VM {}: {error}", shown(name));
        let (mut vm, known) = (WrittenVm::default(), self.problems.len());
        for (key, value) in table.get_ref() {
            if let Err(error) = vm.take(key, &value.to_string()) {
                self.wrong(value.span(), &wrong(&error));
            }
        }
        // What does not follow from values that are wrong is no other problem.
        if self.problems.len() > known {
            return None;
        }
        let snapshot = vm.snapshot(id, host, pools);
        snapshot
            .map_err(|error| self.wrong(table.span(), &wrong(&error)))
            .ok()
    }

    /// The host pages in use, of which the VMs hold `held`. If the VMs hold more than the host has, so does this.
    fn used(&mut self, host: &WrittenHost, held: Pages) -> Pages {
        let size = |size: &Spanned<Size>| size.get_ref().0;
        let memory = size(&host.memory);
        let given = [&host.used, &host.free, &host.overhead].map(Option::as_ref);
        if let Some(second) = given.iter().flatten().nth(1) {
            let text = "[host]: used, free and overhead follow from each other: give one of them";
            self.wrong(second.span(), text);
        }
        let (key, written, used) = match given {
            [Some(used), ..] => ("used", used, size(used)),
            [_, Some(free), _] => ("free", free, memory.saturating_sub(size(free))),
            [.., overhead] => return sum([held, overhead.map(size).unwrap_or_default()]),
        };
        let (value, bytes) = (size(written).bytes(), Pages::bytes);
        if size(written) > memory {
            let memory = bytes(memory);
            let text = format!("[host]: {key} is {value}, more than the memory of {memory}");
            self.wrong(written.span(), &text);
        } else if held > used {
            let (used, held) = (bytes(used), bytes(held));
            let text = format!(
                "[host]: {key} {value} means that {used} are in use, but the VMs hold {held}; \
                 allowed: used of at least what they hold, or VMs that hold less (consumed, \
                 swapped, balloon)"
            );
            self.wrong(written.span(), &text);
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
