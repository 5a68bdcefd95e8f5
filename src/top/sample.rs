//! What one screen shows: the numbers of the host and of its VMs at one moment, in the order of the tables of fields.
//!
//! A screen is drawn from a sample, and from nothing else. So what a recording has kept of a host is drawn as the host
//! itself was, and both show the numbers of the status.

use jiff::Timestamp;

use super::fields::{Numbers, VM, of_host, of_vm, place};
use super::pools::{self, PoolSample};
use crate::settings::ROOT_POOL;
use crate::telemetry::{HostStatus, Rates};

/// The host and its VMs at one moment.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Sample {
    /// When it was taken.
    pub(super) at: Timestamp,
    /// Whose numbers these are: the beginning of the title.
    pub(super) source: String,
    /// Why the host is as it is; empty if that is not known.
    pub(super) why: String,
    /// A number for each of [`HOST`].
    pub(super) host: Numbers,
    /// The VMs that ran.
    pub(super) vms: Vec<VmSample>,
    /// Their resource pools, the root first and each after its parent; none if they are not known.
    pub(super) pools: Vec<PoolSample>,
}

/// A VM at one moment.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct VmSample {
    /// The number of the VM.
    pub(super) id: u32,
    /// Its name.
    pub(super) name: String,
    /// The resource pool that it is in; empty if that is the root, or not known.
    pub(super) pool: String,
    /// A number for each of [`VM`].
    pub(super) numbers: Numbers,
}

impl Sample {
    /// What `status` says. Without `rates`, those that the daemon measured over its latest five seconds are shown.
    pub(super) fn of(status: &HostStatus, rates: Option<&Rates>, at: Timestamp) -> Self {
        let told = Rates::told(status);
        let rates = rates.filter(|rates| rates.interval_ms > 0).unwrap_or(&told);
        let vms: Vec<_> = status
            .vms
            .iter()
            .map(|vm| VmSample {
                id: vm.id.0,
                name: plain(&vm.name),
                pool: Some(plain(&vm.pool))
                    .filter(|pool| pool != ROOT_POOL)
                    .unwrap_or_default(),
                // A VM that is new since the rates were taken has none but its own.
                numbers: of_vm(vm, rates.vms.get(&vm.id).unwrap_or(&vm.rates)),
            })
            .collect();
        Self {
            at,
            source: plain(&format!("memvisor {} ({})", status.version, status.engine)),
            why: plain(&status.health.why),
            host: of_host(status, &rates.total),
            pools: pools::pools(&status.pools, &vms, plain),
            vms,
        }
    }

    /// A number of the host.
    pub(super) fn host(&self, place: usize) -> Option<f64> {
        self.host.get(place).copied().flatten()
    }

    /// The VM of this number.
    pub(super) fn vm(&self, id: u32) -> Option<&VmSample> {
        self.vms.iter().find(|vm| vm.id == id)
    }
}

impl VmSample {
    /// A number of the VM.
    pub(super) fn number(&self, place: usize) -> Option<f64> {
        self.numbers.get(place).copied().flatten()
    }

    /// How much of it has each home, in MiB, in the order of [`Homes::each`](crate::telemetry::Homes::each).
    pub(super) fn homes(&self) -> [f64; 7] {
        homes(&self.numbers)
    }
}

/// How much has each home, of these numbers of a VM or of several together.
pub(super) fn homes(numbers: &Numbers) -> [f64; 7] {
    const PLACES: [usize; 7] = [
        place(VM, "RSDNT"),
        place(VM, "SHRD"),
        place(VM, "ZIP"),
        place(VM, "ZERO"),
        place(VM, "SWCUR"),
        place(VM, "MCTLSZ"),
        place(VM, "UNTCH"),
    ];
    PLACES.map(|place| numbers.get(place).copied().flatten().unwrap_or(0.0))
}

