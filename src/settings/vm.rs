//! The settings of one VM.
//!
//! Each setting has a short name and ESX's name, and is written as `KEY=VALUE`, in TOML or in JSON. What is
//! written in one place is a [`VmPatch`]: some keys, each valid by itself. Whether the values fit
//! together can only be said of all of them, so [`VmPatch::apply`] makes whole [`VmSettings`] or
//! changes nothing.

use std::path::PathBuf;

use memvisor_wire::memory::Shares;
use thiserror::Error;

use super::patch::VmPatch;
use crate::units::{Bytes, PAGE_SIZE, Pages};

/// The longest salt, in bytes.
pub const SALT_MAX: usize = 256;

/// Notes a value in a patch. Returns `None` if the text is not allowed, false if the patch already has a value.
pub(super) type Read = fn(&mut VmPatch, &str) -> Option<bool>;

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
    pub(super) is_size: bool,
    pub(super) read: Read,
}

/// All settings of a VM. Sizes are in whole pages; under ESX's names a bare number counts MB.
pub const VM_KEYS: [VmKey; 7] = [
    VmKey {
        name: "shares",
        esx: "sched.mem.shares",
        default: "normal",
        allowed: "low, normal, high or 0 to 1000000000",
        effect: "its weight when memory is short; low, normal and high are 5, 10 and 20 for \
                 each MiB of its size, at least 1",
        is_size: false,
        read: |patch, text| put(&mut patch.shares, text.parse().ok()?),
    },
    VmKey {
        name: "reservation",
        esx: "sched.mem.min",
        default: "0",
        allowed: "a size of whole pages up to the limit, such as 64M",
        effect: "memory that the host guarantees",
        is_size: true,
        read: |patch, text| put(&mut patch.reservation, pages(text)?),
    },
    VmKey {
        name: "limit",
        esx: "sched.mem.max",
        default: "none",
        allowed: "a size of whole pages up to the VM's memory, such as 128M, or none",
        effect: "memory that it never exceeds",
        is_size: true,
        read: |patch, text| {
            let limit = or_none(text, pages)?;
            let is_nothing = limit == Some(Pages(0));
            (!is_nothing).then(|| put(&mut patch.limit, limit))?
        },
    },
    VmKey {
        name: "balloon-max",
        esx: "sched.mem.maxmemctl",
        default: "none",
        allowed: "a size of whole pages, such as 64M, or none",
        effect: "the most that its balloon takes, within `Mem.CtlMaxPercent`; 0 turns its \
                 balloon off",
        is_size: true,
        read: |patch, text| put(&mut patch.balloon_max, or_none(text, pages)?),
    },
    VmKey {
        name: "sharing",
        esx: "sched.mem.pshare.enable",
        default: "on",
        allowed: "on, off, true or false",
        effect: "whether its pages are shared at all",
        is_size: false,
        read: |patch, text| put(&mut patch.sharing, switch(text)?),
    },
    VmKey {
        name: "salt",
        esx: "sched.mem.pshare.salt",
        default: "none",
        allowed: "a text of at most 256 bytes, or none",
        effect: "it shares pages with VMs of the same salt; empty: only within itself; none: \
                 as `Mem.ShareForceSalting` says",
        is_size: false,
        read: |patch, text| put(&mut patch.salt, or_none(text, salt)?),
    },
    VmKey {
        name: "swap-dir",
        esx: "sched.swap.dir",
        default: "the host's",
        allowed: "the absolute path of a directory",
        effect: "where its swap file is; it moves there while the VM runs",
        is_size: false,
        read: |patch, text| put(&mut patch.swap_dir, directory(text)?),
    },
];

fn put<T>(place: &mut Option<T>, value: T) -> Option<bool> {
    let is_first = place.is_none();
    if is_first {
        *place = Some(value);
    }
    Some(is_first)
}

fn pages(text: &str) -> Option<Pages> {
    let bytes: Bytes = text.parse().ok()?;
    let whole = bytes.0.is_multiple_of(PAGE_SIZE as u64);
    whole.then(|| bytes.pages())
}

