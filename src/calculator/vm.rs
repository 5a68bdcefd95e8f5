//! One VM of a scenario: what is written about it, and the rest, which is worked out.

use std::collections::BTreeMap;

use serde_json::Value;

use super::read::{SIZES, size, sum};
use crate::policy::{ResourcePool, VmSnapshot};
use crate::settings::{HostSettings, UnknownPool, VM_KEYS, VmKey, VmPatch, VmSettings, shown};
use crate::units::{Pages, VmId};

/// The keys of a VM that are its settings.
const SETTINGS: [&str; 5] = ["shares", "reservation", "limit", "balloon-max", "pool"];
/// The keys that say where its memory is, and what that costs.
const PLACES: [&str; 9] = [
    "consumed",
    "shared",
    "saved",
    "balloon",
    "swapped",
    "compressed",
    "zero",
    "untouched",
    "active",
];
/// The fields of a snapshot that follow from these keys. All other fields may be written, by their own names.
const WORKED_OUT: [&str; 6] = [
    "id",
    "resident",
    "sharing-saved",
    "zip-pages",
    "ballooned",
    "resource-pool",
];
/// The other keys.
const OTHERS: [&str; 4] = ["size", "agent", "swap-room", "name"];

/// A table `[vm.NAME]`.
#[derive(Debug, Default)]
pub(super) struct WrittenVm {
    size: Option<Pages>,
    settings: VmPatch,
    /// In the order of [`PLACES`].
    places: [Option<Pages>; PLACES.len()],
    agent: Option<bool>,
    swap_room: Option<Pages>,
    /// The fields of the snapshot that are written by their own names.
    fields: BTreeMap<String, Value>,
}

impl WrittenVm {
    /// Notes the value of a key.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn take(&mut self, key: &str, text: &str) -> Result<(), String> {
        let cannot = |allowed| format!("{key} cannot be `{}`; allowed: {allowed}", shown(text));
        let pages = size(text);
        if let Some(known) = setting(key) {
            return self.set(known, key, text, pages);
        }
        let size = || pages.map(Some).ok_or_else(|| cannot(SIZES));
        match key {
            "name" => {}
            "size" => self.size = size()?,
            "swap-room" => self.swap_room = size()?,
            "agent" => self.agent = Some(text.parse().map_err(|_| cannot("true, false"))?),
            _ if fields().any(|field| field == key) => {
                let name = key.replace('-', "_");
                let value = field(&name, text);
                let value = value.ok_or_else(|| cannot("true or false, a number, or a size"))?;
                self.fields.insert(name, value);
            }
            _ => match PLACES.iter().position(|place| *place == key) {
                Some(at) => self.places[at] = size()?,
                None => return Err(format!("there is no `{}`; allowed: {}", shown(key), keys())),
            },
        }
        Ok(())
    }

    /// Notes a setting, of which the text may be a size.
    fn set(
        &mut self,
        known: &VmKey,
        key: &str,
        text: &str,
        size: Option<Pages>,
    ) -> Result<(), String> {
        // Sizes are rounded down to whole pages, as elsewhere in a scenario. Under ESX's names a bare number is none yet:
        // it counts MB.
        let is_bare = known.name != key && text.parse::<u64>().is_ok();
        let put = match size.filter(|_| known.is_size && !is_bare) {
            Some(size) => self.settings.put(known.name, &size.bytes().0.to_string()),
            None => self.settings.put(key, text),
        };
        put.map(drop).map_err(|error| error.in_full())
    }

    fn place(&self, name: &str) -> Option<Pages> {
        let at = PLACES.iter().position(|place| *place == name)?;
        self.places[at]
    }

    /// The VM as the policy sees it.
    pub(super) fn snapshot(
        &self,
        id: VmId,
        host: &HostSettings,
        pools: &[ResourcePool],
    ) -> Result<VmSnapshot, String> {
        let Some(size) = self.size.filter(|size| *size > Pages(0)) else {
            return Err("it needs a size, such as 8G".to_owned());
        };
        let settings = self.settings.apply(&VmSettings::default(), size);
        let settings = settings.map_err(|error| error.in_full())?;
        let homes = self.homes(size)?;
        let active = self.place("active");
        if let Some(active) = active.filter(|active| *active > size) {
            let (active, size) = (active.bytes(), size.bytes());
            return Err(format!("active is {active}, more than its size of {size}"));
        }
        let allocation = sum([homes.resident, homes.shared, homes.zip_pages]);
        let zip_max = percent(size, host.mem_zip_max_pct)
            .min(percent(allocation, host.mem_zip_max_alloc_pct));
        let swap_file = size.saturating_sub(settings.reservation);
        let swap_room = swap_file.saturating_sub(homes.swapped);
        let pool = pools.iter().position(|pool| pool.name == settings.pool);
        let pool = pool.ok_or_else(|| {
            let known = pools.iter().map(|pool| pool.name.clone()).collect();
            let name = settings.pool.clone();
            UnknownPool { name, known }.in_full()
        })?;
        let vm = VmSnapshot {
            id,
            resource_pool: pool,
            reservation: settings.reservation,
            limit: settings.limit,
            shares: settings.shares.count(size.0),
            agent: self.agent.unwrap_or(true),
            agent_alive: self.agent.unwrap_or(true),
            balloon_max: settings.balloon_max.unwrap_or(size),
            active,
            zip_room: zip_max.saturating_sub(homes.zip_pages),
            swap_room: self.swap_room.unwrap_or(swap_room),
            ..homes
        };
        let mut fields = serde_json::to_value(vm).unwrap_or_default();
        for (name, value) in &self.fields {
            fields[name] = value.clone();
        }
        serde_json::from_value(fields).map_err(|error| error.to_string())
    }

    /// A snapshot that says where its memory is, and nothing else.
    fn homes(&self, size: Pages) -> Result<VmSnapshot, String> {
        let of = |name| self.place(name).unwrap_or_default();
        let [shared, saved] = ["shared", "saved"].map(of);
        let [compressed, swapped, ballooned, zero] =
            ["compressed", "swapped", "balloon", "zero"].map(of);
        if saved > shared {
            let (saved, shared) = (saved.bytes(), shared.bytes());
            return Err(format!(
                "saved is {saved}, more than the {shared} that it shares"
            ));
        }
        // Two guest pages for each page of the cache: the cache stores no page that compresses less.
        let zip_pages = Pages(compressed.0.div_ceil(2));
        let elsewhere = sum([shared, compressed, swapped, ballooned, zero]);
        let left = |taken: Pages| size.saturating_sub(sum([elsewhere, taken]));
        let (resident, untouched) = match (self.place("consumed"), self.place("untouched")) {
            (None, untouched) => {
                let untouched = untouched.unwrap_or_default();
                (left(untouched), untouched)
            }
            (Some(consumed), untouched) => {
                let base = sum([shared, zip_pages]).saturating_sub(saved);
                if consumed < base {
                    let (consumed, base) = (consumed.bytes(), base.bytes());
                    return Err(format!(
                        "consumed is {consumed}, less than the {base} of its shared and compressed \
                         memory"
                    ));
                }
                let resident = consumed.saturating_sub(base);
                (resident, untouched.unwrap_or_else(|| left(resident)))
            }
        };
        let homes = sum([elsewhere, resident, untouched]);
        if homes != size {
            let (homes, size) = (homes.bytes(), size.bytes());
            return Err(format!(
                "what is said of its memory adds up to {homes}, but its size is {size}; consumed and \
                 untouched are best left out where they follow from the rest"
            ));
        }
        Ok(VmSnapshot {
            resident,
            shared,
            sharing_saved: saved,
            compressed,
            zip_pages,
            swapped,
            ballooned,
            zero,
            untouched,
            ..VmSnapshot::new(VmId(0), size)
        })
    }
}

