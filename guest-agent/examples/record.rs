//! Records the statistics of the memory of running processes, for content of the class `recorded:NAME`.
//!
//! ```sh
//! cargo run --release -p memvisor-guest-agent --example record -- "what they are" PID...
//! ```
//!
//! prints a profile as JSON. Only numbers leave the processes, and no bytes. A page of a file counts once,
//! however many of the processes map it. Reading the memory of a process takes the right to trace it.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use memvisor_guest_agent::workload::{Profile, SIZES};
use xxhash_rust::xxh3::xxh3_128;

const PAGE: usize = 4096;

/// A mapping, as a line of `/proc/PID/maps` tells it.
struct Mapping {
    pages: std::ops::Range<u64>,
    /// Device, inode and first page in the file, if it maps one or memory that processes share.
    file: Option<(String, u64, u64)>,
    /// Whether that is memory, and no file.
    is_memory: bool,
}

/// What names of mappings begin with that are shared memory, although the kernel has an inode for it.
const MEMORY: [&str; 5] = ["/dev/zero", "/dev/shm/", "/memfd:", "/SYSV", "[anon_shmem"];

fn mappings(pid: u32) -> io::Result<Vec<Mapping>> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(text.lines().filter_map(mapping).collect())
}

/// Reads a line; `None` for a mapping that cannot be read, or that is the kernel's.
fn mapping(line: &str) -> Option<Mapping> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let readable = words.next()?.starts_with('r');
    let offset = number(words.next()?)?;
    let (device, inode) = (words.next()?, words.next()?.parse().ok()?);
    let name = words.next().unwrap_or_default();
    let is_kernels = name.starts_with("[v");
    (readable && !is_kernels).then_some(Mapping {
        pages: number(start)? / PAGE as u64..number(end)? / PAGE as u64,
        file: (inode != 0).then(|| (device.to_owned(), inode, offset / PAGE as u64)),
        is_memory: MEMORY.iter().any(|memory| name.starts_with(memory)),
    })
}

#[derive(Default)]
struct Counts {
    pages: u64,
    zero: u64,
    common: u64,
    sizes: [u64; SIZES],
    /// The pages of files and of shared memory that were counted.
    files: HashSet<(String, u64, u64)>,
    /// How often each other page is there, in each process by itself.
    own: HashMap<(u32, u128), u64>,
}

impl Counts {
    fn process(&mut self, pid: u32) -> io::Result<()> {
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        for mapping in mappings(pid)? {
            for page in mapping.pages.clone() {
                let mut entry = [0; 8];
                if pagemap.read_exact_at(&mut entry, page * 8).is_err() {
                    break;
                }
                let entry = u64::from_le_bytes(entry);
                let (is_present, is_of_file) = (entry >> 63 == 1, entry >> 61 & 1 == 1);
                if !is_present || is_of_file && !self.is_new(&mapping, page) {
                    continue;
                }
                let mut bytes = [0; PAGE];
                match memory.read_exact_at(&mut bytes, page * PAGE as u64) {
                    Ok(()) => self.page(pid, is_of_file && !mapping.is_memory, &bytes),
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(error),
                    // The process goes on meanwhile, and may have unmapped the page.
                    Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Whether this page of a file, or of memory that processes share, was not counted before.
    fn is_new(&mut self, mapping: &Mapping, page: u64) -> bool {
        let Some((device, inode, first)) = &mapping.file else {
            return true;
        };
        let at = first + page - mapping.pages.start;
        self.files.insert((device.clone(), *inode, at))
    }

    fn page(&mut self, pid: u32, is_common: bool, bytes: &[u8; PAGE]) {
        self.pages += 1;
        if bytes.iter().all(|byte| *byte == 0) {
            self.zero += 1;
            return;
        }
        let size = lz4_flex::block::compress(bytes).len();
        self.sizes[(size * SIZES / PAGE).min(SIZES - 1)] += 1;
        if is_common {
            self.common += 1;
        } else {
            *self.own.entry((pid, xxh3_128(bytes))).or_default() += 1;
        }
    }

    fn profile(&self, what: &str) -> Profile {
        let share = |count: u64, of: u64| (count * 10_000).div_ceil(of.max(1)) as u32;
        let equal = || self.own.values().filter(|copies| **copies > 1);
        let (duplicate, distinct) = (equal().sum::<u64>(), equal().count() as u64);
        let others = self.pages - self.zero;
        let round = |count: u64| {
            (count * 10_000 + others / 2)
                .checked_div(others)
                .unwrap_or(0)
        };
        Profile {
            recorded: format!("{what}; {} pages", self.pages),
            zero: share(self.zero, self.pages),
            common: share(self.common, self.pages),
            duplicate: share(duplicate, self.pages),
            copies: (duplicate + distinct / 2)
                .checked_div(distinct)
                .unwrap_or(1) as u32,
            sizes: self.sizes.map(|count| round(count) as u32),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let what = words
        .next()
        .ok_or("say what the processes are, then their PIDs")?;
    let mut counts = Counts::default();
    for word in words {
        let pid = word.parse();
        let pid: u32 = pid.map_err(|_| format!("`{word}` is not a PID: a whole number"))?;
        let read = counts.process(pid);
        read.map_err(|error| format!("cannot read the memory of process {pid}: {error}"))?;
    }
    if counts.pages == 0 {
        return Err("no page to record: give the PIDs of running processes".into());
    }
    println!("{}", serde_json::to_string_pretty(&counts.profile(&what))?);
    Ok(())
}
