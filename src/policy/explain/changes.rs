//! What would change the plan for one VM: the same plan with one thing different.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::super::plan::{Plan, VmPlan};
use super::super::policies::Policy;
use super::super::resource_pool::ROOT;
use super::super::snapshot::HostSnapshot;
use super::super::{Config, FreeState, Thresholds};
use crate::units::Pages;

/// One thing that would be different, and what would follow from it for the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// What would be different.
    pub input: Input,
    /// Its target then. None, here and below: the same as now.
    pub target: Option<Pages>,
    /// Its balloon target then.
    pub balloon_target: Option<Pages>,
    /// Its swap target then.
    pub swap_target: Option<Pages>,
    /// What would be evicted from it now.
    pub evict: Option<Pages>,
    /// Whether it would wait.
    pub blocked: Option<bool>,
}

/// What could be different.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Input {
    /// Its shares: twice as many; the normal ones if it has none.
    Shares(u32),
    /// Its reservation: what it holds.
    Reservation(Pages),
    /// The host's idle memory tax: none.
    NoTax,
    /// Its limit: none.
    NoLimit,
    /// Its resource pool: none, so that it stands at the root.
    NoPool,
    /// The shares of resource pools: they grow with what is in them.
    ScalableShares,
    /// The limits of the resource pools around it: none.
    NoPoolLimit,
    /// Its balloon agent: alive.
    AgentAlive,
    /// Its balloon: left to the policy.
    NotByHand,
    /// The host's free memory: enough pages more for a better state.
    Free {
        /// How many more.
        pages: Pages,
        /// The state then.
        state: FreeState,
    },
}

/// What would make a difference, found by planning again.
pub(super) fn changes(
    policy: &dyn Policy,
    host: &HostSnapshot,
    config: &Config,
    now: &Plan,
    at: usize,
) -> Vec<Change> {
    let again = |input: Input| {
        let (host, config) = with(host, config, now, at, input);
        Change::between(input, &now.vms[at], &policy.plan(&host, &config).vms[at])
    };
    let changes = inputs(host, config, now, at).into_iter().map(again);
    changes.filter(Change::is_one).collect()
}

/// The things that could be different, without those that are so already.
fn inputs(host: &HostSnapshot, config: &Config, now: &Plan, at: usize) -> Vec<Input> {
    let vm = &host.vms[at];
    let shares = match vm.shares {
        // Twice nothing is nothing, so what a VM gets by default stands in.
        0 => normal_shares(vm.size),
        shares => shares.saturating_mul(2),
    };
    let mut inputs = vec![Input::Shares(shares)];
    if vm.allocation() > vm.reservation {
        inputs.push(Input::Reservation(vm.allocation()));
    }
    if config.idle_tax_percent > 0 {
        inputs.push(Input::NoTax);
    }
    if vm.limit.is_some_and(|limit| limit < vm.size) {
        inputs.push(Input::NoLimit);
    }
    inputs.extend(of_pools(host, at));
    if vm.balloon_by_hand.is_some() {
        inputs.push(Input::NotByHand);
    }
    if !vm.agent || !vm.agent_alive {
        inputs.push(Input::AgentAlive);
    }
    let thresholds = Thresholds::of_host(host, config);
    if let Some((state, from)) = thresholds.above(now.state) {
        let pages = from.saturating_sub(host.free());
        inputs.push(Input::Free { pages, state });
    }
    inputs
}

/// The things that could be different about the resource pools around a VM.
fn of_pools(host: &HostSnapshot, at: usize) -> Vec<Input> {
    let pools: Vec<usize> = host.pools_around(at).filter(|pool| *pool != ROOT).collect();
    let mut inputs = Vec::new();
    if !pools.is_empty() {
        inputs.push(Input::NoPool);
    }
    let parent = |pool: &usize| host.resource_pools[*pool].parent;
    if pools.iter().any(|pool| !host.is_scalable(parent(pool))) {
        inputs.push(Input::ScalableShares);
    }
    let limit = |pool: &usize| host.resource_pools[*pool].limit;
    if pools.iter().any(|pool| limit(pool).is_some()) {
        inputs.push(Input::NoPoolLimit);
    }
    inputs
}