/// Text from elsewhere without the characters that would command a terminal.
fn plain(text: &str) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::super::fields::HOST;
    use super::*;
    use crate::telemetry::{Homes, fixture, metrics};

    /// The fixture two seconds later.
    pub(in crate::top) fn snapshots() -> (HostStatus, Rates) {
        let old = fixture::host();
        let mut new = old.clone();
        new.uptime_ms += 2000;
        new.vms[0].faults.first_touch += 4321;
        new.vms[0].faults.cow_break += 10;
        new.vms[0].scan.pages_scanned += 2048;
        new.vms[1].swap.out_bytes.0 += 3 << 20;
        new.vms[0].stalls.first_touch_us += 246_000;
        new.vms[1].stalls.blocked_us += 1_800_000;
        new.vms[1].stalls.stalled_us += 1_500_000;
        let rates = Rates::between(&old, &new);
        (new, rates)
    }

    /// That as a sample, `seconds` after the begin of 2026.
    pub(in crate::top) fn sample(seconds: i64) -> Sample {
        let (status, rates) = snapshots();
        let at = Timestamp::from_second(1_767_225_600 + seconds).expect("a time");
        Sample::of(&status, Some(&rates), at)
    }

    #[test]
    fn every_field_has_a_number_or_is_null_in_the_status() {
        let (mut status, _) = snapshots();
        for vm in &mut status.vms {
            vm.allocation.limit_pages = Some(vm.configured_pages);
        }
        let sample = Sample::of(&status, None, Timestamp::UNIX_EPOCH);
        for (field, number) in HOST.iter().zip(&sample.host) {
            assert!(number.is_some(), "{field:?}");
        }
        for (field, number) in VM.iter().zip(&sample.vms[0].numbers) {
            assert!(number.is_some(), "{field:?}");
        }
        status.vms[0].allocation.limit_pages = None;
        let sample = Sample::of(&status, None, Timestamp::UNIX_EPOCH);
        assert_eq!(sample.vms[0].number(place(VM, "AMAX")), None);
    }

    #[test]
    fn names_and_counters_are_unique_and_fit_their_columns() {
        for table in [VM, HOST] {
            for (at, field) in table.iter().enumerate() {
                let others = &table[..at];
                assert!(
                    others.iter().all(|other| other.counter != field.counter),
                    "{field:?}"
                );
                assert!(
                    others.iter().all(|other| other.name != field.name),
                    "{field:?}"
                );
                assert!(!field.counter.contains(['\\', '"', ',']), "{field:?}");
                assert!(
                    field.width == 0 || field.name.len() < field.width,
                    "{field:?}"
                );
            }
        }
    }

    #[test]
    fn homes_are_those_of_the_status() {
        let (status, _) = snapshots();
        let sample = sample(0);
        for (vm, shown) in status.vms.iter().zip(&sample.vms) {
            let pages = vm.homes.each().map(|(_, pages)| pages.0 as f64 / 256.0);
            assert_eq!(shown.homes(), pages);
        }
        assert_eq!(Homes::default().each().len(), 7);
    }

    /// The values of OpenMetrics by sample.
    fn metrics(status: &HostStatus) -> BTreeMap<String, f64> {
        let text = metrics::openmetrics(status);
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = samples.map(|line| line.rsplit_once(' ').expect("a value"));
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.parse().expect("a number")));
        pairs.collect()
    }

    /// The dashboard shows metrics. `top --json` prints the status, from which the sample is read by name.
    #[test]
    fn top_and_metrics_show_the_same_numbers_at_the_same_moment() {
        let (status, _) = snapshots();
        let (sample, metrics) = (sample(0), metrics(&status));
        let metric = |name: &str| *metrics.get(name).unwrap_or_else(|| panic!("no {name}"));
        for (name, of) in [
            ("total", "memvisor_host_budget_bytes"),
            ("free", "memvisor_host_free_bytes"),
            ("vmk", "memvisor_host_metadata_bytes"),
            ("minfree", "memvisor_host_min_free_bytes"),
            ("rsvd", "memvisor_host_reserved_bytes"),
            ("ursvd", "memvisor_host_unreserved_bytes"),
            ("shared", "memvisor_host_shared_bytes"),
            ("common", "memvisor_host_shared_frames_bytes"),
            ("saving", "memvisor_host_shared_saved_bytes"),
        ] {
            let at = HOST
                .iter()
                .position(|field| field.name == name)
                .expect(name);
            assert_eq!(sample.host(at), Some(metric(of) / 1_048_576.0), "{name}");
        }
        for vm in &sample.vms {
            for (name, of, rest) in [
                ("MEMSZ", "configured_bytes", ""),
                ("GRANT", "granted_bytes", ""),
                ("CNSM", "consumed_bytes", ""),
                ("SHRD", "memory_bytes", ",home=\"shared\""),
                ("ZIP", "memory_bytes", ",home=\"compressed\""),
                ("SWCUR", "memory_bytes", ",home=\"swapped\""),
                ("MCTLSZ", "balloon_bytes", ""),
                ("MCTLTGT", "balloon_target_bytes", ""),
                ("COWH", "hinted_bytes", ""),
                ("SHRDSVD", "shared_saved_bytes", ""),
                ("CACHEUSD", "cache_bytes", ""),
                ("OVHD", "overhead_bytes", ""),
                ("SZTGT", "target_bytes", ""),
                ("TCHD", "active_bytes", ""),
            ] {
                let at = VM.iter().position(|field| field.name == name).expect(name);
                let of = format!("memvisor_vm_{of}{{vm=\"{}\"{rest}}}", vm.name);
                assert_eq!(vm.number(at), Some(metric(&of) / 1_048_576.0), "{name}");
            }
        }
    }

    #[test]
    fn rates_are_those_of_the_interval_or_else_those_of_the_daemon() {
        let (status, rates) = snapshots();
        let of = |rates, name| {
            let at = VM
                .iter()
                .position(|field| field.name == name)
                .expect("there");
            Sample::of(&status, rates, Timestamp::UNIX_EPOCH).vms[1].number(at)
        };
        assert_eq!(of(Some(&rates), "SWW/s"), Some(1.5));
        assert_eq!(of(None, "SWW/s"), Some(0.5));
        assert_eq!(of(Some(&rates), "%LAT"), Some(75.0));
    }
}
