//! Pressure on memory as the kernel measures it (PSI): for how long tasks wait for memory, of the daemon's cgroup where
//! it has a measure of its own, else of the whole machine.
//!
//! That is pressure on the machine below the budget. Guests that wait because the budget is short are counted by the
//! daemon itself, and are not part of it, as they wait for the daemon and not for the kernel.

use std::fs;
use std::path::{Path, PathBuf};

use super::group::{Group, Version, below};

/// For how long tasks waited.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Level {
    /// The part of the latest ten seconds, in percent.
    pub ten_seconds: f64,
    /// The part of the latest minute, in percent.
    pub minute: f64,
    /// All of it so far, in microseconds.
    pub total_us: u64,
}

/// Pressure on memory.
#[derive(Clone, PartialEq, Debug)]
pub struct Pressure {
    /// Whose it is: a cgroup, or the machine's.
    pub of: Option<PathBuf>,
    /// At least one task waited.
    pub some: Level,
    /// All tasks that were not idle waited at once.
    pub full: Level,
}

impl Pressure {
    /// Reads it below `root`; `None` where the kernel does not measure it.
    #[must_use]
    pub fn at(root: &Path) -> Option<Self> {
        let read = |path: PathBuf| fs::read_to_string(below(root, &path)).ok();
        let groups = Group::own(root);
        // Only version 2 has it. The root group has none of its own, which the machine's would equal.
        let group = groups
            .into_iter()
            .find(|group| group.version == Version::Two);
        let own = group.and_then(|group| {
            let text = read(group.dir.join("memory.pressure"))?;
            parse(&text, Some(group.dir))
        });
        own.or_else(|| parse(&read(PathBuf::from("/proc/pressure/memory"))?, None))
    }
}

fn parse(text: &str, of: Option<PathBuf>) -> Option<Pressure> {
    let level = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let field = |name: &str| {
            let mut fields = line.split_whitespace();
            fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Level {
            ten_seconds: field("avg10")?.parse().ok()?,
            minute: field("avg60")?.parse().ok()?,
            total_us: field("total")?.parse().ok()?,
        })
    };
    Some(Pressure {
        of,
        some: level("some ")?,
        full: level("full ")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{V1, V2, root};
    use super::*;

    const TEXT: &str = "some avg10=1.50 avg60=0.25 avg300=0.00 total=83197274\n\
                        full avg10=0.50 avg60=0.01 avg300=0.00 total=55841699\n";

    #[test]
    fn pressure_is_that_of_the_own_group_or_else_of_the_machine() {
        let machine = ("proc/pressure/memory", TEXT);
        let own = TEXT.replace("1.50", "7.25");
        let group = ("sys/fs/cgroup/a/memory.pressure", own.as_str());
        let found = Pressure::at(root("0::/a\n", V2, &[machine, group]).path());
        let found = found.expect("there is one");
        assert_eq!(found.of.as_deref(), Some(Path::new("/sys/fs/cgroup/a")));
        assert_eq!(found.some.ten_seconds, 7.25);
        for (groups, mounts) in [("0::/b\n", V2), ("2:memory:/docker/a\n", V1)] {
            let found = Pressure::at(root(groups, mounts, &[machine, group]).path());
            let found = found.expect("there is one");
            assert_eq!(found.of, None);
            let expected = Level {
                ten_seconds: 0.5,
                minute: 0.01,
                total_us: 55_841_699,
            };
            assert_eq!(found.full, expected);
        }
    }

    #[test]
    fn kernel_that_does_not_measure_it_has_none() {
        assert_eq!(Pressure::at(root("0::/a\n", V2, &[]).path()), None);
        for text in ["", "some avg10=1\n", "some avg10=x avg60=0 total=0\nfull\n"] {
            let files = [("proc/pressure/memory", text)];
            assert_eq!(Pressure::at(root("", "", &files).path()), None, "{text}");
        }
    }
}
