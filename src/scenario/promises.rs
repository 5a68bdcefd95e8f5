//! Whether the host of a scenario would make all promises that it is asked for, in the order of time.

use std::collections::BTreeMap;
use std::time::Duration;

use super::pools::Pools;
use super::{Action, Guest, Setup};
use crate::policy::{
    self, Asked, Config, HostSnapshot, Ledger, ROOT, Refusal, ResourcePool, VmSnapshot,
};
use crate::settings::{EngineChoice, Layer, Layers, PoolPatch, VmPatch, VmSettings, pool_tree};
use crate::units::{Pages, VmId};
use crate::vm::VmParams;

/// A promise that the host would not make: for what, and why not.
pub(super) type Refused = (String, Refusal);

/// Makes all promises of a scenario.
///
/// # Errors
/// The first one that the host would refuse; otherwise the most guests that run at the same time.
pub(super) fn all(setup: &Setup) -> Result<usize, Refused> {
    let mut promises = Promises::begun(setup)?;
    let mut most = 0;
    for (at, action) in setup.timeline() {
        promises.act(at, &action)?;
        most = most.max(promises.running.len());
    }
    Ok(most)
}

/// What a guest is promised when it is powered on with its table's settings.
pub(super) fn reservation(guest: &Guest) -> Pages {
    settings(guest, &VmPatch::default()).reservation
}

/// The settings of a guest of which something was changed.
fn settings(guest: &Guest, by_hand: &VmPatch) -> VmSettings {
    let patch = by_hand.over(&guest.patch);
    let settings = patch.apply(&VmSettings::default(), guest.memory.pages());
    // What is wrong with what was written was said when the file was read; changes that contradict each other the host
    // refuses.
    settings.unwrap_or_default()
}

/// A host at a moment of the scenario.
struct Promises<'a> {
    setup: &'a Setup,
    config: Config,
    pools: Pools,
    pools_by_hand: Pools,
    running: BTreeMap<&'a str, (&'a Guest, VmPatch)>,
}

impl<'a> Promises<'a> {
    /// A host that has just started.
    fn begun(setup: &'a Setup) -> Result<Self, Refused> {
        let mut layer = Layer::default();
        for (key, value) in &setup.settings {
            // What is wrong with a setting was said when the file was read.
            let _ = layer.put(key.spec().name, value);
        }
        let profile = setup.start.profile.unwrap_or_default();
        let layers = Layers::new(profile, layer, Layer::default());
        let begun = Self {
            setup,
            config: layers.effective().policy(),
            pools: setup.pools.clone(),
            pools_by_hand: Pools::new(),
            running: BTreeMap::new(),
        };
        let host = begun.snapshot();
        let bare = HostSnapshot {
            resource_pools: host.resource_pools[..=ROOT].to_vec(),
            ..host.clone()
        };
        let largest = host.resource_pools.iter().map(|pool| pool.reservation);
        begun
            .check(&bare, &host, by_pool(largest.max().unwrap_or_default()))
            .map_err(|refusal| ("its resource pools".to_owned(), refusal))?;
        Ok(begun)
    }

    fn act(&mut self, at: Duration, action: &Action) -> Result<(), Refused> {
        let before = self.snapshot();
        let asked = match action {
            Action::Start(name) => return self.start(name, &before),
            Action::Stop(name) | Action::Kill(name) => {
                self.running.remove(name.as_str());
                return Ok(());
            }
            Action::SetVm(name, _, patch) => {
                let Some((guest, by_hand)) = self.running.get_mut(name.as_str()) else {
                    return Ok(());
                };
                *by_hand = patch.over(by_hand);
                Asked {
                    reservation: settings(guest, by_hand).reservation,
                    // It runs, so its overhead is charged already.
                    overhead: Pages(0),
                    by_pool: false,
                }
            }
            Action::SetPool(name, _, patch) => {
                let own = self.pools_by_hand.entry(name.clone()).or_default();
                *own = patch.over(own);
                by_pool(self.pool(name).reservation.unwrap_or_default())
            }
            Action::Set(..) | Action::Balloon(..) => return Ok(()),
        };
        let checked = self.check(&before, &self.snapshot(), asked);
        checked.map_err(|refusal| (format!("`{action}` at {at:?}"), refusal))
    }

    fn start(&mut self, name: &str, before: &HostSnapshot) -> Result<(), Refused> {
        let Some(guest) = self.setup.guest(name) else {
            return Ok(());
        };
        let settings = settings(guest, &VmPatch::default());
        let vm = policy::VmParams {
            size: guest.memory.pages(),
            reservation: settings.reservation,
            limit: settings.limit,
            overhead: self.overhead(guest),
            resource_pool: place(&before.resource_pools, &settings.pool),
        };
        policy::admit(before, &self.config, &vm)
            .map_err(|refusal| (format!("guest `{name}`"), refusal))?;
        self.running
            .insert(&guest.name, (guest, VmPatch::default()));
        Ok(())
    }

    fn check(
        &self,
        before: &HostSnapshot,
        after: &HostSnapshot,
        asked: Asked,
    ) -> Result<(), Refusal> {
        let [now, then] = [before, after].map(|host| Ledger::of(host, &self.config));
        now.allows(&then, after, asked)
    }

