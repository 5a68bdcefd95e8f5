//! A memory cgroup: the kernel's way to limit the memory of several processes together.
//!
//! Systems have one of two interfaces. In version 1, a group can be made below the group of this process. In
//! version 2, a group that has processes cannot have children with limits. So the new group is made beside this
//! process's group, or in the nearest group above it that may limit memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::BenchError;
use super::super::guard::{Guard, SCRATCH_PREFIX, Undo, check_name};
use crate::machine::{Group, Version};

/// Where groups can be made.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Place {
    dir: PathBuf,
    version: Version,
}

/// A group, until the guard removes it.
#[derive(Debug)]
pub(crate) struct Cgroup<'a> {
    /// Removes it.
    _guard: &'a Guard,
    dir: PathBuf,
    version: Version,
}

impl<'a> Cgroup<'a> {
    /// Makes a group that may use `limit` bytes; the inner error says why that cannot be done.
    ///
    /// # Errors
    /// The guard is gone.
    pub(crate) fn open(guard: &'a Guard, limit: u64) -> Result<Result<Self, String>, BenchError> {
        let place = find(&Group::own(Path::new("/")), can_limit);
        let Some(Place { dir, version }) = place else {
            return Ok(Err("this system limits no memory of cgroups".to_owned()));
        };
        let dir = dir.join(format!("{SCRATCH_PREFIX}{:016x}", rand::random::<u64>()));
        guard
            // Before it is made, so that it is removed even if this process is killed in between.
            .undo(Undo::RemoveCgroup(dir.clone()))
            .map_err(BenchError::io("have a cgroup removed"))?;
        let made = fs::create_dir(&dir)
            .and_then(|()| fs::write(dir.join(version.limit()), limit.to_string()));
        if let Err(error) = made {
            return Ok(Err(format!("`{}` cannot be made: {error}", dir.display())));
        }
        Ok(Ok(Self {
            _guard: guard,
            dir,
            version,
        }))
    }

    /// The directory that a process enters by writing into its `cgroup.procs`.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The most memory that the group had at one time, in bytes.
    pub(crate) fn peak(&self) -> Result<u64, BenchError> {
        let text = self.read(self.version.peak())?;
        let number = text.trim().parse();
        number.map_err(|error| BenchError::io("read a counter")(io::Error::other(error)))
    }

    /// How many processes the kernel killed because the group had no memory left.
    pub(crate) fn killed(&self) -> Result<u64, BenchError> {
        let text = self.read(self.version.events())?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(line
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or(0))
    }

    fn read(&self, name: &str) -> Result<String, BenchError> {
        let text = fs::read_to_string(self.dir.join(name));
        text.map_err(BenchError::io("read a counter of a cgroup"))
    }
}

/// Where a group can be made, by the groups of this process. `can_limit` is only asked about directories of version 2.
fn find(groups: &[Group], can_limit: impl Fn(&Path) -> bool) -> Option<Place> {
    let place = |group: &Group| {
        let Group {
            version,
            mount,
            dir,
        } = group;
        let dir = match version {
            Version::One => Some(dir.as_path()),
            // Our own group has processes, so the search begins above it. Only the root may have processes and
            // children with limits.
            Version::Two => {
                let mut above = group.up().skip(usize::from(dir != mount));
                above.find(|dir| can_limit(dir))
            }
        };
        let (dir, version) = (dir?.to_owned(), *version);
        Some(Place { dir, version })
    };
    // Where memory is a hierarchy of version 1, that of version 2 cannot limit it.
    groups.first().and_then(place)
}

/// Whether the children of a group of version 2 can have limits of memory.
fn can_limit(dir: &Path) -> bool {
    let controllers = fs::read_to_string(dir.join("cgroup.subtree_control"));
    controllers.is_ok_and(|names| names.split_whitespace().any(|name| name == "memory"))
}

/// Kills what is left in a group of a benchmark, and removes the group. Fails as busy until the last process has left.
pub(in super::super) fn remove(dir: &Path) -> io::Result<()> {
    check_name(dir)?;
    let processes = match fs::read_to_string(dir.join("cgroup.procs")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        processes => processes?,
    };
    for pid in processes.lines().filter_map(|pid| pid.parse().ok()) {
        // Zero stands for processes that this one cannot see. For kill(2), it would mean our own process group.
        if pid > 0 {
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    fs::remove_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "\
        29 23 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        30 29 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        31 29 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
        32 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    fn place(groups: &str, mounts: &str, limits: &[&str]) -> Option<(PathBuf, Version)> {
        let can_limit = |dir: &Path| limits.iter().any(|other| Path::new(other) == dir);
        find(&Group::of(groups, mounts), can_limit).map(|place| (place.dir, place.version))
    }

    #[test]
    fn version_one_is_found_below_the_own_group_also_in_a_container() {
        let groups = "9:name=systemd:/\n4:memory:/jobs/7\n0::/\n";
        let expected = PathBuf::from("/sys/fs/cgroup/memory/jobs/7");
        assert_eq!(place(groups, ONE, &[]), Some((expected, Version::One)));
        let inside = ONE.replace("0:27 / ", "0:27 /jobs ");
        let expected = PathBuf::from("/sys/fs/cgroup/memory/7");
        assert_eq!(place(groups, &inside, &[]), Some((expected, Version::One)));
    }

    #[test]
    fn version_two_is_found_beside_the_own_group_or_above() {
        let mounts = "28 22 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let groups = "0::/user.slice/user-0.slice/session-1.scope\n";
        let root = "/sys/fs/cgroup";
        let user = "/sys/fs/cgroup/user.slice";
        let own = "/sys/fs/cgroup/user.slice/user-0.slice/session-1.scope";
        let found = |dir: &str| Some((PathBuf::from(dir), Version::Two));
        assert_eq!(place(groups, mounts, &[root, user, own]), found(user));
        assert_eq!(place(groups, mounts, &[root]), found(root));
        assert_eq!(place(groups, mounts, &["/sys", own]), None);
        assert_eq!(place("0::/\n", mounts, &[root]), found(root));
        assert_eq!(place("", mounts, &[root]), None);
        assert_eq!(place(groups, "", &[root]), None);
    }

    #[test]
    fn group_that_is_gone_is_removed_and_what_is_no_group_of_ours_is_not() {
        let place = tempfile::tempdir().expect("tempdir");
        let dir = place.path().join(format!("{SCRATCH_PREFIX}gone"));
        remove(&dir).expect("nothing to do");
        let error = remove(place.path()).expect_err("not ours");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
