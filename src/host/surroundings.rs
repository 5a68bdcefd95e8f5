//! Keeps the budget to what the machine allows, and says when it cannot.
//!
//! The limit of a cgroup can change while its processes run. A budget that is `auto` follows it: down, at most to what is
//! promised to guests and what the host must keep free for that, and up again, at most to what it was at the start,
//! because the daemon's tables are made for that. It falls in steps ([`Descent`]), so that guests do not wait all at once.
//! A fixed budget stays, and the operator is told that the kernel may act
//! before the policy does.
//!
//! A smaller budget takes no page by itself. The next plan sees a host that is short, and reclaims as from any other.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::admission::Admission;
use super::error::MIN_MEMORY;
use super::governor::Governor;
use super::options::HostOptions;
use crate::machine::{BudgetChoice, Descent, Machine, Pressure, overhead};
use crate::page::Budget;
use crate::policy::Promises;
use crate::sys::own_memory;
use crate::telemetry::{MachineStatus, PressureLevel, PressureStatus, VmStatus};
use crate::units::{Bytes, Pages};

/// What the daemon knows of the machine that it runs on.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// `/`, but in tests.
    root: PathBuf,
    choice: BudgetChoice,
    /// The budget that the daemon started with.
    most: Pages,
    budget: Arc<Budget>,
    seen: Mutex<Seen>,
}

/// What was seen at the latest look.
#[derive(Clone, PartialEq, Debug)]
struct Seen {
    machine: Machine,
    /// Pressure on memory, where the kernel measures it.
    pressure: Option<Pressure>,
    /// The daemon's own memory.
    own: Option<Bytes>,
    /// The fall of the budget that goes on.
    descent: Option<Descent>,
    /// The budget that does not fit, or that was wanted and could not be had.
    told: Option<Pages>,
}

impl Surroundings {
    pub(super) fn new(
        root: &Path,
        options: &HostOptions,
        machine: &Machine,
        budget: &Arc<Budget>,
    ) -> Self {
        // What does not fit at the start is told there.
        let told = machine.objection(options.memory);
        Self {
            root: root.to_owned(),
            choice: options.budget,
            most: budget.total(),
            budget: Arc::clone(budget),
            seen: Mutex::new(Seen {
                machine: machine.clone(),
                pressure: Pressure::at(root),
                own: own_memory().ok(),
                descent: None,
                told: told.map(|_| budget.total()),
            }),
        }
    }

    /// Looks at the machine again, and follows it or says that the budget does not fit. To be called about once a second.
    pub(super) fn look(&self, admission: &Admission, governor: &Governor) {
        let machine = Machine::at(&self.root);
        let before = self.seen();
        let (told, descent) = match self.choice {
            BudgetChoice::Auto => self.follow(&machine, &before, admission, governor),
            BudgetChoice::Size(_) | BudgetChoice::Percent(_) => {
                (self.compare(&machine, &before), None)
            }
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen {
            machine,
            pressure: Pressure::at(&self.root),
            own: own_memory().ok(),
            descent,
            told,
        };
    }

    fn seen(&self) -> Seen {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }

    /// Tells when a fixed budget fits no more, or again.
    fn compare(&self, machine: &Machine, before: &Seen) -> Option<Pages> {
        let budget = self.budget.total();
        let objection = machine.objection(budget.bytes());
        match (&objection, before.told) {
            (Some(why), _) if before.told.is_none() || machine.limit != before.machine.limit => {
                tracing::warn!(budget = %budget.bytes(), %why, "the budget does not fit any more: the kernel may end guests or the host");
            }
            (None, Some(_)) => {
                tracing::info!(budget = %budget.bytes(), "the budget fits again");
            }
            _ => {}
        }
        objection.map(|_| budget)
    }

    /// Sets the budget to what the machine allows, or a step nearer to it. Returns what could not be had, and the fall
    /// that goes on.
    fn follow(
        &self,
        machine: &Machine,
        before: &Seen,
        admission: &Admission,
        governor: &Governor,
    ) -> (Option<Pages>, Option<Descent>) {
        // A machine that allows nothing gets the least budget, which is more than it allows.
        let allowed = self.choice.on(machine).unwrap_or(MIN_MEMORY);
        let want = allowed.max(MIN_MEMORY).pages().min(self.most);
        let was = self.budget.total();
        if want == was {
            return (None, None);
        }
        let urgent = machine.is_near_limit();
        let (next, descent) = Descent::follow(before.descent, was, want, urgent);
        let (is, promises) = admission.set_budget(next, self.most);
        let why = format!(
            "{} {}",
            machine.bound(),
            machine.memory().unwrap_or_default()
        );
        if is != was {
            tracing::info!(from = %was.bytes(), to = %is.bytes(), %why, "the budget follows");
            governor.wake();
        }
        if is == next {
            return (None, descent);
        }
        // What is promised is in the way: no step leads further.
        if before.told != Some(want) || is != was {
            tracing::warn!("{}", unmet(&why, want, is, &promises));
        }
        (Some(want), None)
    }

    /// For the status of the host. `vms` are its VMs.
    pub(super) fn status(&self, vms: &[VmStatus]) -> MachineStatus {
        let Seen {
            machine,
            pressure: felt,
            own,
            ..
        } = self.seen();
        let guests = vms.iter().filter_map(|vm| vm.process_bytes);
        let (limit, cgroup) = machine.limit.unzip();
        MachineStatus {
            budget: self.choice.to_string(),
            memory_bytes: machine.total,
            limit_bytes: limit,
            cgroup: cgroup.map(|dir| dir.display().to_string()),
            overhead_bytes: overhead(self.budget.total().bytes()),
            daemon_bytes: own,
            guests_bytes: Bytes(guests.map(|bytes| bytes.0).sum()),
            pressure: felt.map(pressure),
        }
    }
}

/// That a budget cannot follow, and what is in the way.
fn unmet(why: &str, want: Pages, is: Pages, promises: &Promises) -> String {
    format!(
        "the budget cannot follow: {why}, which leaves {} for guests, but {} is reserved, {} is metadata and {} stays free \
         for that: it is {}, and the kernel may end guests or the host; end VMs or take reservations from them",
        want.bytes(),
        promises.reserved.bytes(),
        promises.metadata.bytes(),
        promises.kept_free.bytes(),
        is.bytes(),
    )
}

fn pressure(pressure: Pressure) -> PressureStatus {
    let level = |level: crate::machine::Level| PressureLevel {
        ten_seconds_percent: level.ten_seconds,
        minute_percent: level.minute,
        total_us: level.total_us,
    };
    PressureStatus {
        cgroup: pressure.of.map(|dir| dir.display().to_string()),
        some: level(pressure.some),
        full: level(pressure.full),
    }
}

#[cfg(test)]
mod tests {
    use super::super::reserve::reserve;
    use super::super::rig::{self, Rig, hello};
    use super::*;
    use crate::machine::fixture::{V1, V2, root, write};

