//! The settings of one VM: the one place that knows their names, defaults and effects.
//!
//! Each setting has a short name and ESX's name, and is written as `KEY=VALUE`, in TOML or in JSON. What is
//! written in one place is a [`VmPatch`]: some keys, each valid by itself. Whether the values fit
//! together can only be said of all of them, so [`VmPatch::apply`] makes whole [`VmSettings`] or
//! changes nothing.
//!
//! A setting has one entry in [`vm_settings!`], from which its row of [`VM_KEYS`] and its fields of [`VmPatch`] and
//! [`VmSettings`] follow.

use std::path::PathBuf;

use memvisor_wire::memory::Shares;
use memvisor_wire::units::is_unlimited;
use serde::Serialize;

use super::field::{self, FieldValue};
use super::keyed::TakenBack;
use super::resource_pool::check_pool_name;
use crate::units::{Bytes, Pages};

/// The longest salt, in bytes.
pub const SALT_MAX: usize = 256;

/// Notes a value in a patch. Returns `None` if the text is not allowed.
type Read = fn(&mut VmPatch, &str) -> Option<()>;

/// What is known about a setting of a VM.
#[derive(Clone, Copy, Debug)]
pub struct VmKey {
    /// Its short name.
    pub name: &'static str,
    /// ESX's name.
    pub esx: &'static str,
    /// What a VM has if it says nothing.
    pub default: &'static str,
    /// What may be written.
    pub allowed: &'static str,
    /// What it does.
    pub effect: &'static str,
    /// Whether it is a size. Under ESX's name, a bare number then counts MB.
    pub is_size: bool,
    pub(super) read: Read,
    /// Whether a patch says anything about it.
    pub(super) is_in: fn(&VmPatch) -> bool,
}

impl VmKey {
    /// Whether it has this name, of which the case does not matter.
    #[must_use]
    pub const fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name) || self.esx.eq_ignore_ascii_case(name)
    }
}

