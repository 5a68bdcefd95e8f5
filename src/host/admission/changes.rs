//! Changes of the settings of running VMs: of one VM by hand, of all by a new configuration file.
//!
//! A reload that was applied VM by VM would stop at the first change that is refused. That would leave a host with
//! half of a file in force, and VMs whose next change fails because of what the file says. So changes are
//! carried out together. First comes everything that can be refused: promises of memory, against each other
//! and with the host's settings as they will be; then swap files that begin to move or grow. Every fault is
//! found, and if there is one, what was begun is undone. Only then the settings change, and swap files
//! shrink, which cannot be refused.

use std::error::Error;

use thiserror::Error as Described;

use super::super::member::Member;
use super::super::resource_pools;
use super::super::vm_settings::{Layered, balloon_max, swap_slots};
use super::Admission;
use crate::chain::chain;
use crate::control::{ControlError, ReloadReport};
use crate::policy::{Asked, Config, HostSnapshot, Ledger, ResourcePool};
use crate::settings::{ConfigFile, Problem, SettingError, VmPatch, VmSettings};
use crate::units::Pages;

/// A change of the settings of one VM, from `old` to `new`.
struct Change<'a> {
    member: &'a Member,
    old: VmSettings,
    new: Layered,
}

/// An error whose text says what is allowed.
#[derive(Debug, Described)]
#[error("{0}")]
struct InFull(String);

/// Why a change cannot be made.
struct Fault<'a> {
    member: &'a Member,
    /// The short name of the setting that asks for it.
    key: &'static str,
    text: String,
}

impl<'a> Change<'a> {
    fn reservation(&self) -> Pages {
        self.new.now.reservation
    }

    /// What it keeps of its reservation until the change is made: none of it if it moves to another resource pool.
    fn kept(&self) -> Pages {
        if self.moves() {
            Pages(0)
        } else {
            self.reservation().min(self.old.reservation)
        }
    }

    fn moves(&self) -> bool {
        self.new.now.pool != self.old.pool
    }

    /// The short name of the setting that asks for memory elsewhere.
    fn asks_by(&self) -> &'static str {
        if self.moves() { "pool" } else { "reservation" }
    }

    /// Slots of its swap file, before and after.
    fn slots(&self) -> (u32, u32) {
        let slots = |settings| swap_slots(&self.member.vm.params, settings);
        (slots(&self.old), slots(&self.new.now))
    }

    fn fault(&self, key: &'static str) -> impl Fn(&dyn Error) -> Fault<'a> {
        let member = self.member;
        move |error| Fault {
            member,
            key,
            text: chain(error),
        }
    }
}

impl Fault<'_> {
    /// The fault as a problem of the configuration file, for whoever wrote it.
    fn in_file(self, file: &ConfigFile) -> Problem {
        let name = &self.member.vm.params.name;
        Problem {
            line: file.vms.get(name).map(|table| table.line_of(self.key)),
            text: format!("VM `{name}`: {}", self.text),
        }
    }
}

impl Admission {
    /// Changes settings of a running VM, all of them or none.
    pub(in crate::host) fn change(
        &self,
        member: &Member,
        patch: &VmPatch,
    ) -> Result<(), ControlError> {
        let _alone = self.promising();
        let old = member.layered();
        let params = &member.vm.params;
        let file = self.configuration.vm_in_file(&params.name);
        let new = old.with_change(&file, patch, params)?;
        let pools = self.configuration.resource_pools.list();
        resource_pools::find(&pools, &new.now.pool)?;
        let changes = [Change {
            member,
            old: old.now,
            new,
        }];
        let config = self.configuration.settings().policy();
        if let Some(fault) = self.prepare(&changes, &pools, &config).into_iter().next() {
            self.give_up(&changes);
            return Err(ControlError::Refused(fault.text));
        }
        self.apply(changes);
        Ok(())
    }

    /// Reads the configuration file again and applies it, as a whole or not at all.
    pub(in crate::host) fn reload(&self) -> Result<ReloadReport, ControlError> {
        let _alone = self.promising();
        // Before the file is read: then this version is not reloaded once more, and one that is written meanwhile is.
        self.configuration.poll_file();
        let file = self.configuration.file().ok_or(ControlError::NoConfig)?;
        let refused = |error: &dyn Error| ControlError::Config(chain(error));
        let new = file.load_again().map_err(|error| refused(&error))?;
        let members = self.members.all();
        let (mut changes, mut faults) = (Vec::new(), Vec::new());
        for member in &members {
            match change_by(&new, member) {
                Ok(change) => changes.extend(change),
                Err(fault) => faults.push(fault),
            }
        }
        let settings = self.configuration.settings_with(&new);
        let config = settings.policy();
        let moving = |change: &Change<'_>| (change.member.vm.id, change.kept());
        let moving = changes.iter().map(moving).collect();
        let pools = self.pools_of_file(&new, &moving, &config);
        let cache = self.configuration.check_cache(&settings).err();
        let in_file = |error: SettingError| Problem {
            line: None,
            text: error.to_string(),
        };
        let mut problems: Vec<_> = cache.map(in_file).into_iter().collect();
        match &pools {
            Ok(pools) => faults.extend(self.prepare(&changes, pools.list(), &config)),
            Err(problem) => problems.push(problem.clone()),
        }
        problems.extend(faults.into_iter().map(|fault| fault.in_file(&new)));
        let pools = match pools {
            Ok(pools) if problems.is_empty() => pools,
            _ => {
                self.give_up(&changes);
                return Err(refused(&new.invalid(problems)));
            }
        };
        let vms = changes.iter().map(|c| c.member.vm.params.name.clone());
        let vms: Vec<String> = vms.collect();
        let file = new.path.display().to_string();
        let settings = self.configuration.replace_file(new);
        let pools = self.configuration.resource_pools.replace(pools);
        self.apply(changes);
        Ok(ReloadReport {
            file,
            settings,
            vms,
            pools,
        })
    }

