//! How well a host and its VMs are, in the four words of the field: awesome, good, hmm, oops.
//!
//! Each counter of the memory screen says something about pressure, and none says how bad it is. A swap file with
//! pages in it may be yesterday's; a balloon is what overcommitment is for; a thread that waits is neither. Operators
//! learn rules of thumb for this ("Memory overcommitment", blogbt.net; the thresholds of esxtop, yellow-bricks.com).
//! Here the rules are one pure function of a snapshot, so that every screen reads the same and says why.
//!
//! Each subject is read by itself, and the worst one is the reading. So a number that becomes worse never makes the
//! reading better. A host reads as its free state, or as the worst of its VMs.
//!
//! What the rules do not count: pages that a guest touches first, and shared pages that it writes. Threads wait for
//! these too, but they cost the same with all memory free.

use serde::{Deserialize, Serialize};

use super::host::{FreeState, HostStatus};
use super::model::VmRates;
use super::vm::VmStatus;
use crate::units::Pages;

/// Milliseconds in a second for which a VM waits for its memory: from here on it is noticed. What Android's low memory
/// killer takes for a partial stall (lmkd, `psi_partial_stall_ms`), of the same quantity.
const WAIT_HMM_MS: f64 = 70.0;

/// From here on the VM does little else. What the same takes for a complete stall, there of all tasks at once (lmkd,
/// `psi_complete_stall_ms`).
const WAIT_OOPS_MS: f64 = 700.0;

/// The part of a VM's size, in percent, from which on compression is "a lot": the most that ESX lets a compression
/// cache take (`Mem.MemZipMaxPct`).
const COMPRESSED_HMM_PERCENT: u64 = 10;

/// The part of its maximum, in percent, from which on a balloon is "high". The article gives no number; ours is where
/// less is left to be had from the balloon than it has brought.
const BALLOON_HMM_PERCENT: u64 = 50;

/// How well a VM or a host is.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Reading {
    /// Nothing is ballooned, compressed or swapped, nobody waits, and the state is high.
    #[default]
    Awesome,
    /// Some ballooning, or traces of what was evicted in the past; nobody notices.
    Good,
    /// The balloon is high, much is compressed, the host swaps, or guests page: the state is soft.
    Hmm,
    /// Reclaim does not keep up: the state is hard or low, or guests stand still.
    Oops,
}

impl std::fmt::Display for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Awesome => "awesome",
            Self::Good => "good",
            Self::Hmm => "hmm",
            Self::Oops => "oops",
        })
    }
}

/// A reading and its reason.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Health {
    /// How well it is.
    pub reading: Reading,
    /// Why, as a sentence without its full stop.
    pub why: String,
}

impl Health {
    const fn new(reading: Reading, why: String) -> Self {
        Self { reading, why }
    }

    /// How a VM is, by the other numbers of its status.
    #[must_use]
    pub fn of_vm(vm: &VmStatus) -> Self {
        match worst(
            SUBJECTS
                .iter()
                .map(|subject| ((subject.reading)(vm), subject)),
        ) {
            Some((reading, subject)) => Self::new(reading, (subject.why)(vm)),
            None => Self::new(
                Reading::Awesome,
                "nothing of it is ballooned, compressed or swapped, and it waits for nothing"
                    .to_owned(),
            ),
        }
    }

    /// How a host is, by its free state and by the health of its VMs.
    #[must_use]
    pub fn of_host(host: &HostStatus) -> Self {
        let state = match host.free_state {
            FreeState::High => Reading::Awesome,
            FreeState::Clear => Reading::Good,
            FreeState::Soft => Reading::Hmm,
            FreeState::Hard | FreeState::Low => Reading::Oops,
        };
        let vms = host.vms.iter().map(|vm| (vm.health.reading, Some(vm)));
        match worst(std::iter::once((state, None)).chain(vms)) {
            Some((reading, None)) => {
                let free = host.free_pages.bytes();
                Self::new(
                    reading,
                    format!("the state is {}: {free} is free", host.free_state),
                )
            }
            Some((reading, Some(vm))) => {
                Self::new(reading, format!("VM {}: {}", vm.name, vm.health.why))
            }
            None => Self::new(
                Reading::Awesome,
                "enough memory is free, and all VMs are awesome".to_owned(),
            ),
        }
    }
}

/// The first of the worst; `None` where all are awesome.
fn worst<T>(subjects: impl Iterator<Item = (Reading, T)>) -> Option<(Reading, T)> {
    subjects.fold(None, |worst, next| {
        let least = worst.as_ref().map_or(Reading::Awesome, |(worst, _)| *worst);
        if next.0 > least { Some(next) } else { worst }
    })
}

