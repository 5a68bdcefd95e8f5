//! What this machine allows, found out by trying, and the engine that follows from it.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

use memvisor_wire::privacy;
use memvisor_wire::sys::uffd;
use nix::unistd::geteuid;

use super::error::{EngineUnavailable, HostError};
use super::options::{EngineChoice, HostOptions};
use crate::engine::EngineKind;
use crate::machine::{BudgetChoice, Machine};
use crate::swap::{self, SwapDirReport};
use crate::sys::{large_pages, readers_cannot_write};

/// The mappings that Linux allows a process by default.
const DEFAULT_MAX_MAP_COUNT: u32 = 65_530;
/// VMAs of a guest that are not RAM: its executable, heap, stacks of a few dozen threads.
const OTHER_VMAS: u32 = 512;

/// What was found out at start.
#[derive(Debug)]
pub(super) struct Capabilities {
    pub(super) engine: EngineKind,
    why: String,
    /// Whether userfaultfd works, and then whether it tells which pages were written.
    uffd: Result<bool, String>,
    max_map_count: Result<u32, String>,
    pub(super) vma_budget: u32,
    pub(super) machine: Machine,
    disks: Disks,
}

/// What was found out about the directories of swapped pages.
#[derive(Debug)]
struct Disks {
    swap: SwapDirReport,
    cache: Option<SwapDirReport>,
}

impl Capabilities {
    pub(super) fn probe(options: &HostOptions) -> Result<Self, HostError> {
        let dir = &options.swap_dir;
        let swap = swap::probe(dir).map_err(|source| HostError::SwapDir {
            dir: dir.clone(),
            source,
        })?;
        let cache = options.swap_cache.as_deref().map(|dir| {
            swap::probe(dir).map_err(|source| HostError::SwapCache {
                dir: dir.to_owned(),
                source,
            })
        });
        let disks = Disks {
            swap,
            cache: cache.transpose()?,
        };
        let uffd = uffd::open().map(|uffd| uffd.tracks_writes());
        let why = match (&uffd, options.engine) {
            (_, EngineChoice::Mprotect) => "asked for".to_owned(),
            (Err(_), EngineChoice::Uffd) => String::new(),
            (Ok(_), EngineChoice::Uffd) => "asked for".to_owned(),
            (Ok(_), EngineChoice::Auto) => "userfaultfd works here".to_owned(),
            (Err(error), EngineChoice::Auto) => format!("userfaultfd does not work here: {error}"),
        };
        let engine = match (uffd, options.engine) {
            (Err(error), EngineChoice::Uffd) => return Err(EngineUnavailable(error).into()),
            (Ok(tracks), EngineChoice::Uffd | EngineChoice::Auto) => Ok(tracks),
            (Err(error), EngineChoice::Auto) => Err(error),
            (uffd, EngineChoice::Mprotect) => {
                return Ok(Self::with(options, EngineKind::Mprotect, why, uffd, disks));
            }
        };
        let kind = if engine.is_ok() {
            EngineKind::Uffd
        } else {
            EngineKind::Mprotect
        };
        Ok(Self::with(options, kind, why, engine, disks))
    }

    fn with(
        options: &HostOptions,
        engine: EngineKind,
        why: String,
        uffd: io::Result<bool>,
        disks: Disks,
    ) -> Self {
        let max_map_count = max_map_count();
        let limit = max_map_count
            .as_ref()
            .copied()
            .unwrap_or(DEFAULT_MAX_MAP_COUNT);
        // A quarter is left for mappings that guests cause themselves, by breaks inside long runs.
        let chosen = limit.saturating_sub(OTHER_VMAS) / 4 * 3;
        let vma_budget = options.vma_budget.unwrap_or(chosen);
        let uffd = uffd.map_err(|error| error.to_string());
        Self {
            engine,
            why,
            uffd,
            max_map_count,
            vma_budget,
            machine: Machine::at(Path::new("/")),
            disks,
        }
    }