/// The shares that ESX gives a VM if nobody sets any: 10 for each MiB.
fn normal_shares(size: Pages) -> u32 {
    let shares = size.0 / 256 * 10;
    u32::try_from(shares.max(10)).unwrap_or(u32::MAX)
}

/// The snapshot and the settings with one thing different.
fn with(
    host: &HostSnapshot,
    config: &Config,
    now: &Plan,
    at: usize,
    input: Input,
) -> (HostSnapshot, Config) {
    let (mut host, mut config) = (host.clone(), *config);
    let around: Vec<usize> = host.pools_around(at).collect();
    let vm = &mut host.vms[at];
    match input {
        Input::Shares(shares) => vm.shares = shares,
        Input::Reservation(pages) => vm.reservation = pages,
        Input::NoTax => config.idle_tax_percent = 0,
        Input::NoLimit => vm.limit = None,
        Input::NoPool => vm.resource_pool = ROOT,
        Input::ScalableShares => {
            let pools = host.resource_pools.iter_mut();
            pools.for_each(|pool| pool.scalable = true);
        }
        Input::NoPoolLimit => {
            for at in around.into_iter().filter(|at| *at != ROOT) {
                host.resource_pools[at].limit = None;
            }
        }
        Input::AgentAlive => (vm.agent, vm.agent_alive) = (true, true),
        Input::NotByHand => vm.balloon_by_hand = None,
        Input::Free { pages, .. } => {
            host.used = host.used.min(host.budget).saturating_sub(pages);
            // From the state that is to be left: what it takes to enter one differs from what it takes to leave it.
            host.state = now.state;
        }
    }
    (host, config)
}

impl Change {
    fn between(input: Input, now: &VmPlan, then: &VmPlan) -> Self {
        let pages = |of: fn(&VmPlan) -> Pages| (of(now) != of(then)).then(|| of(then));
        Self {
            input,
            target: pages(|plan| plan.target),
            balloon_target: pages(|plan| plan.balloon_target),
            swap_target: pages(|plan| plan.swap_target),
            evict: pages(|plan| plan.evict),
            blocked: (now.blocked != then.blocked).then_some(then.blocked),
        }
    }

    /// Whether anything would be different. A better state always is.
    fn is_one(&self) -> bool {
        let pages = [
            self.target,
            self.balloon_target,
            self.swap_target,
            self.evict,
        ];
        // How much is missing to the next state is worth knowing even where it changes nothing for this VM.
        matches!(self.input, Input::Free { .. })
            || self.blocked.is_some()
            || pages.iter().any(Option::is_some)
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shares(shares) => write!(f, "{shares} shares"),
            Self::Reservation(pages) => write!(f, "a reservation of {}", pages.bytes()),
            Self::NoTax => f.write_str("no idle memory tax"),
            Self::NoLimit => f.write_str("no limit"),
            Self::NoPool => f.write_str("the VM in no resource pool"),
            Self::ScalableShares => f.write_str("scalable shares in all resource pools"),
            Self::NoPoolLimit => f.write_str("no limit of a resource pool"),
            Self::AgentAlive => f.write_str("a balloon agent that moves"),
            Self::NotByHand => f.write_str("the balloon left to the policy"),
            Self::Free { pages, state } => {
                write!(f, "{} more free memory: state {state}", pages.bytes())
            }
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "with {}", self.input)?;
        for (name, pages) in [
            ("target", self.target),
            ("balloon target", self.balloon_target),
            ("swap target", self.swap_target),
            ("evicted now", self.evict),
        ] {
            if let Some(pages) = pages {
                write!(f, ", {name} {}", pages.bytes())?;
            }
        }
        match self.blocked {
            Some(true) => f.write_str(", it would wait"),
            Some(false) => f.write_str(", it would not wait"),
            None => Ok(()),
        }
    }
}
