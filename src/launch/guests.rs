//! Tables `[[guest]]` of a file, for fleets and scenarios.
//!
//! Both have guests with a name, memory and workloads, one table for several that are alike, and keys of their own
//! beside these. What both have is judged here ([`Reading::groups`]), so that a guest means the same in either file; the
//! rest is read by whoever knows what it is for, from the table that a [`Group`] keeps.
//!
//! What a guest *needs* is the memory without which its workloads cannot be: their sizes, and the files that they load.
//! The page cache is no part of it, because it holds as much as there is room for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::Path;

use memvisor_guest_agent::workload::{Need, Sequence, WorkloadSpec};
use memvisor_wire::vm_name::check_vm_name;
use toml::Spanned;

use crate::settings::{Memory, Reading};
use crate::units::{Bytes, PAGE_SIZE, Pages};

/// The most guests of a file: each is a process of its own.
pub(crate) const MAX_GUESTS: usize = 64;

/// What all tables of guests have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Common<'a> {
    pub(crate) name: &'a Spanned<String>,
    pub(crate) memory: &'a Spanned<Memory>,
    pub(crate) workloads: &'a Spanned<Vec<String>>,
    pub(crate) count: Option<&'a Spanned<usize>>,
    pub(crate) seed: Option<u64>,
}

/// A table of guests as it was written.
pub(crate) trait GuestTable {
    fn common(&self) -> Common<'_>;
}

/// Makes a type one that [`Reading::groups`] reads: it has the fields of [`Common`].
macro_rules! guest_table {
    ($table:ty) => {
        impl $crate::launch::guests::GuestTable for $table {
            fn common(&self) -> $crate::launch::guests::Common<'_> {
                $crate::launch::guests::Common {
                    name: &self.name,
                    memory: &self.memory,
                    workloads: &self.workloads,
                    count: self.count.as_ref(),
                    seed: self.seed,
                }
            }
        }
    };
}
pub(crate) use guest_table;

/// The guests of one table.
#[derive(Debug)]
pub(crate) struct Group<'a, T> {
    /// The table with the keys that only its own kind of file has.
    pub(crate) table: &'a T,
    pub(crate) memory: Bytes,
    pub(crate) needs: Needs,
    /// Their names, and their seeds if each has its own.
    pub(crate) members: Vec<(String, u64)>,
}

/// The memory that workloads need.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Needs {
    /// What is known of it. Of workloads that follow each other the largest counts.
    pub(crate) bytes: Bytes,
    /// A workload that takes a part of what its guest has, because it has no size.
    pub(crate) unsized_one: Option<String>,
}

impl Needs {
    /// What one workload after the other needs. `length` tells the bytes of a file.
    pub(crate) fn of(
        workloads: &[String],
        length: &dyn Fn(&Path) -> Result<u64, String>,
    ) -> Result<Self, String> {
        let mut needs = Self::default();
        for text in workloads {
            let sequence: Sequence = text.parse().map_err(|error| format!("{error}"))?;
            let mut largest = Pages(0);
            for workload in sequence.workloads() {
                // A path that is not there is wrong, whatever it is read for.
                let file = workload.path.as_deref().map(length).transpose();
                let file = file.map_err(|error| format!("`{workload}`: {error}"))?;
                largest = largest.max(needs.one(workload, file.unwrap_or(0)));
            }
            needs.bytes.0 += largest.bytes().0;
        }
        Ok(needs)
    }

    fn one(&mut self, workload: &WorkloadSpec, file: u64) -> Pages {
        match workload.need() {
            Need::Pages(pages) => Pages(pages.into()),
            Need::File(most) => {
                let pages = file.div_ceil(PAGE_SIZE as u64);
                Pages(most.map_or(pages, |most| pages.min(most.into())))
            }
            Need::Part => {
                self.unsized_one.get_or_insert_with(|| workload.to_string());
                Pages(0)
            }
            Need::Cache => Pages(0),
        }
    }
}

/// The bytes of a file of this machine; of a directory 0.
pub(crate) fn length_here(path: &Path) -> Result<u64, String> {
    let file = fs::metadata(path).map_err(|error| format!("`{}`: {error}", path.display()))?;
    Ok(if file.is_file() { file.len() } else { 0 })
}

