//! The host settings: the one place that knows their names, ranges, defaults and effects.

use super::error::{SettingError, nearest};
use super::value::{Kind, TimeUnit, Value, shown};
use crate::reclaim::victims;

/// A host setting.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(missing_docs, reason = "TABLE describes each of them")]
pub enum Key {
    ShareScanTime,
    ShareScanGHz,
    ShareRateMax,
    ShareForceSalting,
    IdleTax,
    IdleTaxType,
    SamplePeriod,
    SampleActivePctMin,
    BalancePeriod,
    CtlMaxPercent,
    MemMinFreePct,
    MemZipEnable,
    MemZipMaxPct,
    MemZipMaxAllocPct,
    FreeStates,
    StateMargin,
    Headroom,
    EvictRound,
    BalloonTakes,
    CacheKeeps,
    FaultsWait,
    ScanAtRest,
    Victims,
}

/// What is known about a host setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spec {
    /// Which one.
    pub key: Key,
    /// Its name: ESX's, or with the prefix `Memvisor.` where ESX has no such setting.
    pub name: &'static str,
    /// What it is about, for lists.
    pub group: &'static str,
    /// Its unit and range.
    pub kind: Kind,
    /// The default of profile `lab`.
    pub lab: Value,
    /// The default of profile `esx`.
    pub esx: Value,
    /// The default of profile `throughput`, where it is not that of `lab`.
    pub throughput: Option<Value>,
    /// What it does.
    pub effect: &'static str,
    /// Where and why it differs from ESX, or `lab` from `esx`; empty if neither does.
    pub deviation: &'static str,
}

const PERCENT: &str = "%";

const fn whole(number: u32) -> Value {
    Value::Whole(number)
}

const fn millis(millis: u64) -> Value {
    Value::Time(std::time::Duration::from_millis(millis))
}

