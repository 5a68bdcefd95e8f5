//! The settings of the host, where they come from, and changing them while it runs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::options::HostOptions;
use super::resource_pools::ResourcePools;
use crate::policy::Policy;
use crate::settings::{
    ConfigFile, Domain, HostSettings, Key, Layers, SettingError, SettingView, VmPatch, VmSettings,
};
use crate::swap::HostCache;
use crate::units::VmId;

/// What is configured. The locks of `held` and `seen` are taken one at a time.
#[derive(Debug)]
pub(super) struct Configuration {
    held: Mutex<Held>,
    /// The file as it was when it was last checked.
    seen: Mutex<Option<Stamp>>,
    /// Counts changes of settings, of the host and of any VM.
    revision: AtomicU64,
    /// Where swap files are made unless a VM's settings say otherwise.
    swap_dir: PathBuf,
    /// The host cache of swapped pages, if there is one.
    pub(super) swap_cache: Option<Arc<HostCache>>,
    /// By which rule memory is divided.
    pub(super) policy: &'static dyn Policy,
    /// The tree of pools that VMs are in.
    pub(super) resource_pools: ResourcePools,
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
        // Only a regular file can be followed: reading a pipe might take for ever.
        about.is_file().then(|| Self {
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
        let pools = file.as_ref().map(ConfigFile::pool_patches);
        let (layers, effective) = (options.layers.clone(), options.layers.effective());
        Self {
            held: Mutex::new(Held {
                layers,
                effective,
                file,
            }),
            seen: Mutex::new(seen),
            revision: AtomicU64::new(0),
            swap_dir: options.swap_dir.clone(),
            swap_cache: (options.swap_cache.as_deref()).map(|dir| Arc::new(HostCache::new(dir))),
            policy: options.policy,
            resource_pools: ResourcePools::new(pools.unwrap_or_default()),
        }
    }

    /// All host settings, for clients.
    pub(super) fn views(&self) -> Vec<SettingView> {
        lock(&self.held).layers.views()
    }

    /// The host's settings now.
    pub(super) fn settings(&self) -> HostSettings {
        lock(&self.held).effective
    }

    /// Sets a host setting.
    pub(super) fn set(&self, name: &str, value: &str) -> Result<SettingView, SettingError> {
        let mut held = lock(&self.held);
        let before = held.layers.clone();
        let view = held.layers.set(name, value)?;
        if let Err(error) = self.check_cache(&held.layers.effective()) {
            held.layers = before;
            return Err(error);
        }
        held.effective = held.layers.effective();
        drop(held);
        self.note_change();
        Ok(view)
    }

    /// Refuses the size of a host cache that has no directory.
    pub(super) fn check_cache(&self, settings: &HostSettings) -> Result<(), SettingError> {
        if settings.swap_cache_size == 0 || self.swap_cache.is_some() {
            return Ok(());
        }
        Err(SettingError::Value {
            name: Key::SwapCacheSize.spec().name,
            value: settings.swap_cache_size.to_string(),
            allowed: "0, as this host was started without --swap-cache DIR".to_owned(),
        })
    }

    /// The configuration file that is in force.
    pub(super) fn file(&self) -> Option<ConfigFile> {
        lock(&self.held).file.clone()
    }

    /// The host's settings as they would be with another file.
    pub(super) fn settings_with(&self, new: &ConfigFile) -> HostSettings {
        let layers = lock(&self.held).layers.with_file(new.settings.clone());
        layers.effective()
    }

    /// Puts another file in force; returns the host settings that have another value now.
    pub(super) fn replace_file(&self, new: ConfigFile) -> Vec<SettingView> {
        let mut held = lock(&self.held);
        let changed = held.layers.replace_file(new.settings.clone());
        held.effective = held.layers.effective();
        held.file = Some(new);
        drop(held);
        self.note_change();
        changed
    }

    /// What the configuration file says about a VM.
    pub(super) fn vm_in_file(&self, name: &str) -> VmPatch {
        let held = lock(&self.held);
        let file = held.file.as_ref();
        file.map(|file| file.vm(name)).unwrap_or_default()
    }

    /// Where the swap file of a VM is to be.
    pub(super) fn swap_dir(&self, vm: &VmSettings) -> PathBuf {
        vm.swap_dir.as_ref().unwrap_or(&self.swap_dir).clone()
    }

    /// The sharing domain of a VM with these settings.
    pub(super) fn domain(&self, id: VmId, vm: &VmSettings) -> Domain {
        let force = self.settings().share_force_salting;
        Domain::of(id, vm.salt.as_deref(), vm.sharing, force)
    }

    /// Counts a change of settings. Callers that change those of a VM call it; the host's setters do so themselves.
    pub(super) fn note_change(&self) {
        // Relaxed: the number says only that something is new. The settings themselves are read under their lock.
        self.revision.fetch_add(1, Ordering::Relaxed);
    }

    /// How often settings have changed.
    pub(super) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// Polls the file; returns whether it has changed since the last call.
    pub(super) fn poll_file(&self) -> bool {
        let path = lock(&self.held).file.as_ref().map(|file| file.path.clone());
        let now = path.as_deref().and_then(Stamp::of);
        let mut seen = lock(&self.seen);
        // A missing file is no change: one that is just being replaced may be missing for a moment.
        let is_new = now.is_some() && now != *seen;
        if is_new {
            *seen = now;
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::super::rig::options;
    use super::*;
    use crate::settings::Origin;
    use crate::units::Bytes;

    fn configured(dir: &Path, text: &str) -> Configuration {
        Configuration::new(&options(dir, Bytes::from_mib(64), Some(text)))
    }

    #[test]
    fn setting_is_in_force_at_once_and_counts_as_a_change() {
        let dir = tempfile::tempdir().expect("tempdir");
        let configuration = configured(dir.path(), "[settings]\n'Mem.IdleTax' = 10\n");
        assert_eq!(configuration.settings().idle_tax, 10);
        let view = configuration.set("Mem.IdleTax", "20").expect("in range");
        assert_eq!(
            (configuration.settings().idle_tax, view.from),
            (20, Origin::Set)
        );
        assert_eq!(configuration.revision(), 1);
        configuration
            .set("Mem.IdleTax", "100")
            .expect_err("too much");
        assert_eq!(
            (configuration.settings().idle_tax, configuration.revision()),
            (20, 1)
        );
    }

    #[test]
    fn file_is_new_once_for_each_of_its_versions() {
        let dir = tempfile::tempdir().expect("tempdir");
        let configuration = configured(dir.path(), "[vm.a]\nlimit = '1M'\n");
        assert!(!configuration.poll_file(), "it was read at the start");
        let path = configuration.file().expect("there is one").path;
        fs::remove_file(&path).expect("ours");
        assert!(!configuration.poll_file(), "it may be on its way");
        fs::write(&path, "[vm.a]\nlimit = '2M' # longer\n").expect("ours");
        assert!(configuration.poll_file());
        assert!(!configuration.poll_file());
        assert_eq!(
            configuration.vm_in_file("a").limit.flatten(),
            Some(crate::units::Pages(256))
        );
        let new = ConfigFile::load(&path).expect("good");
        configuration.replace_file(new);
        assert_eq!(
            configuration.vm_in_file("a").limit.flatten(),
            Some(crate::units::Pages(512))
        );
        assert_eq!(configuration.vm_in_file("b"), VmPatch::default());
    }

    #[test]
    fn swap_dir_and_domain_follow_the_settings_of_a_vm() {
        let dir = tempfile::tempdir().expect("tempdir");
        let configuration = configured(dir.path(), "");
        let mut vm = VmSettings::default();
        assert_eq!(configuration.swap_dir(&vm), dir.path());
        vm.swap_dir = Some(PathBuf::from("/elsewhere"));
        assert_eq!(configuration.swap_dir(&vm), Path::new("/elsewhere"));
        vm.sharing = false;
        assert_eq!(configuration.domain(VmId(1), &vm), Domain::None);
    }
}