impl Reading {
    /// All guests, by tables in the order of the file. A table whose guests cannot be makes a problem.
    pub(crate) fn groups<'a, T: GuestTable>(
        &mut self,
        written: &'a BTreeMap<String, Spanned<T>>,
        length: &dyn Fn(&Path) -> Result<u64, String>,
    ) -> Vec<Group<'a, T>> {
        let mut tables: Vec<_> = written.values().collect();
        tables.sort_by_key(|table| table.span().start);
        let (mut groups, mut names, mut count) = (Vec::new(), BTreeSet::new(), 0);
        for table in tables {
            let group = self.group(table.get_ref(), count, length);
            count += group.members.len();
            for (name, _) in &group.members {
                if !names.insert(name.clone()) {
                    self.wrong(table.span(), &format!("there are two guests `{name}`"));
                }
            }
            groups.push(group);
        }
        if self.problems.is_empty() && !(1..=MAX_GUESTS).contains(&count) {
            let text =
                format!("{count} guests; allowed: 1 to {MAX_GUESTS}, each a table [[guest]]");
            self.wrong(None, &text);
        }
        groups
    }

    /// The guests of one table. `before` guests have been read before.
    fn group<'a, T: GuestTable>(
        &mut self,
        table: &'a T,
        before: usize,
        length: &dyn Fn(&Path) -> Result<u64, String>,
    ) -> Group<'a, T> {
        let common = table.common();
        let Memory(memory) = *common.memory.get_ref();
        let needs = self.needs(common.workloads, length);
        self.room(common.memory, needs.bytes);
        Group {
            table,
            memory,
            needs,
            members: self.members(common, before),
        }
    }

    fn needs(
        &mut self,
        workloads: &Spanned<Vec<String>>,
        length: &dyn Fn(&Path) -> Result<u64, String>,
    ) -> Needs {
        if workloads.get_ref().is_empty() {
            let text = "workloads: a guest needs one, such as \"kv,size=64M\"";
            self.wrong(workloads.span(), text);
        }
        Needs::of(workloads.get_ref(), length).unwrap_or_else(|text| {
            self.wrong(workloads.span(), &format!("workloads: {text}"));
            Needs::default()
        })
    }

    /// Whether a guest of this size has room for what its workloads want.
    pub(crate) fn room(&mut self, memory: &Spanned<Memory>, wants: Bytes) {
        let Memory(size) = *memory.get_ref();
        if wants > size {
            let text = format!("memory: {size} are less than the {wants} that its workloads want");
            self.wrong(memory.span(), &text);
        }
    }

    /// Names and seeds of the guests of one table.
    fn members(&mut self, common: Common<'_>, before: usize) -> Vec<(String, u64)> {
        let copies = common.count.map_or(1, |count| *count.get_ref());
        let at: Option<Range<usize>> = common.count.map(Spanned::span);
        if !(1..=MAX_GUESTS).contains(&copies) {
            let text =
                format!("count: {copies} are no number of guests; allowed: 1 to {MAX_GUESTS}");
            self.wrong(at, &text);
            return Vec::new();
        }
        let name = common.name.get_ref();
        let first = common.seed.unwrap_or(before as u64 + 1);
        let members = (0..copies).map(|copy| {
            let name = match copies {
                1 => name.clone(),
                _ => format!("{name}-{}", copy + 1),
            };
            (name, first.wrapping_add(copy as u64))
        });
        let members: Vec<_> = members.collect();
        if let Some(Err(error)) = members.last().map(|(name, _)| check_vm_name(name)) {
            self.wrong(common.name.span(), &format!("name: {error}"));
        }
        members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(workloads: &[&str]) -> Result<Needs, String> {
        let workloads: Vec<_> = workloads.iter().map(|&text| text.to_owned()).collect();
        Needs::of(&workloads, &length_here)
    }

    #[test]
    fn what_workloads_need_is_their_size_or_that_of_their_file_but_no_page_cache() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(5000).expect("room");
        let image = format!("image:{}", file.path().display());
        let part = format!("{image},size=4K");
        let cache = format!("files:{},size=1G", file.path().display());
        for (workloads, bytes) in [
            (
                &["kv,size=1M", &image, "boot,size=4K; idle"][..],
                (1 << 20) + 8192 + 4096,
            ),
            (&[&part], 4096),
            (&["dbench,size=1G", &cache, "idle"], 0),
        ] {
            let expected = Needs {
                bytes: Bytes(bytes),
                unsized_one: None,
            };
            assert_eq!(needs(workloads), Ok(expected), "{workloads:?}");
        }
        let found = needs(&["kv,size=1M", "toucher", "kv"]).expect("workloads");
        assert_eq!(found.bytes, Bytes(1 << 20));
        assert_eq!(found.unsized_one.as_deref(), Some("toucher"));
    }

    #[test]
    fn workload_that_cannot_be_is_named() {
        for (workload, part) in [
            ("image:/no/such", "/no/such"),
            ("files:/no/such", "/no/such"),
            ("kvs", "`kvs`"),
            ("kv,size=1M; idle", "`kv,size=1M` never ends"),
        ] {
            let error = needs(&[workload]).expect_err(workload);
            assert!(error.contains(part), "{error}");
        }
    }
}
