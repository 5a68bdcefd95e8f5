//! How much memory this machine gives the daemon: what a budget should fit into.
//!
//! A larger budget is allowed, and works for a host whose guests stay small. But when they grow, the kernel's own
//! reclaim or its OOM killer comes before the policy does. So the operator is told.

use std::fs;
use std::path::{Path, PathBuf};

use crate::units::Bytes;

/// What bounds the memory of this process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Machine {
    /// What the machine has, where that is known.
    total: Option<Bytes>,
    /// The least limit of this process's cgroups, and the cgroup that has it.
    cgroup: Option<(Bytes, PathBuf)>,
}

impl Machine {
    /// Asks the kernel; what the kernel does not tell is no bound.
    pub(super) fn probe() -> Self {
        Self::at(Path::new("/"))
    }

    fn at(root: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let (cgroups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
        let limits = cgroups.lines().filter_map(|line| {
            let group = Group::of(line)?;
            let mount = mounts.lines().find_map(|line| group.mount(line))?;
            group.limit(root, &mount)
        });
        Self {
            total: total(&read("proc/meminfo")),
            cgroup: limits.min(),
        }
    }

    /// The memory that this process may use at most, where that is known.
    pub(super) fn memory(&self) -> Option<Bytes> {
        let cgroup = self.cgroup.as_ref().map(|(limit, _)| *limit);
        self.total.into_iter().chain(cgroup).min()
    }

    /// Why a budget does not fit into this memory, if it does not.
    pub(super) fn objection(&self, budget: Bytes) -> Option<String> {
        if let Some((limit, of)) = self.cgroup.as_ref().filter(|(limit, _)| *limit < budget) {
            return Some(format!(
                "the daemon's cgroup {} allows {limit}",
                of.display()
            ));
        }
        let total = self.total.filter(|total| *total < budget)?;
        Some(format!("this machine has {total}"))
    }
}

fn total(meminfo: &str) -> Option<Bytes> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kib.saturating_mul(1024)))
}

/// The cgroup of this process in a hierarchy that bounds memory.
struct Group<'a> {
    path: &'a Path,
    /// The type of the filesystem, the option that it is mounted with, and the file with the limit.
    kind: [&'static str; 3],
}

impl<'a> Group<'a> {
    /// Reads a line of `/proc/self/cgroup`: `4:memory:/a` of version 1, `0::/a` of version 2.
    fn of(line: &'a str) -> Option<Self> {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let kind = if controllers.is_empty() {
            ["cgroup2", "", "memory.max"]
        } else if controllers.split(',').any(|name| name == "memory") {
            ["cgroup", "memory", "memory.limit_in_bytes"]
        } else {
            return None;
        };
        let path = Path::new(path);
        Some(Self { path, kind })
    }

    /// Where the hierarchy is mounted, and which of its groups is at the top there, if this line of
    /// `/proc/self/mountinfo` is that of its mount.
    fn mount<'m>(&self, line: &'m str) -> Option<(&'m Path, &'m Path)> {
        let [kind, option, _] = self.kind;
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let is_it = filesystem.next() == Some(kind)
            && filesystem
                .next_back()?
                .split(',')
                .any(|o| option.is_empty() || o == option);
        let mut mount = mount.split(' ').skip(3);
        let (top, place) = (mount.next()?, mount.next()?);
        is_it.then_some((Path::new(place), Path::new(top)))
    }

    /// The least limit of the group and of the groups that it is in, as far as they can be seen.
    fn limit(&self, root: &Path, (place, top): &(&Path, &Path)) -> Option<(Bytes, PathBuf)> {
        let at = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        // In a namespace that has another root, only the top can be seen.
        let inside = self.path.strip_prefix(top).unwrap_or(Path::new(""));
        inside
            // The limits of all groups above bind too, and the lowest of them is met first.
            .ancestors()
            .filter_map(|inside| {
                let group = place.join(inside);
                let text = fs::read_to_string(at(&group).join(self.kind[2])).ok()?;
                // A group without a limit says `max`.
                let limit = text.trim().parse().ok()?;
                Some((Bytes(limit), group))
            })
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of 8 GiB with these cgroups.
    fn machine(cgroup: &str, mountinfo: &str, limits: &[(&str, &str)]) -> Machine {
        let root = tempfile::tempdir().expect("tempdir");
        let files = [
            ("proc/self/cgroup", cgroup),
            ("proc/self/mountinfo", mountinfo),
            (
                "proc/meminfo",
                "MemTotal:        8388608 kB\nMemFree: 1 kB\n",
            ),
        ];
        for (path, text) in files.iter().chain(limits) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("in the root")).expect("mkdir");
            fs::write(path, text).expect("write");
        }
        Machine::at(root.path())
    }

    const V2: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "24 18 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      25 18 0:22 /docker/a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn budget_is_held_against_the_machine() {
        let machine = machine("", "", &[]);
        assert_eq!(machine.objection(Bytes::from_mib(8192)), None);
        let why = machine.objection(Bytes::from_mib(8193)).expect("too large");
        assert_eq!(why, "this machine has 8.00 GiB");
        assert_eq!(Machine::default().objection(Bytes(u64::MAX)), None);
    }

    #[test]
    fn least_limit_of_all_cgroups_above_counts() {
        let limits = [
            ("sys/fs/cgroup/a/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/a/b/memory.max", "2147483648\n"),
            ("sys/fs/cgroup/a/b/c/memory.max", "max\n"),
        ];
        let machine = machine("0::/a/b/c\n", V2, &limits);
        assert_eq!(machine.objection(Bytes::from_mib(1024)), None);
        let why = machine.objection(Bytes::from_mib(1025)).expect("too large");
        assert_eq!(why, "the daemon's cgroup /sys/fs/cgroup/a allows 1.00 GiB");
        assert_eq!(machine.memory(), Some(Bytes::from_mib(1024)));
    }

    #[test]
    fn limits_of_version_1_are_found_where_a_container_sees_them() {
        let limits = [(
            "sys/fs/cgroup/memory/x/memory.limit_in_bytes",
            "536870912\n",
        )];
        let cgroup = "3:cpu:/docker/a\n2:hugetlb,memory:/docker/a/x\n";
        let machine = machine(cgroup, V1, &limits);
        assert_eq!(machine.memory(), Some(Bytes::from_mib(512)));
    }

    #[test]
    fn group_that_cannot_be_seen_is_bounded_by_what_can() {
        let limits = [("sys/fs/cgroup/memory.max", "4096\n")];
        let machine = machine("0::/../elsewhere\n", V2, &limits);
        assert_eq!(machine.memory(), Some(Bytes(4096)));
    }
}
