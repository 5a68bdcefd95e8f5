//! Changes of settings of VMs that run.
//!
//! A change is checked as a whole and then carried out as a whole: what can be refused comes
//! first, and is undone if something after it is refused.

use std::error::Error;

use super::{Admission, vm_settings};
use crate::chain::chain;
use crate::control::{ControlError, ReloadReport};
use crate::host::member::Member;
use crate::policy;
use crate::settings::{VmPatch, VmSettings};
use crate::units::{Pages, VmId};

impl Admission {
    /// Changes settings of a running VM, all of them or none.
    pub(in crate::host) fn change(
        &self,
        member: &Member,
        patch: &VmPatch,
    ) -> Result<(), ControlError> {
        let _alone = self.promising();
        let old = member.layered();
        let params = &member.vm.params;
        let file = self.configuration.vm_in_file(&params.name);
        let new = old.with_change(&file, patch, params)?;
        self.carry_out(member, &old.now, &new.now)?;
        member.set_layered(new);
        self.configuration.note_change();
        Ok(())
    }

    /// Reads the configuration file again. A file with a fault changes nothing; neither does one that
    /// asks of a VM what it cannot have, for that VM.
    pub(in crate::host) fn reload(&self) -> Result<ReloadReport, ControlError> {
        let file = self.configuration.file().ok_or(ControlError::NoConfig)?;
        let new = file
            .load_again()
            .map_err(|error| ControlError::Config(chain(&error)))?;
        let members = self.members.all();
        let patch = |member: &Member| {
            let patch = new.vms.get(&member.vm.params.name);
            patch.cloned().unwrap_or_default()
        };
        // The VMs first, as far as that can be refused: then nothing is in force by half.
        for member in &members {
            member
                .layered()
                .with_file(&patch(member), &member.vm.params)?;
        }
        let settings = self.configuration.replace_file(new.clone());
        let mut vms = Vec::new();
        for member in &members {
            if self.reapply(member, &patch(member))? {
                vms.push(member.vm.params.name.clone());
            }
        }
        let file = new.path.display().to_string();
        tracing::info!(file, settings = settings.len(), vms = vms.len(), "reloaded");
        Ok(ReloadReport {
            file,
            settings,
            vms,
        })
    }

    /// Applies what the configuration file says now; whether anything changed.
    fn reapply(&self, member: &Member, file: &VmPatch) -> Result<bool, ControlError> {
        let _alone = self.promising();
        let old = member.layered();
        let new = old.with_file(file, &member.vm.params)?;
        let changed = new.now != old.now;
        if changed {
            self.carry_out(member, &old.now, &new.now)?;
            member.set_layered(new);
            self.configuration.note_change();
        }
        Ok(changed)
    }

    /// Does what a change of settings takes. After an error everything is as before.
    fn carry_out(
        &self,
        member: &Member,
        old: &VmSettings,
        new: &VmSettings,
    ) -> Result<(), ControlError> {
        let vm = &member.vm;
        let refused = |error: &dyn Error| ControlError::Refused(chain(error));
        if new.reservation > old.reservation {
            self.check_reservation(vm.id, new.reservation)
                .map_err(|e| refused(&e))?;
        }
        let configuration = &self.configuration;
        let (from, to) = (configuration.swap_dir(old), configuration.swap_dir(new));
        if from != to {
            vm.swap.begin_move(&to).map_err(|e| refused(&e))?;
        }
        if let Err(error) = vm.swap.resize(vm_settings::swap_slots(&vm.params, new)) {
            // To where it is: a move that has begun is given up.
            let _ = vm.swap.begin_move(&from);
            return Err(refused(&error));
        }
        // The worker goes on with the move. What else follows from settings, the policy thread applies when it looks.
        Ok(())
    }

    /// Whether a VM that runs may be promised so much from now on.
    fn check_reservation(&self, id: VmId, reservation: Pages) -> Result<(), policy::Refusal> {
        let mut snapshot = self.with_promises();
        let mut size = reservation;
        for vm in snapshot.vms.iter_mut().filter(|vm| vm.id == id) {
            vm.reservation = Pages(0);
            size = vm.size;
        }
        let asked = policy::VmParams {
            size,
            reservation,
            limit: None,
            // It is charged already.
            overhead: Pages(0),
        };
        let config = self.configuration.settings().policy();
        policy::admit(&snapshot, &config, &asked)
    }
}
