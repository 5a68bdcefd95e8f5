//! The daemon's parts, put together.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::admission::{Admission, Engines};
use super::capability::Capabilities;
use super::census::Census;
use super::configuration::Configuration;
use super::error::HostError;
use super::governor::Governor;
use super::member::Member;
use super::members::Members;
use super::options::{EngineChoice, HostOptions};
use super::pools::Pools;
use super::reserve::reserve;
use super::resource_pools::first_ceiling;
use super::surroundings::Surroundings;
use super::traced;
use crate::control::{ControlError, ReloadReport};
use crate::laboratory::record;
use crate::page::Budget;
use crate::settings::{SettingView, VmSettings};
use crate::sys::map_large_allocations;
use crate::trace::Recorder;
use crate::units::Pages;

/// How long guests get to end when the daemon does.
pub(super) const GUESTS_GRACE: Duration = Duration::from_secs(8);
/// How long the rest of their ends may take after their processes were killed.
pub(super) const KILLED_GRACE: Duration = Duration::from_secs(2);

/// The daemon: its owners by name. Each has its own lock; see the module text.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) engines: Engines,
    pub(super) budget: Arc<Budget>,
    pub(super) members: Arc<Members>,
    pub(super) configuration: Arc<Configuration>,
    pub(super) pools: Arc<Pools>,
    pub(super) admission: Admission,
    pub(super) governor: Arc<Governor>,
    /// Where pages stand with sharing.
    pub(super) census: Census,
    /// Held while what sharing would save is estimated: the workers do that once at a time.
    pub(super) survey: Mutex<()>,
    pub(super) surroundings: Surroundings,
    /// Where sessions of balloon agents are recorded, if at all.
    pub(super) balloon_recorder: Option<record::Recorder>,
    /// Who records what happens to pages, if anybody does.
    pub(super) recorder: Option<Recorder>,
    pub(super) since: Instant,
}

impl Host {
    pub(super) fn new(
        options: &HostOptions,
        capabilities: &Capabilities,
    ) -> Result<Self, HostError> {
        // Before the first table is allocated.
        map_large_allocations();
        let total = options.memory.pages();
        let budget = Arc::new(Budget::new(total, reserve(total)));
        let members = Arc::new(Members::default());
        let configuration = Arc::new(Configuration::new(options));
        let pools = Pools::new(&budget).map_err(|source| HostError::Tables {
            memory: options.memory,
            machine: capabilities.machine.memory(),
            source,
        })?;
        let pools = Arc::new(pools);
        let engines = Engines {
            first: capabilities.engine,
            may_fall_back: options.engine == EngineChoice::Auto,
            vma_budget: capabilities.vma_budget,
        };
        let balloon_recorder = options.record_balloon.as_deref().map(|dir| {
            record::Recorder::new(dir).map_err(|source| HostError::RecordBalloon {
                dir: dir.to_owned(),
                source,
            })
        });
        let balloon_recorder = balloon_recorder.transpose()?;
        let admission = Admission::new(engines, &budget, &members, &configuration, &pools);
        admission.check_start().map_err(HostError::Pools)?;
        let governor = Governor::new(&budget, &members, &configuration, &pools);
        let recorder = traced::start(options, &configuration, &budget)?;
        let machine = &capabilities.machine;
        let surroundings = Surroundings::new(Path::new("/"), options, machine, &budget);
        Ok(Self {
            balloon_recorder,
            engines,
            budget,
            members,
            configuration,
            pools,
            admission,
            governor: Arc::new(governor),
            census: Census::default(),
            survey: Mutex::default(),
            surroundings,
            recorder,
            since: Instant::now(),
        })
    }

    /// The most that a VM may hold until the first plan that knows it.
    pub(super) fn first_ceiling(&self, vm: &VmSettings) -> Option<Pages> {
        first_ceiling(&self.configuration.resource_pools.list(), vm)
    }

    /// Adds a VM that runs.
    pub(super) fn add(&self, member: Arc<Member>) {
        self.members.add(member);
        // At once: in a resource pool with a limit it has no room before the next plan.
        self.governor.wake();
    }

    /// Ends all guests and lets the policy thread end.
    pub(super) fn stop(&self) {
        self.members.close("the host shuts down");
        self.governor.wake();
    }

    /// Reloads the configuration file, and says in the log what has changed.
    pub(super) fn reload(&self) -> Result<ReloadReport, ControlError> {
        let report = self.admission.reload()?;
        self.governor.wake();
        self.record_settings();
        let named = |view: &SettingView| format!("{}={}", view.name, view.value);
        let settings: Vec<String> = report.settings.iter().map(named).collect();
        let (settings, vms) = (settings.join(" "), report.vms.join(" "));
        let pools = report.pools.join(" ");
        tracing::info!(file = report.file, settings, vms, pools, "reloaded");
        Ok(report)
    }

    /// Has settings of VMs and resource pools that have changed recorded.
    pub(super) fn record_settings(&self) {
        let Some(recorder) = &self.recorder else {
            return;
        };
        recorder.pools(&traced::pools(&self.configuration.resource_pools.list()));
        for member in self.members.all() {
            let facts = traced::vm_facts(&member.vm.params, &member.settings());
            recorder.settings(member.vm.id, &facts);
        }
    }

    /// Reloads the configuration file when nobody waits for the answer: errors go to the log.
    pub(super) fn reload_unasked(&self) {
        let Err(error) = self.reload() else { return };
        if error == ControlError::NoConfig {
            tracing::info!(%error, "there is nothing to reload");
            return;
        }
        for fault in error.to_string().lines() {
            tracing::error!(%fault, "the configuration file is not used; the last good one holds");
        }
    }
}