/// What a VM is read by. The words are apart, because only those of the worst subject are ever read.
struct Subject {
    reading: fn(&VmStatus) -> Reading,
    why: fn(&VmStatus) -> String,
}

/// Those that hurt most come first: of equal readings the first one is told.
const SUBJECTS: [Subject; 6] = [
    // What stops a VM's execution is the article's worst case.
    Subject {
        reading: |vm| {
            if vm.blocked {
                Reading::Oops
            } else {
                Reading::Awesome
            }
        },
        why: |_| "it must wait with its next page of memory until it is at its target".to_owned(),
    },
    Subject {
        reading: |vm| match waited_ms(&vm.rates) {
            ms if ms >= WAIT_OOPS_MS => Reading::Oops,
            ms if ms >= WAIT_HMM_MS => Reading::Hmm,
            ms if ms > 0.0 => Reading::Good,
            _ => Reading::Awesome,
        },
        why: |vm| {
            let waited = waited_ms(&vm.rates);
            format!("it waits {waited:.1} ms/s for memory that was taken or is not free")
        },
    },
    // Pages in a swap file or the host cache may be history; traffic is pressure now.
    Subject {
        reading: |vm| match vm.homes.swapped_pages {
            _ if swapped(&vm.rates).iter().any(|bytes| *bytes > 0.0) => Reading::Hmm,
            Pages(0) => Reading::Awesome,
            _ => Reading::Good,
        },
        why: |vm| {
            let [read, written] = swapped(&vm.rates).map(|bytes| bytes / 1024.0);
            if read > 0.0 || written > 0.0 {
                return format!("the host swaps: {read:.1} KiB/s in, {written:.1} KiB/s out");
            }
            let swapped = vm.homes.swapped_pages.bytes();
            format!("{swapped} of it is swapped since earlier, and nothing moves")
        },
    },
    Subject {
        reading: |vm| {
            let compressed = vm.homes.compressed_pages.0;
            let moved = vm.rates.zip_bytes_per_s > 0.0 || vm.rates.unzip_bytes_per_s > 0.0;
            if is_part(compressed, COMPRESSED_HMM_PERCENT, vm.configured_pages.0) {
                Reading::Hmm
            } else if compressed > 0 || moved {
                Reading::Good
            } else {
                Reading::Awesome
            }
        },
        why: |vm| {
            let compressed = vm.homes.compressed_pages.bytes();
            let size = vm.configured_pages.bytes();
            format!("{compressed} of its {size} is compressed")
        },
    },
    Subject {
        reading: |vm| {
            let held = vm.homes.ballooned_pages.0;
            if is_part(held, BALLOON_HMM_PERCENT, vm.balloon.max_pages.0) {
                Reading::Hmm
            } else if held > 0 {
                Reading::Good
            } else {
                Reading::Awesome
            }
        },
        why: |vm| {
            let held = vm.homes.ballooned_pages.bytes();
            let max = vm.balloon.max_pages.bytes();
            format!("its balloon holds {held} of at most {max}")
        },
    },
    // A guest that pages by itself: the balloon, or its own size, is too much for it.
    Subject {
        reading: |vm| match vm.rates.stalls.guest_swap_ms_per_s {
            ms if ms >= WAIT_HMM_MS => Reading::Hmm,
            ms if ms > 0.0 => Reading::Good,
            _ => Reading::Awesome,
        },
        why: |vm| {
            let waited = vm.rates.stalls.guest_swap_ms_per_s;
            format!("its guest pages, and waits {waited:.1} ms/s for its own swap disk")
        },
    },
];

/// For how long a VM waits in a second, at most, for what was taken from it, or for a free page.
fn waited_ms(rates: &VmRates) -> f64 {
    let stalls = &rates.stalls;
    let threads = stalls.refill_zip_ms_per_s
        + stalls.refill_swap_ms_per_s
        + stalls.blocked_ms_per_s
        + stalls.memory_ms_per_s;
    // Threads are added up. How long at least one of them waited is not known by cause, but it is at most the time
    // in which at least one stood still for any cause.
    threads.min(rates.stalled_percent * 10.0)
}

/// What moves into memory and out of it by the swap file and the host cache, in bytes a second.
fn swapped(rates: &VmRates) -> [f64; 2] {
    [
        rates.swap_in_bytes_per_s + rates.cache_in_bytes_per_s,
        rates.swap_out_bytes_per_s + rates.cache_out_bytes_per_s,
    ]
}

