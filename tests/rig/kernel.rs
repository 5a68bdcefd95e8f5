//! What `/proc` says about a process and its memory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
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

/// The descriptors of process `pid`, as paths in `/proc`, and what each leads to.
pub(crate) fn open_files(pid: u32) -> io::Result<Vec<(PathBuf, String)>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?;
    let paths: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    // A descriptor may be closed while we look.
    let target = |path: PathBuf| {
        let target = fs::read_link(&path).ok()?;
        Some((path, target.to_string_lossy().into_owned()))
    };
    Ok(paths.into_iter().filter_map(target).collect())
}

/// Pages of the memory files that a host holds, as the kernel counts them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Blocks {
    /// Name and pages of each file, by inode because a file can be open more than once.
    files: BTreeMap<u64, (String, Pages)>,
}

impl Blocks {
    /// Counts the files that process `pid` has open.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for (path, target) in open_files(pid)? {
            if let Some(name) = memory_file(&target)
                && !name.starts_with(METADATA)
                && let Ok(found) = fs::metadata(&path)
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
    pub(crate) fn total(&self) -> Pages {
        Pages(self.files.values().map(|(_, pages)| pages.0).sum())
    }

    /// How many files there are.
    pub(crate) fn count(&self) -> usize {
        self.files.len()
    }
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MapLine {
    /// The inode; 0 for anonymous memory.
    pub(crate) inode: u64,
    /// The path, empty for anonymous memory.
    pub(crate) path: String,
}

/// The mappings of guest RAM, private or shared, that process `pid` has.
pub(crate) fn mappings(pid: u32) -> Vec<MapLine> {
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
pub(crate) fn private_bytes(pid: u32) -> u64 {
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
pub(crate) fn cpu_time(pid: u32) -> Duration {
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
