//! What clients of the control API can ask of the daemon.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::daemon::Host;
use super::governor::Decision;
use super::member::Member;
use crate::control::{self, AgentToken, ControlError, ReloadReport};
use crate::policy;
use crate::reclaim::Job;
use crate::settings::{PoolPatch, SettingView, VmPatch};
use crate::telemetry::{HostStatus, PoolStatus, ShareEstimate, VmStatus};
use crate::units::Pages;

impl Host {
    fn find(&self, name: &str) -> Result<Arc<Member>, ControlError> {
        // Asked first: a VM that has ended with the host must not be called unknown.
        if self.members.is_closed() {
            return Err(ControlError::Stopping);
        }
        self.members
            .by_name(name)
            .ok_or_else(|| ControlError::UnknownVm {
                name: name.to_owned(),
                running: self
                    .members
                    .all()
                    .iter()
                    .map(|m| m.vm.params.name.clone())
                    .collect(),
            })
    }
}

impl control::Daemon for Host {
    fn status(&self) -> HostStatus {
        self.host_status()
    }

    fn planned(&self) -> Instant {
        self.governor.planned()
    }

    fn vm(&self, name: &str) -> Option<VmStatus> {
        let member = self.members.by_name(name)?;
        // Not for the status of all VMs: a host whose status is polled would walk the page tables of all guests all the
        // time.
        member.vm.activity.watch();
        Some(self.vm_status(&member))
    }

    fn estimate_sharing(&self) -> Result<ShareEstimate, ControlError> {
        Host::estimate_sharing(self)
    }

    fn set_balloon(&self, name: &str, target: Option<Pages>) -> Result<VmStatus, ControlError> {
        let member = self.find(name)?;
        let max = member.balloon.max();
        if let Some(asked) = target {
            if asked > max {
                return Err(ControlError::BalloonTooLarge {
                    name: name.to_owned(),
                    asked,
                    max,
                });
            }
            if !member.balloon.connected.load(Ordering::Relaxed) {
                return Err(ControlError::NoAgent {
                    name: name.to_owned(),
                });
            }
        }
        tracing::info!(vm = name, ?target, "balloon target set by hand");
        member.vm.orders.set_manual(target);
        member.balloon.doorbell.ring();
        Ok(self.vm_status(&member))
    }

    fn set_unswap(&self, name: &str, rate: Option<NonZeroU32>) -> Result<VmStatus, ControlError> {
        let member = self.find(name)?;
        tracing::info!(vm = name, rate, "unswap ordered");
        member.vm.orders.set_unswap(rate);
        member.worker.suggest(Job::Wake);
        Ok(self.vm_status(&member))
    }

    fn kill(&self, name: &str) -> Result<(), ControlError> {
        self.find(name)?.end("ended by request");
        Ok(())
    }

    fn settings(&self) -> Vec<SettingView> {
        self.configuration.views()
    }

    fn set_setting(&self, name: &str, value: &str) -> Result<SettingView, ControlError> {
        let view = self.configuration.set(name, value)?;
        tracing::info!(setting = view.name, value = %view.value, from = %view.from, "set");
        self.governor.wake();
        Ok(view)
    }

    fn set_vm(&self, name: &str, patch: &VmPatch) -> Result<VmStatus, ControlError> {
        let member = self.find(name)?;
        self.admission.change(&member, patch)?;
        self.governor.wake();
        self.record_settings();
        tracing::info!(vm = name, "settings changed");
        Ok(self.vm_status(&member))
    }

    fn pools(&self) -> Vec<PoolStatus> {
        let (ledger, host) = self.admission.promises();
        self.pool_statuses(&ledger, &host)
    }

    fn add_pool(&self, name: &str, patch: &PoolPatch) -> Result<PoolStatus, ControlError> {
        self.admission.add_pool(name, patch)?;
        self.governor.wake();
        self.record_settings();
        tracing::info!(pool = name, "resource pool added");
        self.pool(name)
    }

    fn set_pool(&self, name: &str, patch: &PoolPatch) -> Result<PoolStatus, ControlError> {
        self.admission.set_pool(name, patch)?;
        self.governor.wake();
        self.record_settings();
        tracing::info!(pool = name, "settings of the resource pool changed");
        self.pool(name)
    }

    fn remove_pool(&self, name: &str) -> Result<(), ControlError> {
        self.admission.remove_pool(name)?;
        self.record_settings();
        tracing::info!(pool = name, "resource pool removed");
        Ok(())
    }

    fn token(&self, name: &str) -> Result<AgentToken, ControlError> {
        let token = format!("{:#018x}", self.find(name)?.balloon.token);
        Ok(AgentToken { token })
    }

    fn why(&self, name: &str) -> Result<serde_json::Value, ControlError> {
        let member = self.find(name)?;
        let explained = self.governor.latest().and_then(|decision| {
            let Decision {
                snapshot,
                config,
                plan,
            } = &decision;
            policy::explain(
                self.configuration.policy,
                snapshot,
                config,
                plan,
                member.vm.id,
            )
        });
        // A VM that has just been powered on is not in the latest plan, but will be in the next.
        let explained = explained.ok_or_else(|| ControlError::NotYet(name.to_owned()))?;
        let mut value = serde_json::to_value(explained).unwrap_or_default();
        value["name"] = name.into();
        let status = self.host_status();
        let vm = status.vms.iter().find(|vm| vm.id == member.vm.id);
        let sharing = vm.map(|vm| vm.sharing);
        value["sharing"] = serde_json::to_value(sharing).unwrap_or_default();
        let health = vm.map(|vm| &vm.health);
        value["health"] = serde_json::to_value(health).unwrap_or_default();
        value["host_health"] = serde_json::to_value(&status.health).unwrap_or_default();
        Ok(value)
    }

    fn reload(&self) -> Result<ReloadReport, ControlError> {
        Host::reload(self)
    }
}
