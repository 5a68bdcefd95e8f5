//! The settings of one VM: what it is powered on with, and how they change while it runs.
//!
//! A guest says what it wants; the configuration file may say otherwise, and what is set by hand says it
//! last. A change is checked as a whole and then carried out as a whole: what can be refused comes
//! first, and is undone if something after it is refused.

use std::error::Error;

use memvisor_guest_agent::guest::Shares;
use memvisor_guest_agent::protocol::memory::Hello;

use super::admission;
use super::daemon::Host;
use super::member::Member;
use crate::chain::chain;
use crate::control::ControlError;
use crate::reclaim::Job;
use crate::settings::{Domain, HostSettings, VmPatch, VmSettings, VmSettingsError};
use crate::units::Pages;
use crate::vm::VmParams;

/// The settings of a VM by where they come from.
#[derive(Clone, Debug)]
pub(super) struct Layered {
    /// What the guest wants.
    wanted: VmSettings,
    /// What was set while it ran.
    by_hand: VmPatch,
    /// What is in force.
    pub(super) now: VmSettings,
}

impl Layered {
    /// What a guest is powered on with.
    pub(super) fn at_power_on(hello: &Hello, file: &VmPatch) -> Result<Self, VmSettingsError> {
        let wanted = wanted(hello)?;
        let now = file.apply(&wanted, Pages(u64::from(hello.pages)))?;
        Ok(Self {
            wanted,
            by_hand: VmPatch::default(),
            now,
        })
    }

    fn with(
        &self,
        file: &VmPatch,
        by_hand: VmPatch,
        params: &VmParams,
    ) -> Result<Self, VmSettingsError> {
        let size = Pages(u64::from(params.pages));
        Ok(Self {
            wanted: self.wanted.clone(),
            now: by_hand.over(file).apply(&self.wanted, size)?,
            by_hand,
        })
    }
}

fn wanted(hello: &Hello) -> Result<VmSettings, VmSettingsError> {
    let pages = |count: u32| Pages(u64::from(count));
    let wanted = VmPatch {
        shares: Some(Shares::Custom(hello.shares)),
        reservation: Some(pages(hello.reservation)),
        limit: (hello.limit != hello.pages).then(|| Some(pages(hello.limit))),
        balloon_max: (hello.balloon_max != u32::MAX).then(|| Some(pages(hello.balloon_max))),
        sharing: Some(hello.sharing),
        salt: Some(hello.salt.clone()),
        swap_dir: None,
    };
    wanted.apply(&VmSettings::default(), pages(hello.pages))
}

/// The slots of its swap file: whatever may be taken from it has a place from the start.
pub(super) fn swap_slots(params: &VmParams, settings: &VmSettings) -> u32 {
    let reservation = u32::try_from(settings.reservation.0).unwrap_or(u32::MAX);
    params.pages.saturating_sub(reservation)
}

/// The most pages of the balloon of a VM with `pages`: by the host's setting and by its own, and none of
/// its reservation, whoever asks for it.
pub(super) fn balloon_max(pages: u32, own: &VmSettings, host: &HostSettings) -> Pages {
    let pages = u64::from(pages);
    let by_host = Pages(pages * u64::from(host.ctl_max_percent) / 100);
    let unreserved = Pages(pages).saturating_sub(own.reservation);
    own.balloon_max
        .unwrap_or(by_host)
        .min(by_host)
        .min(unreserved)
}

/// Lets the balloon of a VM hold what its settings and the host's say.
pub(super) fn set_balloon_max(member: &Member, own: &VmSettings, host: &HostSettings) {
    if member
        .balloon
        .set_max(balloon_max(member.vm.params.pages, own, host))
    {
        member.balloon.doorbell.ring();
    }
}

/// Changes settings of a running VM, all of them or none.
pub(super) fn change(host: &Host, member: &Member, patch: &VmPatch) -> Result<(), ControlError> {
    let _alone = host.admissions();
    let old = member.layered();
    let file = host.vm_in_file(&member.vm.params.name);
    let new = old.with(&file, patch.over(&old.by_hand), &member.vm.params)?;
    carry_out(host, member, &old.now, &new.now)?;
    // Who has set it is told what it is now.
    set_balloon_max(member, &new.now, &host.settings());
    member.set_layered(new);
    host.settings_changed();
    Ok(())
}

/// Whether what the configuration file says of a VM can be, by itself.
pub(super) fn check(member: &Member, file: &VmPatch) -> Result<(), ControlError> {
    let old = member.layered();
    old.with(file, old.by_hand.clone(), &member.vm.params)?;
    Ok(())
}

/// Applies what the configuration file says now; whether anything changed.
pub(super) fn reapply(host: &Host, member: &Member, file: &VmPatch) -> Result<bool, ControlError> {
    let _alone = host.admissions();
    let old = member.layered();
    let new = old.with(file, old.by_hand.clone(), &member.vm.params)?;
    let changed = new.now != old.now;
    if changed {
        carry_out(host, member, &old.now, &new.now)?;
        member.set_layered(new);
        host.settings_changed();
    }
    Ok(changed)
}

/// Does what a change of settings takes. After an error everything is as before.
fn carry_out(
    host: &Host,
    member: &Member,
    old: &VmSettings,
    new: &VmSettings,
) -> Result<(), ControlError> {
    let vm = &member.vm;
    let refused = |error: &dyn Error| ControlError::Refused(chain(error));
    if new.reservation > old.reservation {
        admission::check_reservation(host, vm.id, new.reservation).map_err(|e| refused(&e))?;
    }
    let (from, to) = (host.swap_dir(old), host.swap_dir(new));
    if from != to {
        vm.swap.begin_move(&to).map_err(|e| refused(&e))?;
    }
    if let Err(error) = vm.swap.resize(swap_slots(&vm.params, new)) {
        // To where it is: a move that has begun is given up.
        let _ = vm.swap.begin_move(&from);
        return Err(refused(&error));
    }
    // The worker goes on with the move. What else follows from settings, the policy thread applies when it looks.
    Ok(())
}

/// Lets the VM share with whom its settings and the host's say.
pub(super) fn move_domain(host: &Host, member: &Member, settings: &VmSettings) {
    let id = member.vm.id;
    let domain = host.domain(id, settings);
    if domain == member.domain() {
        return;
    }
    match host.pool(id, &domain) {
        Ok(pool) => {
            let shares = domain != Domain::None;
            let join = Job::Join(shares.then_some(pool));
            // A worker that is too far behind is told at the next look.
            if member.worker.suggest(join) {
                member.set_domain(domain);
            }
        }
        Err(error) => {
            let name = &member.vm.params.name;
            tracing::error!(vm = %name, %error, "no pool can be made; its sharing stays as it is");
        }
    }
}
