//! What the control law of each balloon remembers, from one plan to the next.

use std::collections::HashMap;
use std::time::Instant;

use crate::policy::law::{Law, Memory};
use crate::policy::{HostSnapshot, Plan};
use crate::units::VmId;

/// The memories of the latest plan.
#[derive(Debug, Default)]
pub(crate) struct Laws {
    latest: Option<(Instant, &'static dyn Law)>,
    memories: HashMap<VmId, Memory>,
}

impl Laws {
    /// Writes into a snapshot, taken at `now`, what `law` remembers of each VM. A law begins with nothing: the numbers of
    /// another one would mean something else.
    pub(crate) fn recall(&self, host: &mut HostSnapshot, law: &'static dyn Law, now: Instant) {
        let Some((at, _)) = self.latest.filter(|(_, before)| *before == law) else {
            return;
        };
        let since = now.saturating_duration_since(at).as_millis();
        for vm in &mut host.vms {
            if let Some(memory) = self.memories.get(&vm.id) {
                vm.law = *memory;
                vm.law_since_ms = u64::try_from(since).unwrap_or(u64::MAX);
            }
        }
    }

    /// Keeps what `law` remembers after a plan of `now`, and forgets VMs that are gone.
    pub(crate) fn keep(&mut self, plan: &Plan, law: &'static dyn Law, now: Instant) {
        self.latest = Some((now, law));
        self.memories = plan.vms.iter().map(|vm| (vm.id, vm.law)).collect();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::law::named;
    use crate::policy::policies::Esx;
    use crate::policy::{Config, FreeState, Policy, VmSnapshot};
    use crate::units::Pages;

    #[test]
    fn memory_is_that_of_the_same_law_and_of_vms_that_were_planned_for() {
        let vm = |id| VmSnapshot {
            agent: true,
            balloon_max: Pages(100),
            ..VmSnapshot::new(VmId(id), Pages(100))
        };
        let mut host = HostSnapshot {
            budget: Pages(1000),
            used: Pages(0),
            least_free: None,
            state: FreeState::High,
            vms: vec![vm(1)],
            resource_pools: Vec::new(),
            seed: 0,
        };
        let [pid, senpai] = ["pid", "senpai"].map(|name| named(name).expect("a law"));
        let (start, mut laws) = (Instant::now(), Laws::default());
        laws.recall(&mut host, pid, start);
        assert_eq!(host.vms[0].law_since_ms, 0, "there was no plan");
        let config = Config {
            law: pid,
            ..Config::default()
        };
        laws.keep(&Esx.plan(&host, &config), pid, start);
        host.vms.push(vm(2));
        let later = start + Duration::from_millis(250);
        let mut other = host.clone();
        laws.recall(&mut host, pid, later);
        assert_eq!(host.vms[0].law_since_ms, 250);
        assert_eq!(host.vms[0].law.target, Some(Pages(0)));
        assert_eq!(host.vms[1].law_since_ms, 0, "it is new");
        laws.recall(&mut other, senpai, later);
        assert_eq!(other.vms[0].law, Memory::default());
    }
}
