//! Fleets: guests that run at the same time, and the memory that they want.

use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

use super::super::{BenchError, Setup, names};
use crate::demo::guests;
use crate::units::{Bytes, PAGE_SIZE};

/// Guests of the demo.
const DEMO_GUESTS: u32 = 6;

/// Guests that run at the same time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fleet {
    /// Its name in reports.
    pub name: String,
    /// Its guests, each with a name of its own.
    pub guests: Vec<FleetGuest>,
}

/// One guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FleetGuest {
    /// Its name.
    pub name: String,
    /// Its configured size.
    pub memory: Bytes,
    /// What it runs.
    pub workloads: Vec<String>,
    /// The seed of its randomness.
    pub seed: u64,
    /// Memory that its workloads work on.
    pub wants: Bytes,
}

impl Fleet {
    /// What all guests want together.
    #[must_use]
    pub fn wants(&self) -> Bytes {
        Bytes(self.guests.iter().map(|guest| guest.wants.0).sum())
    }

    /// Whether all guests are alike, so that none of them has a reason to get more done than another.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        let alike = |pair: &[FleetGuest]| {
            pair[0].memory == pair[1].memory && pair[0].workloads == pair[1].workloads
        };
        self.guests.len() > 1 && self.guests.windows(2).all(alike)
    }
}

/// The fleets that come with memvisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Builtin {
    /// Four equal key-value stores whose content compresses.
    #[value(name = "kv-text")]
    Text,
    /// Four equal key-value stores with mixed content, like that of real guests.
    #[value(name = "kv-mixed")]
    Mixed,
    /// Four equal key-value stores whose content does not compress.
    #[value(name = "kv-random")]
    Random,
    /// Four guests of one image, each with a store of its own.
    Clones,
    /// The guests of the demo without its pacing.
    Demo,
    /// Four guests, of which one after the other is active.
    Phases,
    /// A guest that rewrites all its memory again and again, beside three small stores.
    Bully,
}

impl Builtin {
    /// Writes the files that its guests read, unless they are there already.
    pub(super) fn write_files(self, setup: &Setup<'_>, size: Bytes) -> Result<(), BenchError> {
        if !matches!(self, Self::Clones | Self::Demo) {
            return Ok(());
        }
        let dir = setup.subdirectory(&self.to_string())?;
        let io = BenchError::io("write files for the guests");
        if fs::read_dir(&dir).map_err(&io)?.next().is_some() {
            return Ok(());
        }
        // The demo makes an image of 3/8 of the size of a guest. So for an image of a given size, the guest has 8/3.
        let guest = match self {
            Self::Clones => share(image_of_clone(size), 8, 3),
            _ => demo_guest(size),
        };
        guests::write_files(guest, &dir, || Ok(()))
            .map_err(|error| io(std::io::Error::other(error)))
    }

    /// The fleet, with guests that want about `size` together and run for `time`. Its files are in a directory below
    /// `scratch`.
    #[must_use]
    pub fn fleet(self, size: Bytes, time: Duration, scratch: &Path) -> Fleet {
        let dir = scratch.join(self.to_string());
        let quarter = share(size, 1, 4);
        let kv = |content: &str| {
            let workload = format!("kv,size={},write=10,content={content}", quarter.0);
            four("kv", |_| vec![workload.clone()], quarter)
        };
        let guests = match self {
            Self::Text => kv("text"),
            Self::Mixed => kv("mixed"),
            Self::Random => kv("random"),
            Self::Clones => clones(size, &dir),
            Self::Demo => demo(size, &dir),
            Self::Phases => phases(quarter, time),
            Self::Bully => bully(size),
        };
        let name = self.to_string();
        Fleet { name, guests }
    }
}

impl FromStr for Builtin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, false).map_err(|_| {
            let names = names::<Self>();
            format!("there is no fleet `{text}`; allowed: {names}, all, or a file")
        })
    }
}

/// The fraction `part` / `of` of `size`, in whole pages.
fn share(size: Bytes, part: u64, of: u64) -> Bytes {
    (size.pages().0 * part / of).max(1).pages()
}

/// A number of pages in bytes.
trait AsPages {
    fn pages(self) -> Bytes;
}

impl AsPages for u64 {
    fn pages(self) -> Bytes {
        Bytes(self * PAGE_SIZE as u64)
    }
}

/// RAM for a guest that wants this much: a fifth more, and what its kernel keeps for itself.
fn memory_for(wants: Bytes) -> Bytes {
    Bytes(share(wants, 6, 5).0 + Bytes::from_mib(1).0)
}

fn guest(name: String, workloads: Vec<String>, seed: u64, wants: Bytes) -> FleetGuest {
    FleetGuest {
        name,
        memory: memory_for(wants),
        workloads,
        seed,
        wants,
    }
}

/// Key-value stores of `each` bytes with content that compresses, read with Zipf popularity of exponent `zipf`; 0 is
/// uniform.
pub(super) fn stores(name: &str, count: u64, each: Bytes, zipf: &str) -> Fleet {
    let workload = format!("kv,size={},write=10,content=text,zipf={zipf}", each.0);
    let store = |number| guest(format!("kv-{number}"), vec![workload.clone()], number, each);
    Fleet {
        name: name.to_owned(),
        guests: (1..=count).map(store).collect(),
    }
}

