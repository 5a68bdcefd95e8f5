//! What a host's trace tells of its VMs.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::BufReader;

use super::content::Size;
use super::counts::Moves;
use super::infer::{Seen, Trail, unseen};
use super::story::{Doing, Recorded, Step, Story, StoryError, Vm, index, step};
use crate::host::pools_of;
use crate::policy::ResourcePool;
use crate::trace::format::{Event, HostFacts, Place, Stalls, VmFacts, What};
use crate::trace::{Accesses, Reader, Record};
use crate::units::VmId;

/// What a host's trace tells, so far.
#[derive(Default)]
pub(super) struct Told {
    host: HostFacts,
    vms: Vec<Lived>,
    /// The resource pools, and since when.
    pools: Vec<(u64, Vec<ResourcePool>)>,
    /// Which VM of `vms` a number means now.
    now: BTreeMap<VmId, usize>,
    end_us: u64,
    remarks: Vec<String>,
}

/// A VM in a host's trace.
struct Lived {
    vm: Vm,
    from_us: u64,
    until_us: Option<u64>,
    changes: Vec<u64>,
    moves: Moves,
    stalls: Option<Stalls>,
    /// When pages became resident last.
    since: HashMap<u32, u64>,
    sizes: Vec<(u64, u32, Size)>,
    trail: Vec<Trail>,
    lost: u64,
}

impl Told {
    pub(super) fn by(reader: Reader<BufReader<File>>, file: &str) -> Self {
        let mut told = Self::default();
        let mut is_complete = false;
        for block in reader {
            match block {
                Ok(block) => {
                    told.end_us = told.end_us.max(block.at_us);
                    is_complete |= matches!(block.record, Record::End(_));
                    told.take(block.vm, block.at_us, block.record);
                }
                Err(stop) => {
                    told.remarks.push(format!("{file}: {stop}"));
                    return told;
                }
            }
        }
        if !is_complete {
            told.remarks.push(format!(
                "{file}: the trace has no end: its host was killed, or is still recording"
            ));
        }
        told
    }

    fn take(&mut self, id: VmId, at_us: u64, record: Record) {
        let known = self.now.get(&id).copied();
        match (record, known.map(|at| &mut self.vms[at])) {
            (Record::Host(host), _) => self.host = host,
            (Record::Pools(pools), _) => self.pools.push((at_us, pools_of(&pools))),
            (Record::Vm(facts), Some(lived)) => {
                lived.vm.changes.push(facts);
                lived.changes.push(at_us);
            }
            (Record::Vm(facts), None) => {
                self.now.insert(id, self.vms.len());
                self.vms.push(Lived::new(facts, at_us));
            }
            (Record::Gone(stalls), Some(lived)) => {
                (lived.until_us, lived.stalls) = (Some(at_us), Some(stalls));
                self.now.remove(&id);
            }
            (Record::Events(events), Some(lived)) => {
                for event in events {
                    self.end_us = self.end_us.max(event.at_us);
                    lived.note(&event);
                }
            }
            (Record::Lost(lost), Some(lived)) => lived.lost += lost.events,
            _ => {}
        }
    }

    pub(super) fn with(mut self, lists: Vec<(String, Accesses)>) -> Result<Story, StoryError> {
        let mut story = Story::default();
        let mut listed = vec![false; self.vms.len()];
        for (file, list) in lists {
            self.remarks.extend(list.remarks.iter().cloned());
            self.place(&file, &list, &mut listed, &mut story.steps)?;
        }
        let guessed: Vec<&str> = (self.vms.iter().zip(&listed))
            .filter(|(_, listed)| !**listed)
            .map(|(lived, _)| lived.vm.facts.name.as_str())
            .collect();
        if !guessed.is_empty() {
            self.remarks.push(format!(
                "only what the host saw is known of {}: accesses to resident pages are guessed",
                guessed.join(", ")
            ));
        }
        let lost: u64 = self.vms.iter().map(|lived| lived.lost).sum();
        if lost > 0 {
            let text =
                format!("{lost} events of the host are missing: it was too busy to write them");
            self.remarks.push(text);
        }
        for (at, lived) in self.vms.iter_mut().enumerate() {
            lived.tell(at, listed[at], self.end_us, &mut story.steps);
        }
        for (number, (at_us, pools)) in (0..).zip(self.pools) {
            story.steps.push(Step {
                at_us,
                gfn: number,
                vm: 0,
                what: Doing::Pools,
                size: 0,
            });
            story.pools.push(pools);
        }
        let recorded = self.vms.iter().map(|lived| Recorded {
            counts: lived.moves.counts(),
            stalls: lived.stalls.clone(),
        });
        story.recorded = Some(recorded.collect());
        story.vms = self.vms.into_iter().map(|lived| lived.vm).collect();
        story.host = Some(self.host);
        story.remarks = self.remarks;
        Ok(story.finish())
    }