/// All host settings, in the order of [`Key`]. Names, defaults and ranges of `Mem.` settings are those that
/// the advanced options of ESXi 6 and later show.
pub const TABLE: [Spec; 23] = [
    Spec {
        key: Key::ShareScanTime,
        name: "Mem.ShareScanTime",
        group: "sharing",
        kind: Kind::time(TimeUnit::Minutes, 120, 36_000_000),
        lab: millis(3000),
        esx: millis(3_600_000),
        throughput: None,
        effect: "time in which a whole VM is scanned once for pages to share",
        deviation: "ESX allows 10 to 600 min; `lab` is short, so that one can watch",
    },
    Spec {
        key: Key::ShareScanGHz,
        name: "Mem.ShareScanGHz",
        group: "sharing",
        kind: Kind::whole("MB/s per GHz", 0, 32),
        lab: whole(32),
        esx: whole(4),
        throughput: None,
        effect: "the most that is scanned of all VMs together, by the clock of the host's \
                 processors; 0 turns scanning off",
        deviation: "`lab` must not bind below `Mem.ShareScanTime`",
    },
    Spec {
        key: Key::ShareRateMax,
        name: "Mem.ShareRateMax",
        group: "sharing",
        kind: Kind::whole("pages/s", 0, 32_768),
        lab: whole(32_768),
        esx: whole(1024),
        throughput: None,
        effect: "the most that is scanned of one VM; 0 turns scanning off",
        deviation: "`lab` must not bind below `Mem.ShareScanTime`",
    },
    Spec {
        key: Key::ShareForceSalting,
        name: "Mem.ShareForceSalting",
        group: "sharing",
        kind: Kind::whole("", 0, 2),
        lab: whole(1),
        esx: whole(2),
        throughput: None,
        effect: "who shares with whom. 0: all VMs; 1: VMs of the same salt, and those without \
                 one; 2: VMs of the same salt, one without only within itself",
        deviation: "`lab` shares between VMs, as ESX did before 2014; VMs of different owners \
                    need 2",
    },
    Spec {
        key: Key::IdleTax,
        name: "Mem.IdleTax",
        group: "allocation",
        kind: Kind::whole(PERCENT, 0, 99),
        lab: whole(75),
        esx: whole(75),
        throughput: None,
        effect: "the largest part of the pages a VM holds and does not use that others may \
                 take; 0: only shares count",
        deviation: "",
    },
    Spec {
        key: Key::IdleTaxType,
        name: "Mem.IdleTaxType",
        group: "allocation",
        kind: Kind::whole("", 0, 1),
        lab: whole(1),
        esx: whole(1),
        throughput: None,
        effect: "how idle memory is taken. 0: flat, by paging; 1: variable, by the balloon",
        deviation: "ESX publishes the names flat and variable only",
    },
    Spec {
        key: Key::SamplePeriod,
        name: "Mem.SamplePeriod",
        group: "allocation",
        kind: Kind::time(TimeUnit::Seconds, 0, 180_000),
        lab: millis(2000),
        esx: millis(60_000),
        throughput: None,
        effect: "time in which the active memory of a VM is sampled once; 0 turns sampling off",
        deviation: "ESX counts whole seconds; `lab` is short, so that one can watch",
    },
    Spec {
        key: Key::SampleActivePctMin,
        name: "Mem.SampleActivePctMin",
        group: "allocation",
        kind: Kind::whole(PERCENT, 0, 10),
        lab: whole(1),
        esx: whole(1),
        throughput: None,
        effect: "the least part of a VM that counts as active",
        deviation: "",
    },
    Spec {
        key: Key::BalancePeriod,
        name: "Mem.BalancePeriod",
        group: "allocation",
        kind: Kind::time(TimeUnit::Seconds, 100, 180_000),
        lab: millis(1000),
        esx: millis(15_000),
        throughput: None,
        effect: "time after which memory is divided anew if nothing else gives cause",
        deviation: "ESX publishes no range; `lab` is short, so that one can watch",
    },
    Spec {
        key: Key::CtlMaxPercent,
        name: "Mem.CtlMaxPercent",
        group: "balloon",
        kind: Kind::whole(PERCENT, 0, 99),
        lab: whole(65),
        esx: whole(65),
        throughput: None,
        effect: "the most of a VM's size that its balloon may take; 0 turns ballooning off",
        deviation: "",
    },
    Spec {
        key: Key::MemMinFreePct,
        name: "Mem.MemMinFreePct",
        group: "free memory",
        kind: Kind::whole(PERCENT, 0, 50),
        lab: whole(0),
        esx: whole(0),
        throughput: None,
        effect: "the part of the host's memory that is kept free; 0: as `Memvisor.FreeStates` \
                 has it",
        deviation: "",
    },
    Spec {
        key: Key::MemZipEnable,
        name: "Mem.MemZipEnable",
        group: "compression",
        kind: Kind::whole("", 0, 1),
        lab: whole(1),
        esx: whole(1),
        throughput: None,
        effect: "1: a page that is to be swapped is compressed if it can be; 0: it is swapped",
        deviation: "",
    },
    Spec {
        key: Key::MemZipMaxPct,
        name: "Mem.MemZipMaxPct",
        group: "compression",
        kind: Kind::whole(PERCENT, 5, 100),
        lab: whole(10),
        esx: whole(10),
        throughput: Some(whole(50)),
        effect: "the most of a VM's size that its compression cache may take",
        deviation: "",
    },
    Spec {
        key: Key::MemZipMaxAllocPct,
        name: "Mem.MemZipMaxAllocPct",
        group: "compression",
        kind: Kind::whole(PERCENT, 5, 100),
        lab: whole(50),
        esx: whole(50),
        throughput: Some(whole(80)),
        effect: "the most of a VM's allocated memory that its compression cache may take",
        deviation: "",
    },
    Spec {
        key: Key::FreeStates,
        name: "Memvisor.FreeStates",
        group: "free memory",
        kind: Kind::Choice(&["2002", "4.1", "5.0", "6.0"]),
        lab: Value::Choice("5.0"),
        esx: Value::Choice("6.0"),
        throughput: None,
        effect: "the free-memory states and their thresholds, by the version of ESX that had \
                 them (2002: the paper)",
        deviation: "no setting in ESX. 6.0 acts below 4 times the free memory that 5.0 keeps, \
                    on a small host a quarter of it; `lab` leaves that to its VMs",
    },
    Spec {
        key: Key::StateMargin,
        name: "Memvisor.StateMargin",
        group: "free memory",
        kind: Kind::whole(PERCENT, 10, 25),
        lab: whole(20),
        esx: whole(20),
        throughput: None,
        effect: "how far free memory must exceed a threshold before the state improves, of the \
                 gap to the threshold below it",
        deviation: "no setting in ESX, which does not publish its margin",
    },
    Spec {
        key: Key::Headroom,
        name: "Memvisor.Headroom",
        group: "balloon",
        kind: Kind::whole(PERCENT, 1, 100),
        lab: whole(10),
        esx: whole(10),
        throughput: None,
        effect: "how much of its balloon a VM is presumed to want back in one step, of its size",
        deviation: "no setting in ESX, which does not publish its headroom",
    },
    Spec {
        key: Key::EvictRound,
        name: "Memvisor.EvictRound",
        group: "eviction",
        kind: Kind::whole("pages", 1, 1 << 20),
        lab: whole(4096),
        esx: whole(4096),
        throughput: None,
        effect: "the most that is ordered to be evicted at once, of all VMs together",
        deviation: "no setting in ESX",
    },
    Spec {
        key: Key::BalloonTakes,
        name: "Memvisor.BalloonTakes",
        group: "balloon",
        kind: Kind::Choice(&["all", "free"]),
        lab: Value::Choice("all"),
        esx: Value::Choice("all"),
        throughput: Some(Value::Choice("free")),
        effect: "what balloons take. all: as much as memory is to be had, whatever the guest must page \
                 out for it; free: no more than the guest has free, by its own statistics",
        deviation: "no setting in ESX, whose balloons take all",
    },
    Spec {
        key: Key::CacheKeeps,
        name: "Memvisor.CacheKeeps",
        group: "compression",
        kind: Kind::Choice(&["all", "paying"]),
        lab: Value::Choice("all"),
        esx: Value::Choice("all"),
        throughput: Some(Value::Choice("paying")),
        effect: "which pages a compression cache keeps. all: those that its cap has room for; paying: of these, those \
                 whose memory would save no more time as RAM of the VM",
        deviation: "no setting in ESX, where a cache keeps all",
    },
    Spec {
        key: Key::FaultsWait,
        name: "Memvisor.FaultsWait",
        group: "eviction",
        kind: Kind::Choice(&["low", "hard"]),
        lab: Value::Choice("low"),
        esx: Value::Choice("low"),
        throughput: Some(Value::Choice("hard")),
        effect: "when guests that ask for memory faster than it is reclaimed wait for what is freed. low: in low, \
                 if they are above their targets; hard: all, so that low is not reached",
        deviation: "no setting in ESX, where guests wait in low",
    },
    Spec {
        key: Key::ScanAtRest,
        name: "Memvisor.ScanAtRest",
        group: "sharing",
        kind: Kind::whole(PERCENT, 1, 100),
        lab: whole(100),
        esx: whole(100),
        throughput: Some(whole(5)),
        effect: "the part of their rate at which VMs are scanned while the host is high or clear and has all free \
                 memory that it wants",
        deviation: "no setting in ESX, which scans at the same rate in every state",
    },
    Spec {
        key: Key::Victims,
        name: "Memvisor.Victims",
        group: "eviction",
        kind: Kind::Choice(&victims::NAMES),
        lab: Value::Choice(victims::RANDOM),
        esx: Value::Choice(victims::RANDOM),
        throughput: Some(Value::Choice(victims::SECOND_CHANCE)),
        effect: "which pages are evicted: any, or those that nobody wanted back while they were frozen",
        deviation: "no setting in ESX, which takes random ones",
    },
];