    /// Does everything that can be refused; returns what was refused. If anything was, the caller gives the changes
    /// up.
    fn prepare<'a>(
        &self,
        changes: &[Change<'a>],
        pools: &[ResourcePool],
        config: &Config,
    ) -> Vec<Fault<'a>> {
        let mut faults = self.check_promises(changes, pools, config);
        let swap = changes.iter().map(|change| self.prepare_swap(change));
        faults.extend(swap.filter_map(Result::err));
        faults
    }

    /// Checks that the VMs may be promised what the changes ask for; returns a fault for each that may not. `pools` are
    /// those that there will be. What the pools themselves may promise was checked before.
    fn check_promises<'a>(
        &self,
        changes: &[Change<'a>],
        pools: &[ResourcePool],
        config: &Config,
    ) -> Vec<Fault<'a>> {
        let mut host = self.with_promises(pools);
        let place = |host: &HostSnapshot, change: &Change<'_>| {
            let id = change.member.vm.id;
            host.vms.iter().position(|vm| vm.id == id)
        };
        // First what is given up, because others may have it.
        for change in changes {
            if let Some(at) = place(&host, change) {
                let kept = change.kept();
                host.vms[at].reservation = host.vms[at].reservation.min(kept);
            }
        }
        let mut faults = Vec::new();
        for change in changes {
            let Some(at) = place(&host, change) else {
                continue;
            };
            let before = Ledger::of(&host, config);
            let now = host.vms[at].clone();
            match resource_pools::find(pools, &change.new.now.pool) {
                Ok(pool) => host.vms[at].resource_pool = pool,
                Err(unknown) => {
                    faults.push(change.fault("pool")(&InFull(unknown.in_full())));
                    continue;
                }
            }
            host.vms[at].reservation = change.reservation();
            let asked = Asked {
                reservation: change.reservation(),
                // The VM runs, so its overhead is charged already.
                overhead: Pages(0),
                by_pool: false,
            };
            let after = Ledger::of(&host, config);
            if let Err(refusal) = before.allows(&after, &host, asked) {
                faults.push(change.fault(change.asks_by())(&refusal));
                host.vms[at] = now;
            }
        }
        faults
    }

    /// Begins to move the VM's swap file, and makes room for additional slots.
    fn prepare_swap<'a>(&self, change: &Change<'a>) -> Result<(), Fault<'a>> {
        let swap = &change.member.vm.swap.file;
        let configuration = &self.configuration;
        let to = configuration.swap_dir(&change.new.now);
        if configuration.swap_dir(&change.old) != to {
            let moved = swap.begin_move(&to);
            moved.map_err(|error| change.fault("swap-dir")(&error))?;
        }
        let (before, after) = change.slots();
        if after > before {
            let grown = swap.resize(after);
            grown.map_err(|error| change.fault("reservation")(&error))?;
        }
        Ok(())
    }

    /// Undoes what was prepared, as far as it was.
    fn give_up(&self, changes: &[Change<'_>]) {
        for change in changes {
            let swap = &change.member.vm.swap.file;
            let (before, after) = change.slots();
            let there = self.configuration.swap_dir(&change.old);
            let mut undone = Ok(());
            if there != self.configuration.swap_dir(&change.new.now) {
                // To move a file to where it is gives up the move that is under way.
                undone = swap.begin_move(&there);
            }
            if after > before {
                undone = undone.and(swap.resize(before));
            }
            log_leftover(change.member, undone);
        }
    }

    /// Puts prepared changes in force. The workers go on moving swap files; the policy thread applies all else
    /// that follows from settings at its next look.
    fn apply<'a>(&self, changes: impl IntoIterator<Item = Change<'a>>) {
        for change in changes {
            let (before, after) = change.slots();
            if after < before {
                log_leftover(change.member, change.member.vm.swap.file.resize(after));
            }
            // At once, because the answer to the change tells the maximum.
            let host = self.configuration.settings();
            let pages = change.member.vm.params.pages;
            change
                .member
                .set_balloon_max(balloon_max(pages, &change.new.now, &host));
            change.member.set_layered(change.new);
            self.configuration.note_change();
        }
    }
}

/// What a file changes in the settings of a VM, if anything.
fn change_by<'a>(file: &ConfigFile, member: &'a Member) -> Result<Option<Change<'a>>, Fault<'a>> {
    let params = &member.vm.params;
    let layered = member.layered();
    let new = layered.with_file(&file.vm(&params.name), params);
    let new = new.map_err(|error| Fault {
        member,
        key: error.key().unwrap_or_default(),
        text: error.in_full(),
    })?;
    let old = layered.now;
    Ok((new.now != old).then_some(Change { member, old, new }))
}

/// Logs a swap file that could not be cut: its disk space is given back later, or with the VM.
fn log_leftover(member: &Member, cut: Result<(), crate::swap::SwapError>) {
    if let Err(error) = cut {
        let (vm, error): (_, &dyn Error) = (&member.vm.params.name, &error);
        tracing::warn!(%vm, error, "its swap file is longer than it has to be");
    }
}