/// The setting of this name, which may be ESX's, if it is one of those that a scenario has.
fn setting(key: &str) -> Option<&'static VmKey> {
    let is = |known: &&VmKey| known.name == key || known.esx.eq_ignore_ascii_case(key);
    let known = VM_KEYS.iter().find(is)?;
    SETTINGS.contains(&known.name).then_some(known)
}

/// The fields of a snapshot for which no other key stands, by the names that a file gives them.
fn fields() -> impl Iterator<Item = String> {
    let all = serde_json::to_value(VmSnapshot::default()).unwrap_or_default();
    let all = all.as_object().cloned().unwrap_or_default();
    let names = all.into_iter().map(|(name, _)| name.replace('_', "-"));
    let known = || {
        SETTINGS
            .iter()
            .chain(&PLACES)
            .chain(&OTHERS)
            .chain(&WORKED_OUT)
    };
    names.filter(move |name| !known().any(|known| known == name))
}

/// The value of a field of a snapshot; `None` if the field cannot have it.
fn field(name: &str, text: &str) -> Option<Value> {
    let value: Value = match (text.parse::<bool>(), text.parse::<u64>()) {
        (Ok(yes), _) => yes.into(),
        (_, Ok(number)) => number.into(),
        _ => size(text)?.0.into(),
    };
    let alone = Value::from_iter([(name, value.clone())]);
    serde_json::from_value::<VmSnapshot>(alone).ok()?;
    Some(value)
}

fn keys() -> String {
    let keys = OTHERS[..1].iter().chain(&SETTINGS).chain(&PLACES);
    let keys: Vec<&str> = keys.chain(&OTHERS[1..3]).copied().collect();
    let fields: Vec<String> = fields().collect();
    format!("{}, {}", keys.join(", "), fields.join(", "))
}

fn percent(pages: Pages, percent: u32) -> Pages {
    Pages(pages.0 / 100 * u64::from(percent) + pages.0 % 100 * u64::from(percent) / 100)
}
