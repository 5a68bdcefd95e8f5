//! The settings of the host, where they come from, and changing them while it runs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::daemon::Host;
use super::{HostOptions, vm_settings};
use crate::chain::chain;
use crate::control::{ControlError, ReloadReport};
use crate::settings::{
    ConfigFile, HostSettings, Layers, SettingError, SettingView, VmPatch, VmSettings,
};

/// What is configured. Lock order: `admissions` before everything of the VMs, and alone among these;
/// `held` and `seen` are taken alone.
#[derive(Debug)]
pub(super) struct Configuration {
    held: Mutex<Held>,
    /// The file as it was when it was last looked at.
    seen: Mutex<Option<Stamp>>,
    /// Counts changes, of the host and of any VM.
    revision: AtomicU64,
    /// Held while a promise of memory is checked and made.
    admissions: Mutex<()>,
}

#[derive(Debug)]
struct Held {
    layers: Layers,
    effective: HostSettings,
    file: Option<ConfigFile>,
}

/// What tells two versions of a file apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let about = fs::metadata(path).ok()?;
        Some(Self {
            inode: about.ino(),
            size: about.size(),
            modified: (about.mtime(), about.mtime_nsec()),
        })
    }
}

/// A lock of plain data, which is whole even if a thread panicked while it held it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Configuration {
    pub(super) fn new(options: &HostOptions) -> Self {
        let file = options.config.clone();
        let seen = file.as_ref().and_then(|file| Stamp::of(&file.path));
        let (layers, effective) = (options.layers.clone(), options.layers.effective());
        Self {
            held: Mutex::new(Held {
                layers,
                effective,
                file,
            }),
            seen: Mutex::new(seen),
            revision: AtomicU64::new(0),
            admissions: Mutex::default(),
        }
    }

    /// All host settings, for clients.
    pub(super) fn views(&self) -> Vec<SettingView> {
        lock(&self.held).layers.views()
    }

    fn set(&self, name: &str, value: &str) -> Result<SettingView, SettingError> {
        let mut held = lock(&self.held);
        let view = held.layers.set(name, value)?;
        held.effective = held.layers.effective();
        Ok(view)
    }

    /// Whether the file is another one than when it was last looked at.
    fn is_file_new(&self) -> bool {
        let path = lock(&self.held).file.as_ref().map(|file| file.path.clone());
        let now = path.as_deref().and_then(Stamp::of);
        let mut seen = lock(&self.seen);
        // A file that is just being replaced may be missing for a moment.
        let is_new = now.is_some() && now != *seen;
        if is_new {
            *seen = now;
        }
        is_new
    }
}

impl Host {
    /// The host's settings now.
    pub(super) fn settings(&self) -> HostSettings {
        lock(&self.configuration.held).effective
    }

    /// Sets a host setting.
    pub(super) fn change_setting(
        &self,
        name: &str,
        value: &str,
    ) -> Result<SettingView, SettingError> {
        let view = self.configuration.set(name, value)?;
        tracing::info!(setting = view.name, value = %view.value, from = %view.from, "set");
        self.settings_changed();
        Ok(view)
    }

    /// Has the policy look at once, with everything as it is now.
    pub(super) fn settings_changed(&self) {
        self.configuration.revision.fetch_add(1, Ordering::Relaxed);
        self.budget.ring_alarm();
    }

    /// How often settings have changed.
    pub(super) fn revision(&self) -> u64 {
        self.configuration.revision.load(Ordering::Relaxed)
    }

    /// Held while a promise of memory is checked and made: two at a time could promise the same.
    pub(super) fn admissions(&self) -> MutexGuard<'_, ()> {
        lock(&self.configuration.admissions)
    }

    /// What the configuration file says about a VM.
    pub(super) fn vm_in_file(&self, name: &str) -> VmPatch {
        let held = lock(&self.configuration.held);
        let file = held.file.as_ref();
        file.and_then(|file| file.vms.get(name).cloned())
            .unwrap_or_default()
    }

    /// Where the swap file of a VM is to be.
    pub(super) fn swap_dir(&self, vm: &VmSettings) -> PathBuf {
        let own = vm.swap_dir.as_ref();
        own.unwrap_or(&self.options.swap_dir).clone()
    }

    /// Reads the configuration file again. A file with a fault changes nothing; neither does one that
    /// asks of a VM what it cannot have, for that VM.
    pub(super) fn reload_file(&self) -> Result<ReloadReport, ControlError> {
        let file = lock(&self.configuration.held).file.clone();
        let file = file.ok_or(ControlError::NoConfig)?;
        let new = file
            .load_again()
            .map_err(|error| ControlError::Config(chain(&error)))?;
        let members = self.members.all();
        // The VMs first, as far as that can be refused: then nothing is in force by half.
        for member in &members {
            let patch = new.vms.get(&member.vm.params.name);
            vm_settings::check(member, &patch.cloned().unwrap_or_default())?;
        }
        let settings = {
            let mut held = lock(&self.configuration.held);
            let changed = held.layers.replace_file(new.settings.clone());
            held.effective = held.layers.effective();
            held.file = Some(new.clone());
            changed
        };
        let mut vms = Vec::new();
        for member in &members {
            let patch = new.vms.get(&member.vm.params.name);
            if vm_settings::reapply(self, member, &patch.cloned().unwrap_or_default())? {
                vms.push(member.vm.params.name.clone());
            }
        }
        self.settings_changed();
        let file = new.path.display().to_string();
        tracing::info!(file, settings = settings.len(), vms = vms.len(), "reloaded");
        Ok(ReloadReport {
            file,
            settings,
            vms,
        })
    }

    /// Reloads the configuration file if it has changed.
    pub(super) fn follow_file(&self) {
        if self.configuration.is_file_new()
            && let Err(error) = self.reload_file()
        {
            tracing::error!(%error, "the configuration file is not used; the last good one holds");
        }
    }
}
