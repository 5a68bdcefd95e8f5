//! Ends guests that harm others and that no order reaches.
//!
//! Reclaim needs the guest's help: its shim acknowledges each command. And the budget needs its honesty: a shim
//! holds its RAM as a file, which it can fill without asking anybody. Neither help nor honesty can be forced. So a
//! guest is ended if it takes what it was not given ([`overdraft`]), or if by not answering it keeps what others are
//! promised ([`overdue`]). The guest is told why, and the log says it too. A guest that was told to end, and keeps
//! the VM's own thread from seeing to that ([`overstay`]), is killed.
//!
//! The policy thread checks each time it has handed out a plan. A check costs one `fstat(2)` for each VM.

mod overdraft;
mod overdue;
mod overstay;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::member::Member;
use crate::page::{Claims, Home};
use crate::policy::{FreeState, HostSnapshot, VmSnapshot};
use crate::sys::files_in_memory_are_huge;
use crate::throttle::Throttle;
use crate::units::{Pages, VmId};
use overdraft::Overdraft;
use overdue::{Debtor, Need, Why, overdue};
use overstay::overstays;

/// The shortest time between two readings of what the kernel counts. When memory runs short the policy plans more
/// often than that, but what was under way at one reading must have had time to end before the next.
const COUNT_PERIOD: Duration = Duration::from_millis(200);

/// A process that does not die is killed again at each check.
static KILLS: Throttle = Throttle::new(20, Duration::from_secs(1));

/// What is remembered from check to check.
#[derive(Debug)]
pub(super) struct Watchdog {
    need: Need,
    overdrafts: HashMap<VmId, Overdraft>,
    counted: Option<Instant>,
    /// Whether the kernel gives out pages one by one, so that its count can be compared with ours.
    counts: bool,
}

impl Watchdog {
    pub(super) fn new() -> Self {
        let counts = !files_in_memory_are_huge();
        if !counts {
            tracing::warn!(
                "the kernel backs files in memory with huge pages (transparent_hugepage/shmem_enabled): more \
                 memory is used than is counted, and guests that take more than they were given go unseen"
            );
        }
        Self {
            need: Need::default(),
            overdrafts: HashMap::new(),
            counted: None,
            counts,
        }
    }

    /// Checks all VMs. `snapshot` is of the same VMs in the same order; `state` is the planned one.
    pub(super) fn check(
        &mut self,
        members: &[Arc<Member>],
        snapshot: &HostSnapshot,
        state: FreeState,
        now: Instant,
    ) {
        check_ends(members, now);
        if self.counts && self.counted.is_none_or(|at| now - at >= COUNT_PERIOD) {
            self.counted = Some(now);
            self.check_counts(members);
        }
        self.check_answers(members, snapshot, state, now);
    }

    fn check_counts(&mut self, members: &[Arc<Member>]) {
        let is_there = |id: &VmId| members.iter().any(|member| member.vm.id == *id);
        self.overdrafts.retain(|id, _| is_there(id));
        for member in members.iter().filter(|member| !member.is_ending()) {
            let before = paid(member);
            // A count that failed is no evidence against a guest.
            let Ok(filled) = member.ram.allocated() else {
                continue;
            };
            // The larger of two counts, because pages come and go while the kernel counts.
            let paid = before.max(paid(member));
            let overdraft = self.overdrafts.entry(member.vm.id).or_default();
            if overdraft.note(filled, paid) {
                let (filled, paid) = (filled.0, paid.0);
                let why = format!(
                    "its RAM takes {filled} pages by the kernel's count, and it was given {paid}: it has \
                     filled memory that it did not ask for"
                );
                tracing::error!(vm = %member.vm.params.name, filled, paid, "VM takes more than it was given");
                member.end(&why);
            }
        }
    }

    fn check_answers(
        &mut self,
        members: &[Arc<Member>],
        snapshot: &HostSnapshot,
        state: FreeState,
        now: Instant,
    ) {
        let vms = || members.iter().zip(&snapshot.vms);
        let unmet = vms().find(|(member, seen)| is_unmet(member, seen));
        self.need.note(now, unmet.is_some(), state);
        let debtors: Vec<Debtor> = vms().map(|(member, seen)| debtor(member, seen)).collect();
        let Some((index, why)) = overdue(&self.need, now, &debtors) else {
            return;
        };
        // Begin anew: what this guest held must have reached the others before another guest is ended.
        self.need = Need::default();
        let (member, Debtor { silence, spare }) = (&members[index], debtors[index]);
        let other = unmet.map_or("", |(member, _)| member.vm.params.name.as_str());
        let needed = match why {
            Why::Unmet => format!("VM `{other}` has less than its reservation"),
            Why::Short => format!("the host is {state} on memory"),
        };
        let silence_s = silence.as_secs();
        tracing::error!(
            vm = %member.vm.params.name, silence_s, spare_pages = spare.0,
            "VM does not answer, and {needed}: it is ended"
        );
        let why = format!("its guest has not answered for {silence_s} s, and {needed}");
        member.end(&why);
    }
}

fn check_ends(members: &[Arc<Member>], now: Instant) {
    let over = |member: &&Arc<Member>| overstays(member.link.ended(), now);
    for Member { vm, process, .. } in members.iter().filter(over).map(Arc::as_ref) {
        if !process.wait(Duration::ZERO) {
            KILLS.line(|unsaid| {
                tracing::error!(
                    vm = %vm.params.name, pid = process.pid(), unsaid,
                    "VM was told to end and has not: its guest is killed"
                );
            });
            // No wait: the VM's own thread notices the end as soon as it runs again.
            let _ = process.kill(Duration::ZERO);
        }
    }
}

/// How much of a VM's RAM may be filled: what is resident, what is kept until its guest confirms a mapping,
/// and what the guest may bring by itself. All of it is charged.
fn paid(member: &Member) -> Pages {
    let table = &member.vm.table;
    let credits = table.claims().map_or(0, Claims::held);
    Pages(table.count(Home::Resident) + table.kept() + credits)
}

/// Whether a VM has less than its reservation and waits for more.
fn is_unmet(member: &Member, seen: &VmSnapshot) -> bool {
    seen.allocation() < seen.min() && member.vm.parking.is_starved()
}

fn debtor(member: &Member, seen: &VmSnapshot) -> Debtor {
    // A guest that is ending owes nothing more.
    let silence = if member.is_ending() {
        Duration::ZERO
    } else {
        member.link.silence()
    };
    Debtor {
        silence,
        spare: seen.allocation().saturating_sub(seen.min()),
    }
}