    /// The settings of a pool, with what was changed.
    fn pool(&self, name: &str) -> PoolPatch {
        let nothing = PoolPatch::default();
        let [file, by_hand] =
            [&self.pools, &self.pools_by_hand].map(|pools| pools.get(name).unwrap_or(&nothing));
        by_hand.over(file)
    }

    fn pool_list(&self) -> Vec<ResourcePool> {
        let names = self.pools.keys().chain(self.pools_by_hand.keys());
        let pools = names.map(|name| (name.clone(), self.pool(name)));
        // Changes that make no tree together the host refuses.
        pool_tree(&pools.collect())
            .or_else(|_| pool_tree(&self.pools))
            .unwrap_or_default()
    }

    fn snapshot(&self) -> HostSnapshot {
        let pools = self.pool_list();
        let vm = |(id, (guest, by_hand)): (u32, &(&Guest, VmPatch))| {
            let settings = settings(guest, by_hand);
            VmSnapshot {
                reservation: settings.reservation,
                limit: settings.limit,
                resource_pool: place(&pools, &settings.pool),
                ..VmSnapshot::new(VmId(id), guest.memory.pages())
            }
        };
        let vms = (1..).zip(self.running.values()).map(vm).collect();
        let running = self.running.values();
        let metadata = running.map(|(guest, _)| self.overhead(guest).0);
        HostSnapshot {
            budget: self.setup.memory.pages(),
            used: Pages(metadata.sum()),
            least_free: None,
            resource_pools: pools,
            state: policy::FreeState::default(),
            vms,
            seed: 0,
        }
    }

    /// The metadata that a guest costs when it is powered on.
    fn overhead(&self, guest: &Guest) -> Pages {
        let params = VmParams {
            name: guest.name.clone(),
            pages: u32::try_from(guest.memory.pages().0).unwrap_or(u32::MAX),
            workload: String::new(),
            inline: guest.inline && self.setup.start.engine != Some(EngineChoice::Mprotect),
            cached: self.setup.start.swap_cache.is_some(),
        };
        params.metadata()
    }
}

const fn by_pool(reservation: Pages) -> Asked {
    Asked {
        reservation,
        overhead: Pages(0),
        by_pool: true,
    }
}

/// The place of a pool in the list; that it is there was checked when the file was read.
fn place(pools: &[ResourcePool], name: &str) -> usize {
    let found = pools.iter().position(|pool| pool.name == name);
    found.unwrap_or(ROOT)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::parse;
    use super::*;

    /// Two guests in pools, and a change.
    fn refused(change: &str) -> Option<String> {
        let text = format!(
            r#"[host]
memory = "256M"
[pool.a]
reservation = "64M"
expandable = false
[pool.b]
limit = "64M"
[[guest]]
name = "one"
memory = "64M"
pool = "a"
reservation = "48M"
workloads = ["idle"]
[[guest]]
name = "two"
memory = "64M"
pool = "b"
reservation = "32M"
workloads = ["idle"]
{change}
"#
        );
        let scenario = parse(Path::new("a.toml"), &text).unwrap_or_else(|error| panic!("{error}"));
        let found = all(&scenario.variants[0].setup);
        found.err().map(|(what, why)| format!("{what}: {why}"))
    }

    #[test]
    fn promises_are_made_by_the_pools_at_each_moment() {
        assert_eq!(refused(""), None);
        let change = |set: &str| format!("[[change]]\nat = \"5s\"\nset = {{ {set} }}\n");
        assert_eq!(refused(&change("two.pool = \"root\"")), None);
        assert_eq!(refused(&change("pool.b.limit = \"32M\"")), None);
        for (set, what, why) in [
            (
                "two.pool = \"a\"",
                "`two: pool = a` at 5s",
                "resource pool `a`",
            ),
            (
                "pool.b.limit = \"16M\"",
                "`resource pool b: limit = 16M` at 5s",
                "has promised 32.0 MiB",
            ),
            (
                "pool.a.reservation = \"1M\"",
                "`resource pool a: ",
                "`a` has promised 48.0 MiB",
            ),
            (
                "pool.b.reservation = \"64M\", pool.a.reservation = \"200M\"",
                "",
                "exceed the unreserved",
            ),
        ] {
            let error = refused(&change(set)).expect(set);
            assert!(error.starts_with(what) && error.contains(why), "{error}");
        }
        // What is taken back is as the scenario says.
        let back = "pool.a.reservation = \"64M\"";
        let later = format!(
            "{}[[change]]\nat = \"6s\"\nset = {{ pool.a.reservation = \"default\" }}\n",
            change(back)
        );
        assert_eq!(refused(&later), None);
    }

    #[test]
    fn guests_and_pools_that_do_not_fit_are_refused_before_the_start() {
        let third = "[[guest]]\nname = \"three\"\nmemory = \"64M\"\npool = \"a\"\nreservation = \"32M\"\nworkloads = [\"idle\"]\n";
        let error = refused(third).expect("16 MiB are left");
        assert!(
            error.starts_with("guest `three`: ") && error.contains("`a`"),
            "{error}"
        );
        let error = refused("[pool.c]\nreservation = \"200M\"\n").expect("too much");
        assert!(error.starts_with("its resource pools: "), "{error}");
    }
}
