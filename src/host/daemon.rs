//! What all threads of the daemon share.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use super::averages::Averages;
use super::capability::Capabilities;
use super::configuration::Configuration;
use super::governor::Decision;
use super::member::{Member, Members};
use super::{EngineChoice, HostOptions, vm_settings};
use crate::control::{self, AgentToken, ControlError, ReloadReport};
use crate::engine::EngineKind;
use crate::page::{Budget, Urgency};
use crate::policy::{self, FreeState};
use crate::pool::{Hints, Pool};
use crate::reclaim::host_ghz;
use crate::settings::{Domain, SettingView, VmPatch, VmSettings};
use crate::sys::map_large_allocations;
use crate::telemetry::{HostStatus, VmStatus};
use crate::units::{Pages, VmId};

/// The reserve: so much of the budget, within bounds. Half of the low threshold of 1 %: first touches
/// go on until low is entered, and what a reclaim batch needs for a moment is a few pages. In any case it
/// is less than what is free where soft begins: a host that hands nothing out must be reclaiming.
const RESERVE_PART: u64 = 200;
const RESERVE_MIN: u64 = 16;
/// Frames of a pool for each page of the budget: extents need room behind each start, and unused
/// frames cost nothing.
const FRAMES_PER_PAGE: u64 = 4;
/// A small pool would have no room for extents of 4096 frames.
const MIN_FRAMES: u64 = 1 << 16;
/// The pool must fit the address space of every guest: 1 TiB of frames.
const MAX_FRAMES: u64 = 1 << 28;

/// The daemon. Lock order: `domains`, `layers` and `state` are taken alone; `members` has its own.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) options: HostOptions,
    pub(super) engine: EngineKind,
    pub(super) vma_budget: u32,
    pub(super) budget: Arc<Budget>,
    pub(super) members: Arc<Members>,
    pub(super) ghz: f64,
    pub(super) since: Instant,
    state: Mutex<FreeState>,
    domains: Mutex<HashMap<Domain, Weak<Pool>>>,
    /// Those of all pools.
    hints: Arc<Hints>,
    pub(super) configuration: Configuration,
    pub(super) overcommit: Mutex<Averages>,
    /// What the policy thread decided last.
    latest: Mutex<Option<Decision>>,
    /// Changes with each snapshot, so that no VM always bears the odd page.
    seed: AtomicU64,
    next_vm: AtomicU32,
    stopping: AtomicBool,
}

/// The pages of a budget that first touches leave alone.
fn reserve(total: Pages) -> Pages {
    Pages((total.0 / RESERVE_PART).max(RESERVE_MIN))
}

impl Host {
    pub(super) fn new(options: &HostOptions, capabilities: &Capabilities) -> Self {
        // Before the first table.
        map_large_allocations();
        let total = options.memory.pages();
        let budget = Arc::new(Budget::new(total, reserve(total)));
        // Nobody else has taken any: a quarter of a percent is there.
        let _ = budget.take(Hints::metadata(total).0, Urgency::Reclaim);
        Self {
            engine: capabilities.engine,
            vma_budget: capabilities.vma_budget,
            budget,
            hints: Arc::new(Hints::new(total)),
            members: Arc::default(),
            ghz: host_ghz(),
            since: Instant::now(),
            state: Mutex::default(),
            domains: Mutex::default(),
            configuration: Configuration::new(options),
            overcommit: Mutex::default(),
            latest: Mutex::default(),
            seed: AtomicU64::new(0),
            next_vm: AtomicU32::new(1),
            stopping: AtomicBool::new(false),
            options: options.clone(),
        }
    }

    /// Whether guests fall back to page protection when they cannot open a userfaultfd.
    pub(super) fn may_fall_back(&self) -> bool {
        self.options.engine == EngineChoice::Auto
    }

    pub(super) fn next_vm(&self) -> VmId {
        VmId(self.next_vm.fetch_add(1, Ordering::Relaxed))
    }

    /// The sharing domain of a VM with these settings.
    pub(super) fn domain(&self, id: VmId, vm: &VmSettings) -> Domain {
        let force = self.settings().share_force_salting;
        Domain::of(id, vm.salt.as_deref(), vm.sharing, force)
    }