impl Key {
    /// What is known about this setting.
    #[must_use]
    pub const fn spec(self) -> &'static Spec {
        &TABLE[self as usize]
    }

    /// The setting called `name`, in upper or lower case.
    ///
    /// # Errors
    /// [`SettingError::Unknown`] with names that are like it.
    pub fn find(name: &str) -> Result<Self, SettingError> {
        let found = TABLE.iter().find(|s| s.name.eq_ignore_ascii_case(name));
        found
            .map(|spec| spec.key)
            .ok_or_else(|| SettingError::Unknown {
                name: shown(name),
                nearest: nearest(name, TABLE.iter().map(|spec| spec.name)),
            })
    }

    /// Reads a value of this setting.
    ///
    /// # Errors
    /// [`SettingError::Value`].
    pub fn read(self, text: &str) -> Result<Value, SettingError> {
        let spec = self.spec();
        spec.kind.read(text).map_err(|wrong| SettingError::Value {
            name: spec.name,
            value: shown(text),
            wrong,
            allowed: spec.kind.allowed(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_the_order_of_their_keys_and_named_after_them() {
        for (row, spec) in TABLE.iter().enumerate() {
            assert_eq!(spec.key as usize, row, "{}", spec.name);
            let (room, name) = spec.name.split_once('.').expect("a prefix");
            assert!(["Mem", "Memvisor"].contains(&room), "{}", spec.name);
            assert_eq!(name, format!("{:?}", spec.key));
            assert!(!spec.effect.is_empty(), "{}", spec.name);
        }
    }

    #[test]
    fn defaults_are_in_range_and_deviations_are_explained() {
        for spec in &TABLE {
            for default in [spec.lab, spec.esx] {
                let text = spec.kind.scalar(default).to_string();
                assert_eq!(spec.key.read(&text), Ok(default), "{} {text}", spec.name);
            }
            let deviates = spec.lab != spec.esx || spec.name.starts_with("Memvisor.");
            assert!(!deviates || !spec.deviation.is_empty(), "{}", spec.name);
        }
    }

    #[test]
    fn unknown_names_get_the_nearest_ones() {
        assert_eq!(Key::find("mem.idletax"), Ok(Key::IdleTax));
        for (name, near) in [
            ("Mem.IdelTax", "Mem.IdleTax"),
            ("IdleTax", "Mem.IdleTax"),
            ("Mem.ShareScanGhzz", "Mem.ShareScanGHz"),
            ("FreeStates", "Memvisor.FreeStates"),
        ] {
            let error = Key::find(name).expect_err(name).to_string();
            assert!(error.contains(&format!("near: {near}")), "{error}");
            assert!(error.contains("`memvisor get --all` lists them"), "{error}");
        }
        let error = Key::find("Mem.X").expect_err("none").to_string();
        assert!(!error.contains("near"), "{error}");
        let error = Key::find("bananas\n").expect_err("none").to_string();
        assert!(error.contains("`bananas\\n`; `memvisor get"), "{error}");
    }

    #[test]
    fn wrong_values_name_setting_value_and_what_is_allowed() {
        let error = |key: Key, text: &str| key.read(text).expect_err(text).to_string();
        assert_eq!(
            error(Key::IdleTax, "50s"),
            "Mem.IdleTax cannot be `50s`: that is not its unit; allowed: a whole number, 0 to 99 %"
        );
        assert_eq!(
            error(Key::SamplePeriod, "10%"),
            "Mem.SamplePeriod cannot be `10%`: that is not its unit; \
             allowed: 0 to 180 s, or a time with ms, s, m or h"
        );
        assert!(error(Key::IdleTax, "100").contains("out of range"));
        assert!(error(Key::FreeStates, "7.0").contains("one of 2002, 4.1, 5.0, 6.0"));
    }
}