/// The outer `None` means that the text is not allowed, the inner one that it says `none`.
fn or_none<T>(text: &str, read: fn(&str) -> Option<T>) -> Option<Option<T>> {
    if text == "none" {
        return Some(None);
    }
    read(text).map(Some)
}

fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" => Some(true),
        "off" | "false" => Some(false),
        _ => None,
    }
}

fn salt(text: &str) -> Option<String> {
    (text.len() <= SALT_MAX).then(|| text.to_owned())
}

fn directory(text: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text);
    let fits = path.is_absolute() && !text.contains('\0');
    fits.then_some(path)
}

/// The settings of a VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmSettings {
    /// Its weight; [`Shares::count`] turns it into a number.
    pub shares: Shares,
    /// Memory it is guaranteed; at most the limit.
    pub reservation: Pages,
    /// Memory it never exceeds; `None` is its size.
    pub limit: Option<Pages>,
    /// The most its balloon takes; `None` leaves that to `Mem.CtlMaxPercent`, which applies in any
    /// case.
    pub balloon_max: Option<Pages>,
    /// Whether its pages are shared at all.
    pub sharing: bool,
    /// Its salt; an empty one is a sharing domain of its own.
    pub salt: Option<String>,
    /// Where its swap file is made; `None` is the host's directory.
    pub swap_dir: Option<PathBuf>,
}

impl Default for VmSettings {
    fn default() -> Self {
        Self {
            shares: Shares::PerMib(10),
            reservation: Pages(0),
            limit: None,
            balloon_max: None,
            sharing: true,
            salt: None,
            swap_dir: None,
        }
    }
}

/// Why settings of a VM are refused.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum VmSettingsError {
    /// Not of the form `KEY=VALUE`.
    #[error("`{0}` is not KEY=VALUE")]
    Word(String),
    /// No such key.
    #[error("there is no VM setting `{key}`")]
    Unknown {
        /// The key.
        key: String,
        /// Keys that are like it, the likest first.
        nearest: Vec<&'static str>,
    },
    /// The key cannot have that value.
    #[error("{key} cannot be `{value}`")]
    Value {
        /// The key's short name.
        key: &'static str,
        /// The value.
        value: String,
        /// What would be right.
        allowed: &'static str,
    },
    /// The key is given more than once, perhaps under both names.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// The limit is more than the VM has.
    #[error("limit {limit} is more than the VM's memory of {size}")]
    Limit {
        /// The limit.
        limit: Bytes,
        /// The VM's memory.
        size: Bytes,
    },
    /// The reservation is more than the VM may have.
    #[error("reservation {reservation} is more than the {most} that the VM may have")]
    Reservation {
        /// The reservation.
        reservation: Bytes,
        /// The limit, or the VM's memory.
        most: Bytes,
    },
}

impl VmSettingsError {
    /// What would be right.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self {
            Self::Unknown { nearest, .. } if !nearest.is_empty() => nearest.join(", "),
            Self::Word(_) | Self::Unknown { .. } => {
                VM_KEYS.map(|key| key.name).join(", ") + ", or their ESX names"
            }
            Self::Value { allowed, .. } => (*allowed).to_owned(),
            Self::Twice(_) => "each setting once, under one of its two names".to_owned(),
            Self::Limit { size, .. } => format!("a limit of at most {size}, or none"),
            Self::Reservation { most, .. } => format!("a reservation of at most {most}"),
        }
    }

    /// The short name of the setting that is at fault, if a single one is.
    #[must_use]
    pub fn key(&self) -> Option<&'static str> {
        match self {
            Self::Word(_) | Self::Unknown { .. } => None,
            Self::Value { key, .. } | Self::Twice(key) => Some(key),
            Self::Limit { .. } => Some("limit"),
            Self::Reservation { .. } => Some("reservation"),
        }
    }

    /// What is wrong and what would be right, in one line.
    #[must_use]
    pub fn in_full(&self) -> String {
        format!("{self}; allowed: {}", self.allowed())
    }
}
