//! The host settings as the daemon uses them.

use super::choice::{BalloonTakes, FaultsWait, Profile};
use super::spec::Spec;
use super::table::HostSettings;
use super::value::Value;
use crate::policy::{Config, Esx, Policy, Stall};
use crate::reclaim::Cold;
use crate::units::{Bytes, Pages};

impl Profile {
    /// The default of a setting in this profile.
    #[must_use]
    pub fn default_of(self, spec: &Spec) -> Value {
        let lab = spec.lab.map_or(spec.esx, |lab| lab.value);
        match self {
            Self::Esx => spec.esx,
            Self::Lab => lab,
            Self::Throughput => spec.throughput.map_or(lab, |other| other.value),
        }
    }

    /// The policy of a host of this profile that was told none.
    #[must_use]
    pub fn policy(self) -> &'static dyn Policy {
        match self {
            Self::Esx | Self::Lab => &Esx,
            Self::Throughput => &Stall,
        }
    }
}

impl HostSettings {
    /// The settings that the policy needs.
    #[must_use]
    pub const fn policy(&self) -> Config {
        Config {
            generation: self.free_states,
            min_free_percent: self.mem_min_free_pct,
            share_reserve_percent: self.share_reserve,
            margin_percent: self.state_margin,
            balloon_max_percent: self.ctl_max_percent,
            headroom_percent: self.headroom,
            idle_tax_percent: self.idle_tax,
            idle_tax_type: self.idle_tax_type,
            zip_enabled: self.mem_zip_enable,
            evict_round: self.evict_round,
            balloon_takes_free_only: matches!(self.balloon_takes, BalloonTakes::Free),
            faults_wait_early: matches!(self.faults_wait, FaultsWait::Hard),
            law: self.balloon_law,
            pid_proportional_percent: self.pid_proportional,
            pid_integral_percent: self.pid_integral,
            pid_derivative_percent: self.pid_derivative,
            senpai_stall_us: self.senpai_stall,
            senpai_interval: self.senpai_interval,
            senpai_probe_percent: self.senpai_probe,
        }
    }

    /// Swapped pages of each VM that come back by themselves in a second.
    #[must_use]
    pub fn unswap_pages(&self) -> u32 {
        let bytes = Bytes::from_mib(self.unswap_rate.into());
        u32::try_from(bytes.pages().0).unwrap_or(u32::MAX)
    }

    /// How much swapped pages may take of the host cache.
    #[must_use]
    pub fn swap_cache_pages(&self) -> Pages {
        Bytes::from_mib(self.swap_cache_size.into()).pages()
    }

    /// What is cold, and how much of it may come back.
    #[must_use]
    pub const fn cold(&self) -> Cold {
        Cold {
            age: self.cold_age,
            refaults: self.cold_refaults,
            compress: self.mem_zip_enable,
        }
    }

    /// The defaults of a profile.
    #[must_use]
    pub fn profile(profile: Profile) -> Self {
        Self::of(|key| profile.default_of(key.spec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Generation;
    use crate::settings::{Key, Kind, TABLE};

    /// From the advanced options of an ESXi host, so that this is no copy of the table.
    #[test]
    fn profile_esx_is_what_esx_ships() {
        let shipped = [
            ("Mem.ShareScanTime", "60"),
            ("Mem.ShareScanGHz", "4"),
            ("Mem.ShareRateMax", "1024"),
            ("Mem.ShareForceSalting", "2"),
            ("Mem.AllocGuestLargePage", "1"),
            ("Mem.IdleTax", "75"),
            ("Mem.IdleTaxType", "1"),
            ("Mem.SamplePeriod", "60"),
            ("Mem.SampleActivePctMin", "1"),
            ("Mem.BalancePeriod", "15"),
            ("Mem.CtlMaxPercent", "65"),
            ("Mem.MemMinFreePct", "0"),
            ("Mem.MemZipEnable", "1"),
            ("Mem.MemZipMaxPct", "10"),
            ("Mem.MemZipMaxAllocPct", "50"),
        ];
        let of_esx = TABLE.iter().filter(|spec| spec.name.starts_with("Mem."));
        let ours: Vec<(&str, String)> = of_esx
            .map(|spec| (spec.name, spec.kind.scalar(spec.esx).to_string()))
            .collect();
        let shipped = shipped.map(|(name, value)| (name, value.to_owned()));
        assert_eq!(ours, shipped);
        let states = HostSettings::profile(Profile::Esx).free_states;
        assert_eq!(states, Generation::G60);
    }

    #[test]
    fn only_throughput_divides_by_another_policy_than_esx() {
        let policies = Profile::ALL.iter().map(|profile| profile.policy().name());
        let expected = Profile::ALL.iter().map(|profile| match profile {
            Profile::Throughput => "stall",
            _ => "esx",
        });
        assert!(policies.eq(expected));
    }

    #[test]
    fn every_value_that_may_be_set_has_a_meaning_that_the_policy_takes() {
        for profile in Profile::ALL {
            let settings = HostSettings::profile(*profile).policy();
            settings.check().expect("defaults are in range");
        }
        for spec in &TABLE {
            let words = match (spec.kind.bounds(), spec.kind) {
                (Some((min, max)), _) => vec![min.to_string(), max.to_string()],
                (_, Kind::Choice(words)) => words.iter().map(|word| (*word).to_owned()).collect(),
                (None, kind) => panic!("{kind:?} has no bounds"),
            };
            let mut seen = Vec::new();
            for word in words {
                let chosen = spec.key.read(&word).expect("allowed");
                let value = |key: Key| Some(chosen).filter(|_| key == spec.key);
                let default = |key: Key| Profile::Lab.default_of(key.spec());
                let settings = HostSettings::of(|key| value(key).unwrap_or_else(|| default(key)));
                settings.policy().check().expect(spec.name);
                assert!(!seen.contains(&settings), "{}: {word}", spec.name);
                seen.push(settings);
            }
        }
    }
}