    /// Gives accesses to the VMs that had their names at their times.
    fn place(
        &self,
        file: &str,
        list: &Accesses,
        listed: &mut [bool],
        steps: &mut Vec<Step>,
    ) -> Result<(), StoryError> {
        let misfit = |why| StoryError::Misfit {
            file: file.to_owned(),
            why,
        };
        for name in &list.vms {
            if !self.vms.iter().any(|lived| lived.vm.facts.name == *name) {
                return Err(misfit(format!("the host's trace has no VM `{name}`")));
            }
        }
        let mut placed = 0;
        for access in &list.accesses {
            let Some(at_us) = access.at_us.checked_sub(self.host.began_us) else {
                continue;
            };
            let name = &list.vms[access.vm as usize];
            let lives = |lived: &Lived| {
                let until = lived.until_us.unwrap_or(self.end_us);
                lived.vm.facts.name == *name && (lived.from_us..=until).contains(&at_us)
            };
            let Some(at) = self.vms.iter().position(lives) else {
                continue;
            };
            if access.gfn >= self.vms[at].vm.facts.pages {
                let pages = self.vms[at].vm.facts.pages;
                let gfn = access.gfn;
                return Err(misfit(format!(
                    "`{name}` has {pages} pages, and no gfn {gfn}"
                )));
            }
            (listed[at], placed) = (true, placed + 1);
            steps.push(step(at, at_us, access));
        }
        if placed == 0 {
            return Err(misfit(
                "no access is in the time of the host's trace: is it of the same run?".to_owned(),
            ));
        }
        Ok(())
    }
}

impl Lived {
    fn new(facts: VmFacts, from_us: u64) -> Self {
        Self {
            vm: Vm::new(facts),
            from_us,
            until_us: None,
            changes: Vec::new(),
            moves: Moves::default(),
            stalls: None,
            since: HashMap::new(),
            sizes: Vec::new(),
            trail: Vec::new(),
            lost: 0,
        }
    }

    fn note(&mut self, event: &Event) {
        let (gfn, at_us) = (event.gfn, event.at_us);
        // A trace is a file that anybody may have written.
        if gfn >= self.vm.facts.pages {
            return;
        }
        match event.what {
            What::Moved { from, to } => {
                self.moves.note(from, to);
                match (from, to) {
                    (Place::Shared, Place::Resident) => self.see(event, Seen::Written),
                    (_, Place::Resident) => self.see(event, Seen::Came),
                    (Place::Resident, Place::Shared) => {}
                    (Place::Resident | Place::Shared, _) => self.see(event, Seen::Left),
                    _ => {}
                }
                match to {
                    Place::Resident => drop(self.since.insert(gfn, at_us)),
                    Place::Zero => self.size(gfn, Size::ZERO),
                    _ => {}
                }
            }
            What::Accessed => self.see(event, Seen::Accessed),
            What::Compressed { bytes } => self.size(gfn, Size::of(bytes)),
            What::Hashed { .. } => {}
        }
    }

    fn see(&mut self, event: &Event, seen: Seen) {
        let Event { at_us, gfn, .. } = *event;
        self.trail.push(Trail { at_us, gfn, seen });
    }

    fn size(&mut self, gfn: u32, size: Size) {
        let since = self.since.get(&gfn).copied().unwrap_or(self.from_us);
        self.vm.first.entry(gfn).or_insert(size);
        self.vm.seen.push(size);
        self.sizes.push((since, gfn, size));
    }

    /// Adds what this VM is known for to the steps. `listed`: its accesses are there already.
    fn tell(&mut self, at: usize, listed: bool, end_us: u64, steps: &mut Vec<Step>) {
        self.vm.seen.sort_unstable();
        let base = Step {
            at_us: self.from_us,
            gfn: 0,
            vm: index(at),
            what: Doing::Appear,
            size: 0,
        };
        steps.push(base);
        steps.extend((0..).zip(&self.changes).map(|(gfn, at_us)| Step {
            at_us: *at_us,
            gfn,
            what: Doing::Change,
            ..base
        }));
        steps.extend(self.sizes.iter().map(|(at_us, gfn, size)| Step {
            at_us: *at_us,
            gfn: *gfn,
            what: Doing::Size,
            size: size.0,
            ..base
        }));
        if !listed {
            let end_us = self.until_us.unwrap_or(end_us);
            let read = Doing::Read;
            let unseen = unseen(&self.trail, end_us, at as u64);
            steps.extend(unseen.into_iter().map(|(at_us, gfn)| Step {
                at_us,
                gfn,
                what: read,
                ..base
            }));
            let seen = self.trail.iter().filter(|it| it.seen != Seen::Left);
            steps.extend(seen.map(|it| Step {
                at_us: it.at_us,
                gfn: it.gfn,
                what: if it.seen == Seen::Written {
                    Doing::Write
                } else {
                    read
                },
                ..base
            }));
        }
        steps.extend(self.until_us.map(|at_us| Step {
            at_us,
            what: Doing::Leave,
            ..base
        }));
    }
}
