//! What this machine gives the daemon: its memory, the limit of the daemon's cgroup, and how short either is.
//!
//! A budget says what guests may use together, and the daemon holds to it. But it is written by a person, who may not
//! know that the daemon runs in a container, and it is fixed, while the limit of a container can change. If the kernel's
//! limit comes first, the kernel reclaims, or kills, before the policy knows of a shortage. So the budget can also be
//! given as a part of what there is, or be left to the daemon ([`BudgetChoice::Auto`]), which then follows the limit.
//!
//! A process can be in cgroups of both versions at once, and the limits of all groups above its own bind too. Which files
//! say so depends on the version, on where the hierarchies are mounted, and on how much of them a container sees. That is
//! [`Group`]'s business, for the daemon and for benchmarks.
//!
//! Everything is read from files below a directory, `/` but in tests.

mod budget;
mod descent;
mod group;
mod pressure;

use std::fs;
use std::path::{Path, PathBuf};

use crate::units::Bytes;

pub use budget::{BudgetChoice, BudgetError, Unbounded, overhead};
pub use descent::{Descent, is_near};
pub use group::{Group, Version};
pub use pressure::{Level, Pressure};

/// What bounds the memory of this process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Machine {
    /// What the machine has, where that is known.
    pub total: Option<Bytes>,
    /// The least limit of this process's cgroups that is below that, and the cgroup that has it.
    pub limit: Option<(Bytes, PathBuf)>,
    /// What that cgroup uses, where it is known.
    pub used: Option<Bytes>,
}

impl Machine {
    /// Reads it from the files below `root`; what the kernel does not tell is no bound.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        let total = total(&meminfo);
        let groups = Group::own(root);
        let limits = groups
            .iter()
            .filter_map(|group| Some((group.limit(root)?, group)));
        // Version 1 says that a group has no limit by one that no machine reaches.
        let binds = |limit: Bytes| total.is_none_or(|total| limit < total);
        let least = limits.min_by_key(|((limit, _), _)| *limit);
        let least = least.filter(|((limit, _), _)| binds(*limit));
        Self {
            total,
            used: (least.as_ref()).and_then(|((_, dir), group)| group.used(root, dir)),
            limit: least.map(|(limit, _)| limit),
        }
    }

    /// Whether so little of the limit is left that the kernel may act at any moment.
    #[must_use]
    pub fn is_near_limit(&self) -> bool {
        let limit = self.limit.as_ref().map(|(limit, _)| *limit);
        (self.used.zip(limit)).is_some_and(|(used, limit)| is_near(used, limit))
    }

    /// The memory that this process may use at most, where that is known.
    #[must_use]
    pub fn memory(&self) -> Option<Bytes> {
        let limit = self.limit.as_ref().map(|(limit, _)| *limit);
        limit.or(self.total)
    }

    /// What bounds it, as the subject and verb of a sentence whose object is a size.
    #[must_use]
    pub fn bound(&self) -> String {
        match &self.limit {
            Some((_, group)) => format!("the daemon's cgroup {} allows", group.display()),
            None => "this machine has".to_owned(),
        }
    }

    /// Why a budget does not fit into this memory, if it does not.
    #[must_use]
    pub fn objection(&self, budget: Bytes) -> Option<String> {
        let memory = self.memory().filter(|memory| *memory < budget)?;
        Some(format!("{} {memory}", self.bound()))
    }
}

fn total(meminfo: &str) -> Option<Bytes> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kib.saturating_mul(1024)))
}