/// Whether `pages` are some, and at least `percent` of `whole`.
fn is_part(pages: u64, percent: u64, whole: u64) -> bool {
    pages > 0 && u128::from(pages) * 100 >= u128::from(whole) * u128::from(percent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixture;
    use super::*;

    /// A VM of 1000 pages, with a balloon of at most 650, of which nothing was taken.
    fn well() -> VmStatus {
        let mut vm = fixture::host().vms.remove(0);
        vm.configured_pages = Pages(1000);
        vm.homes = super::super::Homes {
            resident_pages: Pages(1000),
            ..Default::default()
        };
        vm.balloon.max_pages = Pages(650);
        vm.rates = VmRates::default();
        vm
    }

    fn reads(change: impl FnOnce(&mut VmStatus)) -> Health {
        let mut vm = well();
        change(&mut vm);
        Health::of_vm(&vm)
    }

    #[test]
    fn pages_that_move_to_and_from_the_host_cache_are_swapped_now() {
        let mut vm = well();
        vm.rates.swap_in_bytes_per_s = 1024.0;
        vm.rates.cache_in_bytes_per_s = 2048.0;
        vm.rates.cache_out_bytes_per_s = 4096.0;
        let health = Health::of_vm(&vm);
        assert_eq!(health.reading, Reading::Hmm);
        assert!(
            health.why.contains("3.0 KiB/s in, 4.0 KiB/s out"),
            "{health:?}"
        );
    }

    #[test]
    fn each_subject_is_read_at_its_thresholds() {
        use Reading::{Awesome, Good, Hmm, Oops};
        type Change = fn(&mut VmStatus);
        let cases: [(Change, Reading, &str); 20] = [
            (|_| (), Awesome, "nothing of it is ballooned"),
            (|vm| vm.blocked = true, Oops, "must wait with its next page"),
            (|vm| waits(vm, 0.1), Good, "waits 0.1 ms/s"),
            (|vm| waits(vm, 69.9), Good, "waits 69.9 ms/s"),
            (|vm| waits(vm, 70.0), Hmm, "waits 70.0 ms/s"),
            (|vm| waits(vm, 699.0), Hmm, "waits 699.0 ms/s"),
            (|vm| waits(vm, 700.0), Oops, "waits 700.0 ms/s"),
            (
                |vm| vm.homes.swapped_pages = Pages(1),
                Good,
                "nothing moves",
            ),
            (|vm| vm.rates.swap_in_bytes_per_s = 1.0, Hmm, "0.0 KiB/s in"),
            (
                |vm| vm.rates.swap_out_bytes_per_s = 1e7,
                Hmm,
                "9765.6 KiB/s out",
            ),
            (|vm| vm.rates.zip_bytes_per_s = 1.0, Good, "is compressed"),
            (|vm| vm.rates.unzip_bytes_per_s = 1.0, Good, "is compressed"),
            (
                |vm| vm.homes.compressed_pages = Pages(1),
                Good,
                "is compressed",
            ),
            (
                |vm| vm.homes.compressed_pages = Pages(99),
                Good,
                "is compressed",
            ),
            (
                |vm| vm.homes.compressed_pages = Pages(100),
                Hmm,
                "is compressed",
            ),
            (
                |vm| vm.homes.ballooned_pages = Pages(1),
                Good,
                "its balloon",
            ),
            (
                |vm| vm.homes.ballooned_pages = Pages(324),
                Good,
                "its balloon",
            ),
            (
                |vm| vm.homes.ballooned_pages = Pages(325),
                Hmm,
                "its balloon",
            ),
            (
                |vm| vm.rates.stalls.guest_swap_ms_per_s = 1.0,
                Good,
                "guest pages",
            ),
            (
                |vm| vm.rates.stalls.guest_swap_ms_per_s = 70.0,
                Hmm,
                "guest pages",
            ),
        ];
        for (at, (change, reading, part)) in cases.into_iter().enumerate() {
            let health = reads(change);
            assert_eq!(health.reading, reading, "case {at}: {health:?}");
            assert!(health.why.contains(part), "case {at}: {health:?}");
        }
    }

    /// One thread waits for pages from the swap file for `ms` of each second.
    fn waits(vm: &mut VmStatus, ms: f64) {
        vm.rates.stalls.refill_swap_ms_per_s = ms;
        vm.rates.stalled_percent = ms / 10.0;
    }

    #[test]
    fn threads_that_wait_together_count_as_one() {
        let health = reads(|vm| {
            waits(vm, 60.0);
            vm.rates.stalls.refill_swap_ms_per_s *= 20.0;
        });
        assert_eq!(health.reading, Reading::Good, "{health:?}");
    }

    #[test]
    fn stalls_that_are_no_pressure_are_not_counted() {
        let health = reads(|vm| {
            vm.rates.stalls.first_touch_ms_per_s = 900.0;
            vm.rates.stalls.cow_break_ms_per_s = 900.0;
            vm.rates.stalled_percent = 100.0;
        });
        assert_eq!(health.reading, Reading::Awesome, "{health:?}");
    }

    #[test]
    fn host_reads_as_its_state_or_as_its_worst_vm() {
        let mut host = fixture::host();
        for vm in &mut host.vms {
            vm.health = Health::default();
        }
        for (state, reading) in [
            (FreeState::High, Reading::Awesome),
            (FreeState::Clear, Reading::Good),
            (FreeState::Soft, Reading::Hmm),
            (FreeState::Hard, Reading::Oops),
            (FreeState::Low, Reading::Oops),
        ] {
            host.free_state = state;
            let health = Health::of_host(&host);
            assert_eq!(health.reading, reading, "{health:?}");
            let says = health.why.contains(&format!("the state is {state}"));
            assert_eq!(says, state != FreeState::High, "{health:?}");
        }
        host.free_state = FreeState::Soft;
        host.vms[1].health = Health::new(Reading::Oops, "x".to_owned());
        let health = Health::of_host(&host);
        assert_eq!(health.why, "VM database-primary-01: x");
        host.vms.clear();
        host.free_state = FreeState::High;
        assert_eq!(Health::of_host(&host).reading, Reading::Awesome);
    }

    #[test]
    fn fixture_carries_its_own_health() {
        let host = fixture::host();
        assert_eq!(host.health, Health::of_host(&host));
        for vm in &host.vms {
            assert_eq!(vm.health, Health::of_vm(vm));
        }
    }

    /// Everything that the reading of a VM goes by, but whether it is blocked.
    fn numbers(vm: &mut VmStatus) -> ([&mut u64; 3], [&mut f64; 12]) {
        let (homes, rates) = (&mut vm.homes, &mut vm.rates);
        (
            [
                &mut homes.swapped_pages.0,
                &mut homes.compressed_pages.0,
                &mut homes.ballooned_pages.0,
            ],
            [
                &mut rates.swap_in_bytes_per_s,
                &mut rates.swap_out_bytes_per_s,
                &mut rates.cache_in_bytes_per_s,
                &mut rates.cache_out_bytes_per_s,
                &mut rates.zip_bytes_per_s,
                &mut rates.unzip_bytes_per_s,
                &mut rates.stalled_percent,
                &mut rates.stalls.refill_zip_ms_per_s,
                &mut rates.stalls.refill_swap_ms_per_s,
                &mut rates.stalls.blocked_ms_per_s,
                &mut rates.stalls.memory_ms_per_s,
                &mut rates.stalls.guest_swap_ms_per_s,
            ],
        )
    }

    proptest! {
        #[test]
        fn a_number_that_becomes_worse_never_reads_better(
            blocked: bool,
            pages in prop::array::uniform3(prop_oneof![Just(0), 0u64..=1000]),
            rates in prop::array::uniform12(prop_oneof![Just(0.0), 0.0..1000.0f64]),
            more_pages in prop::array::uniform3(prop_oneof![Just(0), 0u64..=1000]),
            more_rates in prop::array::uniform12(prop_oneof![Just(0.0), 0.0..1000.0f64]),
            max in 0u64..1000,
        ) {
            let mut vm = well();
            vm.blocked = blocked;
            vm.balloon.max_pages = Pages(max);
            let (own_pages, own_rates) = numbers(&mut vm);
            own_pages.into_iter().zip(pages).for_each(|(own, pages)| *own = pages);
            own_rates.into_iter().zip(rates).for_each(|(own, rate)| *own = rate);
            let before = Health::of_vm(&vm);
            let mut worse = vm.clone();
            let (own_pages, own_rates) = numbers(&mut worse);
            own_pages.into_iter().zip(more_pages).for_each(|(own, more)| *own += more);
            own_rates.into_iter().zip(more_rates).for_each(|(own, more)| *own += more);
            let after = Health::of_vm(&worse);
            prop_assert!(after.reading >= before.reading, "{before:?} then {after:?}");
            worse.blocked = true;
            prop_assert_eq!(Health::of_vm(&worse).reading, Reading::Oops);
        }
    }
}