    /// The budget, and why it is so large if that was left to the machine.
    fn budget(&self, options: &HostOptions) -> String {
        match options.budget {
            BudgetChoice::Size(_) => options.memory.to_string(),
            given => {
                let bound = self.machine.bound();
                let memory = self.machine.memory().unwrap_or_default();
                format!("{}, {given}: {bound} {memory}", options.memory)
            }
        }
    }

    /// What was found out, as a table for people.
    pub(super) fn table(&self, options: &HostOptions) -> String {
        let vmas = match &self.max_map_count {
            Ok(limit) => format!("{limit}; {} for guest RAM", self.vma_budget),
            Err(error) => format!("unknown ({error}); {} for guest RAM", self.vma_budget),
        };
        let uffd = match &self.uffd {
            Ok(_) => "yes, for faults of user code".to_owned(),
            Err(error) => format!("no: {error}"),
        };
        let tracks = self.engine == EngineKind::Uffd && self.uffd == Ok(true);
        let objection = self.machine.objection(options.memory);
        let fits = objection.map_or("yes".to_owned(), |why| {
            format!("no: {why}; the kernel may end guests or the host")
        });
        let head = [
            ("budget", self.budget(options)),
            ("  fits into memory", fits),
            ("engine", format!("{}: {}", self.engine.name(), self.why)),
            ("userfaultfd", uffd),
            (
                "written pages are known",
                yes(tracks, "unchanged pages are hashed again"),
            ),
            ("large pages", large()),
            ("guests are isolated", isolation()),
            ("mappings a guest may have", vmas),
        ];
        let swap = rows_of("swap directory", &options.swap_dir, &self.disks.swap);
        let cache = self.disks.cache.iter().zip(&options.swap_cache);
        let cache = cache.flat_map(|(disk, dir)| {
            let size = options.layers.effective().swap_cache_pages().bytes();
            let room = yes(
                size <= disk.available,
                "pages go to swap files once it is full",
            );
            let size = [("  its size", size.to_string()), ("  has room", room)];
            rows_of("host cache", dir, disk).into_iter().chain(size)
        });
        let tail = [(
            "runtime directory",
            options.runtime_dir.path().display().to_string(),
        )];
        let rows = head.into_iter().chain(swap).chain(cache).chain(tail);
        let mut table = String::new();
        for (name, value) in rows {
            let _ = writeln!(table, "{name:<27}{value}");
        }
        table
    }
}

fn yes(yes: bool, consequence: &str) -> String {
    if yes {
        "yes".to_owned()
    } else {
        format!("no: {consequence}")
    }
}

/// What was found out about a directory of swapped pages.
fn rows_of(name: &'static str, dir: &Path, disk: &SwapDirReport) -> [(&'static str, String); 4] {
    let (kind, free) = (&disk.filesystem, disk.available);
    [
        (name, format!("{} ({kind}, {free} free)", dir.display())),
        (
            "  is on a disk",
            yes(!disk.in_memory, "swapping there frees no memory"),
        ),
        (
            "  direct I/O",
            yes(disk.direct_io, "swapped pages may stay in the page cache"),
        ),
        (
            "  reserves space",
            yes(disk.reserves, "a full disk shows only when swapping"),
        ),
    ]
}

/// Whether RAM of guests can be in large pages.
fn large() -> String {
    match large_pages() {
        Ok(_) => "yes".to_owned(),
        Err(why) => format!("no: {why}"),
    }
}

/// Whether a guest can reach what other guests have, and how (docs/security.md).
fn isolation() -> String {
    if privacy::is_inspectable() {
        let variable = privacy::INSPECTABLE;
        return format!("no: {variable} is set, so processes of this user can read guests");
    }
    match readers_cannot_write() {
        Err(error) => {
            format!("no: guests of this user can write what they share: no mount ({error})")
        }
        Ok(()) if geteuid().is_root() => "yes, from guests that are not root's".to_owned(),
        Ok(()) => "yes".to_owned(),
    }
}

fn max_map_count() -> Result<u32, String> {
    let text =
        fs::read_to_string("/proc/sys/vm/max_map_count").map_err(|error| error.to_string())?;
    text.trim()
        .parse()
        .map_err(|_| format!("`{}` is no number", text.trim()))
}