/// A machine made of files, for tests.
#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// A hierarchy of version 2.
    pub(crate) const V2: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    /// Hierarchies of version 1, of which a container sees its own group at the top.
    pub(crate) const V1: &str = "24 18 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
         25 18 0:22 /docker/a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    /// A machine of 8 GiB whose process is in these groups, with these files beside.
    pub(crate) fn root(cgroup: &str, mountinfo: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("tempdir");
        let own = [
            ("proc/self/cgroup", cgroup),
            ("proc/self/mountinfo", mountinfo),
            (
                "proc/meminfo",
                "MemTotal:        8388608 kB\nMemFree: 1 kB\n",
            ),
        ];
        for (path, text) in own.iter().chain(files) {
            write(root.path(), path, text);
        }
        root
    }

    /// Writes a file of the machine.
    pub(crate) fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("in the root")).expect("mkdir");
        fs::write(path, text).expect("write");
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{V1, V2, root};
    use super::*;

    fn machine(cgroup: &str, mountinfo: &str, files: &[(&str, &str)]) -> Machine {
        Machine::at(root(cgroup, mountinfo, files).path())
    }

    #[test]
    fn budget_is_held_against_the_machine() {
        let machine = machine("", "", &[]);
        assert_eq!(machine.objection(Bytes::from_mib(8192)), None);
        let why = machine.objection(Bytes::from_mib(8193)).expect("too large");
        assert_eq!(why, "this machine has 8.00 GiB");
        assert_eq!(Machine::default().objection(Bytes(u64::MAX)), None);
    }

    #[test]
    fn least_limit_of_all_groups_above_counts() {
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
    fn group_with_the_least_limit_says_what_it_uses() {
        let of = |used| {
            let files = [
                ("sys/fs/cgroup/a/memory.max", "1073741824\n"),
                ("sys/fs/cgroup/a/memory.current", used),
                ("sys/fs/cgroup/a/b/memory.current", "1\n"),
            ];
            machine("0::/a/b\n", V2, &files)
        };
        assert_eq!(of("4096\n").used, Some(Bytes(4096)));
        assert!(!of("4096\n").is_near_limit());
        assert!(of("1073000000\n").is_near_limit());
        let file = "sys/fs/cgroup/memory/memory.limit_in_bytes";
        let used = "sys/fs/cgroup/memory/memory.usage_in_bytes";
        let one = machine(
            "2:memory:/docker/a\n",
            V1,
            &[(file, "4096"), (used, "4000")],
        );
        assert_eq!(one.used, Some(Bytes(4000)));
    }

    #[test]
    fn group_that_is_slowed_down_above_a_limit_counts_as_limited_there() {
        let limits = [
            ("sys/fs/cgroup/a/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/a/memory.high", "536870912\n"),
        ];
        let machine = machine("0::/a\n", V2, &limits);
        assert_eq!(machine.memory(), Some(Bytes::from_mib(512)));
    }

    #[test]
    fn limits_of_version_1_are_found_where_a_container_sees_them() {
        let limit = "sys/fs/cgroup/memory/x/memory.limit_in_bytes";
        let cgroup = "3:cpu:/docker/a\n2:hugetlb,memory:/docker/a/x\n";
        let found = machine(cgroup, V1, &[(limit, "536870912\n")]);
        assert_eq!(found.memory(), Some(Bytes::from_mib(512)));
        let none = machine(cgroup, V1, &[(limit, "9223372036854771712\n")]);
        assert_eq!(none.memory(), Some(Bytes::from_mib(8192)));
        assert_eq!(none.limit, None);
    }

    #[test]
    fn group_that_cannot_be_seen_is_bounded_by_what_can() {
        let machine = machine(
            "0::/../elsewhere\n",
            V2,
            &[("sys/fs/cgroup/memory.max", "4096\n")],
        );
        assert_eq!(machine.memory(), Some(Bytes(4096)));
    }

    /// Systems that have both versions mount memory in one of them.
    #[test]
    fn both_versions_are_looked_at() {
        let mounts = format!("{V2}{V1}");
        let limits = [
            ("sys/fs/cgroup/memory.max", "max\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n"),
        ];
        let machine = machine("2:memory:/docker/a\n0::/\n", &mounts, &limits);
        assert_eq!(machine.memory(), Some(Bytes::from_mib(1)));
    }
}
