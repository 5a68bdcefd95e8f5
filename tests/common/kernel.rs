//! What `/proc` says about a process and its memory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use memvisor::units::{PAGE_SIZE, Pages};

/// How the kernel shows a file of memory that memvisor made: a memfd, or a file of its own tmpfs.
const FILES: [&str; 2] = ["/memfd:memvisor-", "/memvisor-"];
/// What follows in the names of files that a host counts as metadata, however much of them is filled.
const METADATA: &str = "claims:";

/// The rest of the name if `path` is such a file.
fn memory_file(path: &str) -> Option<&str> {
    FILES.iter().find_map(|start| path.strip_prefix(start))
}

/// Pages of the memory files that a host holds, as the kernel counts them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Blocks {
    /// Name and pages of each file, by inode because a file can be open more than once.
    files: BTreeMap<u64, (String, Pages)>,
}

impl Blocks {
    /// Counts the files that process `pid` has open.
    ///
    /// # Errors
    /// When there is no such process, or it belongs to another user.
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            // A descriptor may be closed while we look.
            let (Ok(target), Ok(found)) = (fs::read_link(&path), fs::metadata(&path)) else {
                continue;
            };
            if let Some(name) = memory_file(&target.to_string_lossy())
                && !name.starts_with(METADATA)
            {
                let name = name.trim_end_matches(" (deleted)").to_owned();
                // st_blocks counts units of 512 bytes (stat(2)).
                let pages = Pages(found.blocks() * 512 / PAGE_SIZE as u64);
                files.insert(found.ino(), (name, pages));
            }
        }
        Ok(Self { files })
    }

    /// All of them.
    pub fn total(&self) -> Pages {
        Pages(self.files.values().map(|(_, pages)| pages.0).sum())
    }

    /// How many files there are.
    pub fn count(&self) -> usize {
        self.files.len()
    }
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapLine {
    /// The inode; 0 for anonymous memory.
    pub inode: u64,
    /// The path, empty for anonymous memory.
    pub path: String,
}

/// The mappings of guest RAM, private or shared, that process `pid` has.
///
/// # Panics
/// When there is no such process.
pub fn mappings(pid: u32) -> Vec<MapLine> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process runs");
    let lines = maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(4);
        let inode = fields.next()?.parse().ok()?;
        let path = fields.next()?.to_owned();
        // The claim table of an inline guest is no RAM.
        let is_ram = memory_file(&path).is_some_and(|_| !path.contains("claims"));
        is_ram.then_some(MapLine { inode, path })
    });
    lines.collect()
}

/// Memory that only process `pid` uses and would give back by ending, without the files that hold the
/// memory of guests.
///
/// # Panics
/// When there is no such process.
pub fn private_bytes(pid: u32) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("the process runs");
    let (mut of_guests, mut kib) = (false, 0);
    for line in smaps.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "Private_Clean:" | "Private_Dirty:" | "Swap:" if !of_guests => {
                let number = value.trim().trim_end_matches(" kB");
                kib += number.parse::<u64>().expect("kB");
            }
            // The heading of a mapping: its address range.
            _ if !key.ends_with(':') => {
                let path = line.split_ascii_whitespace().nth(5);
                of_guests = path.and_then(memory_file).is_some();
            }
            _ => {}
        }
    }
    kib * 1024
}

/// The time that process `pid` has spent on processors, in user mode and in the kernel.
///
/// # Panics
/// When there is no such process.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // utime and stime are fields 14 and 15 (proc(5)). Split behind the name, which may contain spaces: the state is
    // field 3, so they are at 11 and 12.
    let fields = stat.rsplit(')').next().expect("there is a last part");
    let ticks: u64 = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let per_second = per_second.ok().flatten().expect("every system has it");
    Duration::from_secs(ticks) / u32::try_from(per_second).expect("100 or so")
}