    /// The pool of a sharing domain; it lives as long as a VM uses it. A VM that shares with nobody has
    /// one of its own that stays empty.
    pub(super) fn pool(&self, id: VmId, domain: &Domain) -> io::Result<Arc<Pool>> {
        let mut domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        domains.retain(|_, pool| pool.strong_count() > 0);
        let key = match domain {
            Domain::None => Domain::Own(id),
            shared => shared.clone(),
        };
        if let Some(pool) = domains.get(&key).and_then(Weak::upgrade) {
            return Ok(pool);
        }
        let pool = Arc::new(Pool::new("memvisor-pool", self.pool_frames(), &self.hints)?);
        domains.insert(key, Arc::downgrade(&pool));
        Ok(pool)
    }

    /// Frames of every pool, holes included.
    pub(super) fn pool_frames(&self) -> u32 {
        let frames = self.budget.total().0.saturating_mul(FRAMES_PER_PAGE);
        u32::try_from(frames.clamp(MIN_FRAMES, MAX_FRAMES)).unwrap_or(u32::MAX)
    }

    /// The memory of the daemon's own that VMs do not pay for: hints.
    pub(super) fn metadata(&self) -> Pages {
        Hints::metadata(self.budget.total())
    }

    /// The pools that are in use.
    pub(super) fn pools(&self) -> Vec<Arc<Pool>> {
        let domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        domains.values().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn state(&self) -> FreeState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the free state; the one before.
    pub(super) fn set_state(&self, state: FreeState) -> FreeState {
        std::mem::replace(
            &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner),
            state,
        )
    }

    /// A number that no snapshot had before.
    pub(super) fn next_seed(&self) -> u64 {
        self.seed.fetch_add(1, Ordering::Relaxed)
    }

    /// What the policy thread decided last; `None` before its first look.
    pub(super) fn latest(&self) -> Option<Decision> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.clone()
    }

    /// Notes what the policy thread has decided.
    pub(super) fn set_latest(&self, decision: Decision) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Some(decision);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends all guests and lets the policy thread end.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.budget.ring_alarm();
        for member in self.members.all() {
            member.end("the host shuts down");
        }
    }

    fn find(&self, name: &str) -> Result<Arc<Member>, ControlError> {
        if self.is_stopping() {
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

    fn vm(&self, name: &str) -> Option<VmStatus> {
        self.members
            .by_name(name)
            .map(|member| self.vm_status(&member))
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
            if !member.balloon.attached.load(Ordering::Acquire) {
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

    fn kill(&self, name: &str) -> Result<(), ControlError> {
        self.find(name)?.end("ended by request");
        Ok(())
    }

    fn settings(&self) -> Vec<SettingView> {
        self.configuration.views()
    }

    fn set_setting(&self, name: &str, value: &str) -> Result<SettingView, ControlError> {
        Ok(self.change_setting(name, value)?)
    }

    fn set_vm(&self, name: &str, patch: &VmPatch) -> Result<VmStatus, ControlError> {
        let member = self.find(name)?;
        vm_settings::change(self, &member, patch)?;
        tracing::info!(vm = name, "settings changed");
        Ok(self.vm_status(&member))
    }

    fn token(&self, name: &str) -> Result<AgentToken, ControlError> {
        let token = format!("{:#018x}", self.find(name)?.balloon.token);
        Ok(AgentToken { token })
    }

    fn why(&self, name: &str) -> Result<serde_json::Value, ControlError> {
        let member = self.find(name)?;
        let explained = self.latest().and_then(|decision| {
            let Decision {
                snapshot,
                config,
                plan,
            } = &decision;
            policy::explain(snapshot, config, plan, member.vm.id)
        });
        // A VM that has just been powered on is in the next plan.
        let explained = explained.ok_or_else(|| ControlError::NotYet(name.to_owned()))?;
        let mut value = serde_json::to_value(explained).unwrap_or_default();
        value["name"] = name.into();
        Ok(value)
    }

    fn reload(&self) -> Result<ReloadReport, ControlError> {
        self.reload_file()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Config, Generation, Thresholds};

    /// Else guests would wait for memory on a host that is not short, as it thinks.
    #[test]
    fn reserve_is_less_than_what_is_free_where_soft_begins() {
        // 4 MiB and more.
        for total in (10..40).map(|bits| Pages(1 << bits)) {
            for generation in Generation::ALL {
                for min_free_percent in 0..=50 {
                    let config = Config {
                        generation,
                        min_free_percent,
                        ..Config::default()
                    };
                    let soft = Thresholds::of(total, &config).soft;
                    assert!(
                        reserve(total) < soft,
                        "{total:?} {generation} {min_free_percent} %"
                    );
                }
            }
        }
    }
}
