//! Changes of resource pools: by hand, and by a new configuration file.
//!
//! A change is made in a copy of the tree. It is put in force only if the copy is a tree, if nobody loses the pool that
//! he is in, and if no pool would promise more beyond what it may than it does now.

use std::collections::HashMap;

use super::super::resource_pools::{self, PoolLayers};
use super::Admission;
use crate::control::ControlError;
use crate::policy::{Asked, Config, HostSnapshot, Ledger, ROOT, Refusal, ResourcePool};
use crate::settings::{ConfigFile, PoolPatch, PoolSettingsError, Problem, ROOT_POOL};
use crate::units::{Pages, VmId};

impl Admission {
    /// Adds a pool.
    pub(in crate::host) fn add_pool(
        &self,
        name: &str,
        patch: &PoolPatch,
    ) -> Result<(), ControlError> {
        let _alone = self.promising();
        let now = self.configuration.resource_pools.layers();
        crate::settings::check_pool_name(name)?;
        if now.names().iter().any(|known| known == name) {
            return Err(ControlError::PoolExists {
                name: name.to_owned(),
            });
        }
        self.put_in_force(name, &now, patch)
    }

    /// Changes settings of a pool, all of them or none.
    pub(in crate::host) fn set_pool(
        &self,
        name: &str,
        patch: &PoolPatch,
    ) -> Result<(), ControlError> {
        let _alone = self.promising();
        let now = self.configuration.resource_pools.layers();
        resource_pools::find(now.list(), name)?;
        self.put_in_force(name, &now, patch)
    }

    fn put_in_force(
        &self,
        name: &str,
        now: &PoolLayers,
        patch: &PoolPatch,
    ) -> Result<(), ControlError> {
        patch.check(name)?;
        let new = now.with(name, patch)?;
        let config = self.configuration.settings().policy();
        let at = resource_pools::find(new.list(), name)?;
        let asked = new.list()[at].reservation;
        let nothing = HashMap::new();
        self.check_pools(&new, &nothing, asked, &config)
            .map_err(|refusal| ControlError::Refused(refusal.to_string()))?;
        self.configuration.resource_pools.replace(new);
        self.configuration.note_change();
        Ok(())
    }

    /// Removes a pool in which nothing is.
    pub(in crate::host) fn remove_pool(&self, name: &str) -> Result<(), ControlError> {
        let _alone = self.promising();
        let now = self.configuration.resource_pools.layers();
        let at = resource_pools::find(now.list(), name)?;
        if name == ROOT_POOL {
            return Err(PoolSettingsError::Name(ROOT_POOL.to_owned()).into());
        }
        if now.is_in_file(name) {
            return Err(ControlError::PoolInFile {
                name: name.to_owned(),
            });
        }
        let pools = now.list().iter().skip(1).filter(|pool| pool.parent == at);
        let pools: Vec<String> = pools.map(|pool| pool.name.clone()).collect();
        let vms = self.vms_in(name);
        if !vms.is_empty() || !pools.is_empty() {
            return Err(ControlError::PoolOccupied {
                name: name.to_owned(),
                vms,
                pools,
            });
        }
        self.configuration.resource_pools.replace(now.without(name));
        self.configuration.note_change();
        Ok(())
    }

    /// The names of the VMs that are in a pool, or on their way into it.
    fn vms_in(&self, pool: &str) -> Vec<String> {
        let members = self.members.all().into_iter();
        let running = members.filter(|member| member.settings().pool == pool);
        let running = running.map(|member| member.vm.params.name.clone());
        let promised = self.members.promised().into_iter();
        let promised = promised.filter(|(_, promise)| promise.pool == pool);
        running.chain(promised.map(|(name, _)| name)).collect()
    }

    /// The pools with those of a new file, if these can be. `moving` is what VMs whose settings the file changes keep
    /// of their reservations meanwhile.
    pub(super) fn pools_of_file(
        &self,
        file: &ConfigFile,
        moving: &HashMap<VmId, Pages>,
        config: &Config,
    ) -> Result<PoolLayers, Problem> {
        let problem = |name: &str, key: &str, text: String| Problem {
            line: file.pools.get(name).map(|table| table.line_of(key)),
            text: format!("resource pool `{name}`: {text}"),
        };
        let now = self.configuration.resource_pools.layers();
        let new = now
            .with_file(file.pool_patches())
            .map_err(|(name, error)| {
                problem(&name, error.key().unwrap_or_default(), error.in_full())
            })?;
        let gone = now.names().into_iter();
        let gone = gone.filter(|name| resource_pools::find(new.list(), name).is_err());
        for name in gone {
            let stays = |vm: &String| {
                self.members
                    .by_name(vm)
                    .is_none_or(|vm| !moving.contains_key(&vm.vm.id))
            };
            let vms: Vec<String> = self.vms_in(&name).into_iter().filter(stays).collect();
            if !vms.is_empty() {
                let text = format!(
                    "it is not in the file any more, but VMs are in it: {}",
                    vms.join(", ")
                );
                return Err(problem(&name, "", text));
            }
        }
        let asked = new.list().iter().map(|pool| pool.reservation.0).max();
        self.check_pools(&new, moving, Pages(asked.unwrap_or(0)), config)
            .map_err(|refusal| {
                let pool = match &refusal {
                    Refusal::Pool { pool, .. } | Refusal::Promised { pool, .. } => pool.as_str(),
                    _ => ROOT_POOL,
                };
                problem(pool, "reservation", refusal.to_string())
            })?;
        Ok(new)
    }

    /// Whether the pools may promise what they would. The VMs that are `moving` count with what they keep.
    fn check_pools(
        &self,
        new: &PoolLayers,
        moving: &HashMap<VmId, Pages>,
        asked: Pages,
        config: &Config,
    ) -> Result<(), Refusal> {
        let with = |pools: &[ResourcePool]| {
            let mut host = self.with_promises(pools);
            for vm in &mut host.vms {
                if let Some(kept) = moving.get(&vm.id) {
                    vm.reservation = vm.reservation.min(*kept);
                }
            }
            host
        };
        let now: HostSnapshot = with(&self.configuration.resource_pools.list());
        let mut after = with(new.list());
        // Of one moment: otherwise what a VM does meanwhile would count as a change of the pools.
        after.used = now.used;
        let asked = Asked {
            reservation: asked,
            overhead: Pages(0),
            by_pool: true,
        };
        Ledger::of(&now, config).allows(&Ledger::of(&after, config), &after, asked)
    }

    /// Whether what the pools of the configuration file reserve fits into a host that starts.
    pub(in crate::host) fn check_start(&self) -> Result<(), Refusal> {
        let config = self.configuration.settings().policy();
        let host = self.with_promises(&self.configuration.resource_pools.list());
        let bare = HostSnapshot {
            resource_pools: host.resource_pools[..=ROOT].to_vec(),
            ..host.clone()
        };
        let largest = host
            .resource_pools
            .iter()
            .map(|pool| pool.reservation)
            .max();
        let asked = Asked {
            reservation: largest.unwrap_or_default(),
            overhead: Pages(0),
            by_pool: true,
        };
        Ledger::of(&bare, &config).allows(&Ledger::of(&host, &config), &host, asked)
    }
}
