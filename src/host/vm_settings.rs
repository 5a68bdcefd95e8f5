//! The settings of one VM: what it is powered on with, and how they change while it runs.
//!
//! A guest says what it wants. The configuration file overrides that, and what is set by hand overrides both.

use memvisor_wire::memory::{Hello, Shares};

use crate::settings::{HostSettings, VmPatch, VmSettings, VmSettingsError};
use crate::units::Pages;
use crate::vm::VmParams;

/// The settings of a VM, by where they come from.
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

    /// The settings with another file.
    pub(super) fn with_file(
        &self,
        file: &VmPatch,
        params: &VmParams,
    ) -> Result<Self, VmSettingsError> {
        self.with(file, self.by_hand.clone(), params)
    }

    /// The settings with `patch` set by hand, which overrides the file.
    pub(super) fn with_change(
        &self,
        file: &VmPatch,
        patch: &VmPatch,
        params: &VmParams,
    ) -> Result<Self, VmSettingsError> {
        self.with(file, patch.over(&self.by_hand), params)
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
        // A limit of the whole size limits nothing, so it counts as none.
        limit: (hello.limit != hello.pages).then(|| Some(pages(hello.limit))),
        balloon_max: (hello.balloon_max != u32::MAX).then(|| Some(pages(hello.balloon_max))),
        sharing: Some(hello.sharing),
        salt: Some(hello.salt.clone()),
        // A name that cannot be is refused like one that is not there.
        pool: Some(hello.resource_pool.clone()).filter(|pool| !pool.is_empty()),
        ..VmPatch::default()
    };
    wanted.apply(&VmSettings::default(), pages(hello.pages))
}

/// The slots of a VM's swap file: there is room from the start for all that may be taken from it.
pub(crate) fn swap_slots(params: &VmParams, settings: &VmSettings) -> u32 {
    let reservation = u32::try_from(settings.reservation.0).unwrap_or(u32::MAX);
    params.pages.saturating_sub(reservation)
}

/// The most pages that the balloon of a VM with `pages` may hold: by the host's setting and by its own, and none of
/// its reservation.
pub(super) fn balloon_max(pages: u32, own: &VmSettings, host: &HostSettings) -> Pages {
    let pages = u64::from(pages);
    let by_host = Pages(pages * u64::from(host.ctl_max_percent) / 100);
    let unreserved = Pages(pages).saturating_sub(own.reservation);
    own.balloon_max
        .unwrap_or(by_host)
        .min(by_host)
        .min(unreserved)
}
