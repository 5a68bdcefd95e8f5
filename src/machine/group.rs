//! The cgroups of this process in which memory can be limited.

use std::fs;
use std::path::{Path, PathBuf};

use crate::units::Bytes;

/// The version of the interface, which decides the names of its files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// Each controller has a hierarchy of its own.
    One,
    /// All controllers share one hierarchy.
    Two,
}

impl Version {
    /// The file with the limit, which can also be written.
    #[must_use]
    pub const fn limit(self) -> &'static str {
        match self {
            Self::One => "memory.limit_in_bytes",
            Self::Two => "memory.max",
        }
    }

    /// The file with the limit above which the kernel slows the group's processes down, where there is one.
    const fn high(self) -> Option<&'static str> {
        match self {
            Self::One => None,
            Self::Two => Some("memory.high"),
        }
    }

    /// The file with the memory that is used now.
    const fn used(self) -> &'static str {
        match self {
            Self::One => "memory.usage_in_bytes",
            Self::Two => "memory.current",
        }
    }

    /// The file with the most memory that was used at one time.
    #[must_use]
    pub const fn peak(self) -> &'static str {
        match self {
            Self::One => "memory.max_usage_in_bytes",
            Self::Two => "memory.peak",
        }
    }

    /// The file with the line `oom_kill N`.
    #[must_use]
    pub const fn events(self) -> &'static str {
        match self {
            Self::One => "memory.oom_control",
            Self::Two => "memory.events",
        }
    }

    /// The type of the filesystem, and the option that it is mounted with.
    const fn mounted(self) -> (&'static str, &'static str) {
        match self {
            Self::One => ("cgroup", "memory"),
            Self::Two => ("cgroup2", ""),
        }
    }
}

/// The group of a process in one hierarchy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// The version of the hierarchy.
    pub version: Version,
    /// Where the hierarchy is mounted.
    pub mount: PathBuf,
    /// The group's directory there; the mount itself if the group cannot be seen.
    pub dir: PathBuf,
}

impl Group {
    /// The groups of this process, version 1 first. `root` is `/` but in tests; the directories are without it.
    #[must_use]
    pub fn own(root: &Path) -> Vec<Self> {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        Self::of(&read("proc/self/cgroup"), &read("proc/self/mountinfo"))
    }

    /// The groups by the texts of `/proc/self/cgroup` and `/proc/self/mountinfo`.
    #[must_use]
    pub fn of(groups: &str, mounts: &str) -> Vec<Self> {
        let find = |version: Version| {
            let path = groups.lines().find_map(|line| path(version, line))?;
            let (mount, top) = mounts.lines().find_map(|line| mount(version, line))?;
            // In a namespace that has another root, only the top can be seen.
            let inside = path.strip_prefix(top).unwrap_or(Path::new(""));
            Some(Self {
                version,
                mount: mount.to_owned(),
                // Joined with nothing, it would end in a slash.
                dir: match inside.as_os_str().is_empty() {
                    true => mount.to_owned(),
                    false => mount.join(inside),
                },
            })
        };
        let versions = [Version::One, Version::Two].into_iter();
        versions.filter_map(find).collect()
    }

    /// The group and those that it is in, as far as they can be seen.
    pub fn up(&self) -> impl Iterator<Item = &Path> {
        let above = self.dir.ancestors();
        above.take_while(|dir| dir.starts_with(&self.mount))
    }

    /// The least limit of the group and of the groups that it is in, and the group that has it.
    #[must_use]
    pub fn limit(&self, root: &Path) -> Option<(Bytes, PathBuf)> {
        let files = [Some(self.version.limit()), self.version.high()];
        let limit = |dir: &Path, file: &str| {
            let text = fs::read_to_string(below(root, dir).join(file)).ok()?;
            // A group without a limit says `max`.
            let limit = text.trim().parse().ok()?;
            Some((Bytes(limit), dir.to_owned()))
        };
        let files = files.into_iter().flatten();
        let of = |dir| files.clone().filter_map(move |file| limit(dir, file));
        // The limits of all groups above bind too, and the lowest of them is met first.
        self.up().flat_map(of).min()
    }
}

impl Group {
    /// What `dir` uses, which is this group or one that it is in.
    pub(super) fn used(&self, root: &Path, dir: &Path) -> Option<Bytes> {
        let text = fs::read_to_string(below(root, dir).join(self.version.used())).ok()?;
        text.trim().parse().ok().map(Bytes)
    }
}

/// Where a path is below a root.
pub(super) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Reads a line of `/proc/self/cgroup`: `4:memory:/a` of version 1, `0::/a` of version 2.
fn path(version: Version, line: &str) -> Option<&Path> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let is_it = match version {
        Version::One => controllers.split(',').any(|name| name == "memory"),
        Version::Two => controllers.is_empty(),
    };
    is_it.then(|| Path::new(path))
}

/// Where the hierarchy is mounted, and which of its groups is at the top there, if this line of `/proc/self/mountinfo`
/// is that of its mount.
fn mount(version: Version, line: &str) -> Option<(&Path, &Path)> {
    let (kind, option) = version.mounted();
    // The fourth field says which directory of the filesystem is mounted, the fifth where. Behind a dash follow type,
    // source and options. The options name the controllers of version 1.
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut filesystem = filesystem.split(' ');
    let is_kind = filesystem.next() == Some(kind);
    let mut options = filesystem.next_back()?.split(',');
    let has = option.is_empty() || options.any(|o| o == option);
    let mut mount = mount.split(' ').skip(3);
    let (top, place) = (mount.next()?, mount.next()?);
    (is_kind && has).then_some((Path::new(place), Path::new(top)))
}