    /// Where the limit of the group is, in each version, with the lines that say so.
    const GROUPS: [(&str, &str, &str); 2] = [
        ("0::/a/b\n", V2, "sys/fs/cgroup/a/memory.max"),
        (
            "2:memory:/docker/a/b\n",
            V1,
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
        ),
    ];

    /// A host that started with `choice` in a group that has a limit of `mib`, and a way to change that.
    fn with_host(
        choice: BudgetChoice,
        mib: u64,
        story: impl Fn(&Rig, &Surroundings, &dyn Fn(u64)),
    ) {
        for (groups, mounts, file) in GROUPS {
            let machine = root(groups, mounts, &[(file, &limit(mib))]);
            let rig = Rig::new(None);
            let mut options = rig::options(machine.path(), rig.budget.total().bytes(), None);
            options.budget = choice;
            let seen = Machine::at(machine.path());
            let surroundings = Surroundings::new(machine.path(), &options, &seen, &rig.budget);
            let governor = Governor::new(&rig.budget, &rig.members, &rig.configuration, &rig.pools);
            story(&rig, &surroundings, &|mib| {
                write(machine.path(), file, &limit(mib));
                // As many looks as a fall takes.
                for _ in 0..8 {
                    surroundings.look(&rig.admission, &governor);
                }
            });
        }
    }

    fn limit(mib: u64) -> String {
        format!("{}\n", mib << 20)
    }

    fn budget(rig: &Rig) -> u64 {
        rig.budget.total().bytes().0 >> 20
    }

    /// 136 MiB are those of a budget of 64 with an eighth of that and 64 MiB.
    #[test]
    fn auto_follows_the_limit_down_and_up_again_to_where_it_started() {
        with_host(BudgetChoice::Auto, 136, |rig, _, set_limit| {
            set_limit(136);
            assert_eq!(budget(rig), 64);
            set_limit(100);
            assert_eq!(budget(rig), 32);
            assert_eq!(rig.budget.reserve(), reserve(Pages(8192)));
            set_limit(118);
            assert_eq!(budget(rig), 48);
            set_limit(4096);
            assert_eq!(budget(rig), 64);
        });
    }

    #[test]
    fn auto_keeps_what_is_promised_and_goes_on_once_it_is_not() {
        with_host(BudgetChoice::Auto, 136, |rig, surroundings, set_limit| {
            let mut reserving = hello("a", 8192);
            reserving.reservation = 6000;
            let vm = rig.run(&reserving);
            set_limit(80);
            let (_, promises) = rig.admission.set_budget(Pages(1), rig.budget.total());
            let total = rig.budget.total();
            assert_eq!(promises.unreserved, Pages(0));
            let needs = promises.reserved.0 + promises.metadata.0 + promises.kept_free.0;
            assert_eq!(total, Pages(needs), "no page more than is promised");
            assert_eq!(surroundings.seen().told, Some(Pages(3640)));
            drop(vm);
            set_limit(80);
            assert_eq!(rig.budget.total(), Pages(3640));
            assert_eq!(surroundings.seen().told, None);
        });
    }

    #[test]
    fn group_that_allows_next_to_nothing_leaves_the_least_budget() {
        with_host(BudgetChoice::Auto, 136, |rig, _, set_limit| {
            set_limit(1);
            assert_eq!(rig.budget.total().bytes(), MIN_MEMORY);
        });
    }

    #[test]
    fn fixed_budget_stays_and_is_told_not_to_fit() {
        let size = BudgetChoice::Size(Bytes::from_mib(64));
        for choice in [size, BudgetChoice::Percent(1)] {
            with_host(choice, 136, |rig, surroundings, set_limit| {
                assert_eq!(surroundings.seen().told, None);
                set_limit(50);
                assert_eq!(
                    (budget(rig), surroundings.seen().told),
                    (64, Some(Pages(16_384)))
                );
                set_limit(64);
                assert_eq!((budget(rig), surroundings.seen().told), (64, None));
            });
        }
    }

    #[test]
    fn what_cannot_be_met_is_said_in_numbers() {
        let promises = Promises {
            reserved: Pages(6000),
            metadata: Pages(100),
            kept_free: Pages(200),
            share_reserve: Pages(0),
            unreserved: Pages(0),
        };
        let text = unmet(
            "this machine has 80.0 MiB",
            Pages(3640),
            Pages(6300),
            &promises,
        );
        for part in [
            "this machine has 80.0 MiB, which leaves 14.2 MiB for guests",
            "but 23.4 MiB is reserved",
            "it is 24.6 MiB",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