/// Declares the settings of a VM. An entry is
///
/// ```text
/// /// What it does.
/// "short name" / "ESX's name" => field: type of the value { default, what may be written, how that is read }
/// ```
///
/// The field has the short name with `_` for `-`: serde derives one from the other.
macro_rules! vm_settings {
    ($(
        $(#[doc = $effect:literal])+
        $name:literal / $esx:literal => $field:ident: $type:ty {
            default: $default:literal,
            allowed: $allowed:literal,
            read: $read:expr,
        }
    )+) => {
        /// All settings of a VM. Sizes are in whole pages.
        pub const VM_KEYS: [VmKey; [$($name),+].len()] = [$(VmKey {
            name: $name,
            esx: $esx,
            default: $default,
            allowed: $allowed,
            effect: concat!($($effect),+).trim_ascii(),
            is_size: <$type as FieldValue>::IS_SIZE,
            read: |patch, text| {
                let read: fn(&str) -> Option<$type> = $read;
                patch.$field = Some(read(text)?);
                Some(())
            },
            is_in: |patch| patch.$field.is_some() || patch.taken_back.has($name),
        },)+];

        /// The settings of a VM.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct VmSettings {
            $($(#[doc = $effect])+ pub $field: $type,)+
        }

        impl Default for VmSettings {
            fn default() -> Self {
                Self { $($field: {
                    let read: fn(&str) -> Option<$type> = $read;
                    read($default).expect("a default is allowed")
                },)+ }
            }
        }

        /// Some settings of a VM, to be changed.
        #[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct VmPatch {
            $(
                $(#[doc = $effect])+
                #[serde(skip_serializing_if = "Option::is_none", serialize_with = "field::json")]
                pub $field: Option<$type>,
            )+
            /// What it takes back.
            #[serde(flatten)]
            pub taken_back: TakenBack,
        }

        impl VmPatch {
            /// The settings of this patch, and those of `below` of which this patch says nothing.
            #[must_use]
            pub fn over(&self, below: &Self) -> Self {
                Self {
                    $($field: {
                        let below = below.$field.as_ref().filter(|_| !self.taken_back.has($name));
                        self.$field.as_ref().or(below).cloned()
                    },)+
                    taken_back: TakenBack::default(),
                }
            }

            /// These settings, with those of this patch in their place.
            pub(super) fn changed(&self, settings: &VmSettings) -> VmSettings {
                VmSettings { $($field: self.$field.as_ref().unwrap_or(&settings.$field).clone(),)+ }
            }
        }
    };
}

vm_settings! {
    /// its weight when memory is short; low, normal and high are 5, 10 and 20 for each MiB of its size, at least 1
    "shares" / "sched.mem.shares" => shares: Shares {
        default: "normal",
        allowed: "low, normal, high or 0 to 1000000000",
        read: |text| text.parse().ok(),
    }
    /// memory that the host guarantees
    "reservation" / "sched.mem.min" => reservation: Pages {
        default: "0",
        allowed: "a size of whole pages up to the limit, such as 64M",
        read: pages,
    }
    /// memory that it never exceeds
    "limit" / "sched.mem.max" => limit: Option<Pages> {
        default: "none",
        allowed: "a size of whole pages up to the VM's memory, such as 128M, or none, unlimited or -1",
        read: |text| or_unlimited(text).filter(|limit| *limit != Some(Pages(0))),
    }
    /// the resource pool that it is in, see [resource pools](#resource-pools); it can move while it runs
    "pool" / "resourcePool" => pool: String {
        default: "root",
        allowed: "the name of a resource pool",
        read: |text| check_pool_name(text).is_ok().then(|| text.to_owned()),
    }
    /// the most that its balloon takes, within `Mem.CtlMaxPercent`; 0 turns its balloon off
    "balloon-max" / "sched.mem.maxmemctl" => balloon_max: Option<Pages> {
        default: "none",
        allowed: "a size of whole pages, such as 64M, or none, unlimited or -1",
        read: or_unlimited,
    }
    /// whether its pages are shared at all
    "sharing" / "sched.mem.pshare.enable" => sharing: bool {
        default: "on",
        allowed: "on, off, true or false",
        read: switch,
    }
    /// it shares pages with VMs of the same salt; empty: only within itself; none: as `Mem.ShareForceSalting` says
    "salt" / "sched.mem.pshare.salt" => salt: Option<String> {
        default: "none",
        allowed: "a text of at most 256 bytes, or none",
        read: |text| or_none(text, |salt| (salt.len() <= SALT_MAX).then(|| salt.to_owned())),
    }
    /// where its swap file is; it moves there while the VM runs; none: where those of the host are
    "swap-dir" / "sched.swap.dir" => swap_dir: Option<PathBuf> {
        default: "none",
        allowed: "the absolute path of a directory, or none",
        read: |text| or_none(text, directory),
    }
    /// whether the disk space of its swap file is kept when it is powered off, for when it is powered on again
    "swap-persist" / "sched.swap.persist" => swap_persist: bool {
        default: "off",
        allowed: "on, off, true or false",
        read: switch,
    }
}

pub(super) fn pages(text: &str) -> Option<Pages> {
    text.parse::<Bytes>().ok()?.whole_pages()
}

/// The outer `None` means that the text is not allowed, the inner one that it says `none`.
pub(super) fn or_none<T>(text: &str, read: fn(&str) -> Option<T>) -> Option<Option<T>> {
    if text == "none" {
        return Some(None);
    }
    read(text).map(Some)
}

/// As [`or_none`], of the most of something, where ESX says `unlimited` or -1.
pub(super) fn or_unlimited(text: &str) -> Option<Option<Pages>> {
    if is_unlimited(text) {
        return Some(None);
    }
    pages(text).map(Some)
}

pub(super) fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" => Some(true),
        "off" | "false" => Some(false),
        _ => None,
    }
}

fn directory(text: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text);
    let fits = path.is_absolute() && !text.contains('\0');
    fits.then_some(path)
}