/// Four guests that want `wants` each.
fn four(name: &str, workloads: impl Fn(u64) -> Vec<String>, wants: Bytes) -> Vec<FleetGuest> {
    (1..=4)
        .map(|number| guest(format!("{name}-{number}"), workloads(number), number, wants))
        .collect()
}

/// The image is three quarters of what a clone wants.
fn image_of_clone(size: Bytes) -> Bytes {
    share(size, 3, 16)
}

fn clones(size: Bytes, dir: &Path) -> Vec<FleetGuest> {
    let image = image_of_clone(size);
    let own = share(size, 1, 16);
    let workloads = vec![
        format!("image:{},rate=100G", dir.join("boot.img").display()),
        format!("kv,size={},write=10,content=text", own.0),
    ];
    let wants = Bytes(image.0 + own.0);
    four("clone", |_| workloads.clone(), wants)
}

/// The memory of a guest of the demo. Its six guests want 3/8, 3/8, 1/4, 5/8, 3/4 and 1/4 of that, 21/8 together.
fn demo_guest(size: Bytes) -> Bytes {
    share(size, 8, 21)
}

fn demo(size: Bytes, dir: &Path) -> Vec<FleetGuest> {
    let memory = demo_guest(size);
    let roles = guests::roles(DEMO_GUESTS, memory, dir);
    (1..)
        .zip(roles.into_iter().zip([6, 6, 4, 10, 12, 4]))
        .map(|(seed, (role, sixteenths))| {
            let parts = role.workload.split(',');
            let unpaced: Vec<&str> = parts.filter(|part| !part.starts_with("rate=")).collect();
            FleetGuest {
                name: role.name,
                memory,
                workloads: vec![unpaced.join(",")],
                seed,
                wants: share(memory, sixteenths, 16),
            }
        })
        .collect()
}

fn phases(quarter: Bytes, time: Duration) -> Vec<FleetGuest> {
    let phase = time.as_millis() / 4;
    let workload = |number: u64| {
        let start = phase * u128::from(number - 1);
        let end = start + phase;
        let begins = match number {
            1 => format!("active={}", quarter.0),
            _ => format!("active=0,then={}@{start}ms", quarter.0),
        };
        vec![format!(
            "toucher,size={},{begins},then=0@{end}ms,content=text",
            quarter.0
        )]
    };
    four("phase", workload, quarter)
}

fn bully(size: Bytes) -> Vec<FleetGuest> {
    let half = share(size, 1, 2);
    let small = share(size, 1, 6);
    let stream = format!("stream,size={}", half.0);
    let mut guests = vec![guest("bully".to_owned(), vec![stream], 1, half)];
    guests.extend((1..=3).map(|number| {
        let kv = format!("kv,size={},write=10", small.0);
        guest(format!("kv-{number}"), vec![kv], number + 1, small)
    }));
    guests
}

#[cfg(test)]
mod tests {
    use memvisor_guest_agent::workload::WorkloadSpec;

    use super::*;

    const TIME: Duration = Duration::from_secs(20);

    #[test]
    fn builtin_fleets_want_what_was_asked_for_and_fit_their_guests() {
        let place = tempfile::tempdir().expect("tempdir");
        for &builtin in Builtin::value_variants() {
            assert_eq!(builtin.to_string().parse(), Ok(builtin));
            let size = Bytes::from_mib(42);
            let fleet = builtin.fleet(size, TIME, place.path());
            let (found, asked) = (fleet.wants().0 as f64, size.0 as f64);
            assert!((found / asked - 1.0).abs() < 0.01, "{fleet:?}");
            let mut names: Vec<&String> = fleet.guests.iter().map(|guest| &guest.name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), fleet.guests.len(), "{fleet:?}");
            for guest in &fleet.guests {
                assert!(guest.wants < guest.memory, "{guest:?}");
                assert!(guest.memory.0.is_multiple_of(4096), "{guest:?}");
                for workload in &guest.workloads {
                    let parsed: Result<WorkloadSpec, _> = workload.parse();
                    assert!(parsed.is_ok(), "{workload}: {parsed:?}");
                }
            }
            let equal = matches!(
                builtin,
                Builtin::Text | Builtin::Mixed | Builtin::Random | Builtin::Clones
            );
            assert_eq!(fleet.is_equal(), equal, "{fleet:?}");
        }
        let error = "kv".parse::<Builtin>().expect_err("no fleet");
        assert!(error.contains("`kv`") && error.contains("kv-text, kv-mixed"));
    }

    #[test]
    fn active_set_is_in_one_guest_at_a_time() {
        let fleet = Builtin::Phases.fleet(Bytes::from_mib(4), TIME, Path::new("/x"));
        let texts: Vec<&str> = fleet
            .guests
            .iter()
            .map(|guest| guest.workloads[0].as_str())
            .collect();
        let size = "toucher,size=1048576";
        let expected = [
            format!("{size},active=1048576,then=0@5000ms,content=text"),
            format!("{size},active=0,then=1048576@5000ms,then=0@10000ms,content=text"),
            format!("{size},active=0,then=1048576@10000ms,then=0@15000ms,content=text"),
            format!("{size},active=0,then=1048576@15000ms,then=0@20000ms,content=text"),
        ];
        assert_eq!(texts, expected);
    }
}
