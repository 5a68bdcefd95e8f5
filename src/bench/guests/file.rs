//! A fleet from a file.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use super::fleet::{Fleet, FleetGuest};
use crate::launch::guests::{guest_table, length_here};
use crate::settings::{Invalid, Memory, Reading, text_of};
use crate::units::Bytes;

/// Why a fleet file is not used.
#[derive(Debug, Error)]
pub enum FleetError {
    /// It cannot be read.
    #[error("cannot read the fleet `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    name: Option<Spanned<String>>,
    guest: BTreeMap<String, Spanned<WrittenGuest>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct WrittenGuest {
    name: Spanned<String>,
    memory: Spanned<Memory>,
    workloads: Spanned<Vec<String>>,
    wants: Option<Memory>,
    count: Option<Spanned<usize>>,
    seed: Option<u64>,
}

impl Fleet {
    /// Reads a fleet. It is named after the file unless the file names it.
    ///
    /// # Errors
    /// [`FleetError`], with all that is wrong in the file.
    pub fn load(path: &Path) -> Result<Self, FleetError> {
        let text = text_of(path).map_err(|source| FleetError::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::parse(path, &text)?)
    }

    /// Reads the text of the fleet at `path`.
    ///
    /// # Errors
    /// [`Invalid`]: all that is wrong in it.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Invalid> {
        let (mut reading, written) = Reading::toml::<Written>(text, &["guest"]);
        let guests = reading.fleet(&written.guest);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = written.name.map_or(stem.into_owned(), |name| {
            if name.get_ref().is_empty() || name.get_ref().contains(char::is_control) {
                reading.wrong(name.span(), "name: a name is at least one letter");
            }
            name.into_inner()
        });
        if reading.problems.is_empty() {
            return Ok(Self { name, guests });
        }
        Err(Invalid::new(path.display().to_string(), reading.problems))
    }
}

guest_table!(WrittenGuest);

impl Reading {
    /// The guests, and what each of them wants of the budget.
    fn fleet(&mut self, written: &BTreeMap<String, Spanned<WrittenGuest>>) -> Vec<FleetGuest> {
        let groups = self.groups(written, &length_here);
        let mut guests = Vec::new();
        for group in groups {
            let WrittenGuest {
                memory, workloads, ..
            } = group.table;
            let wants = group.table.wants.as_ref();
            if let (None, Some(workload)) = (wants, &group.needs.unsized_one) {
                let text = format!("workloads: `{workload}` needs a size=, or the guest wants=");
                self.wrong(workloads.span(), &text);
            }
            if let Some(wants) = wants {
                self.room(memory, wants.0);
            }
            let wants = wants.map_or(group.needs.bytes, |wants| wants.0);
            guests.extend(group.members.into_iter().map(|(name, seed)| FleetGuest {
                name,
                memory: group.memory,
                workloads: workloads.get_ref().clone(),
                seed,
                wants,
            }));
        }
        let wanted = guests.iter().any(|guest| guest.wants > Bytes(0));
        if self.problems.is_empty() && !wanted {
            let text = "no guest wants memory of a fixed size, so there is none to overcommit: page cache takes what \
                        there is; allowed: a workload with a size= of memory, or wants = \"64M\" in a table [[guest]]";
            self.wrong(None, text);
        }
        guests
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::mistakes;

    const GOOD: &str = "[[guest]]\nname = \"a\"\nmemory = \"8M\"\nworkloads = [\"kv,size=4M\"]\n";

    fn load(text: &str) -> Result<Fleet, Invalid> {
        Fleet::parse(Path::new("x/mine.toml"), text)
    }

    #[test]
    fn file_becomes_guests_with_names_seeds_and_what_they_want() {
        let text = "[[guest]]\nname = \"db\"\nmemory = \"384M\"\nworkloads = [\"kv,size=320M\"]\ncount = 2\n\
                    [[guest]]\nname = \"batch\"\nmemory = \"64M\"\nwants = \"32M\"\nseed = 9\n\
                    workloads = [\"stream,size=16M\", \"idle\"]\n";
        let fleet = load(text).expect("right");
        assert_eq!(fleet.name, "mine");
        assert_eq!(fleet.wants(), Bytes::from_mib(672));
        let guests: Vec<_> = fleet
            .guests
            .iter()
            .map(|guest| (guest.name.as_str(), guest.seed, guest.memory.0 >> 20))
            .collect();
        assert_eq!(
            guests,
            [("db-1", 1, 384), ("db-2", 2, 384), ("batch", 9, 64)]
        );
        assert_eq!(fleet.guests[2].workloads, ["stream,size=16M", "idle"]);
        let named = load(&format!("name = \"other\"\n{text}")).expect("right");
        assert_eq!(named.name, "other");
    }

    #[test]
    fn mistake_is_told_with_its_line_and_key() {
        let mistakes = [
            ("", GOOD, ":5: ", "two guests `a`"),
            ("memory", "size", ":3: guest.1.size: ", "`memory`"),
            ("memory", "memroy", ":3: guest.1.memroy: ", "near: memory"),
            ("\"8M\"", "\"8Q\"", ":3: guest.1.memory: ", "`8Q`"),
            ("\"8M\"", "\"5000\"", ":3: guest.1.memory: ", "whole pages"),
            ("\"8M\"", "8", ":3: guest.1.memory: ", "cannot be `8`"),
            ("\"8M\"", "\"2M\"", ":3: memory: ", "less than the 4.0 MiB"),
            ("\"a\"", "\"a/b\"", ":2: name: ", "a/b"),
            ("kv,", "kvs,", ":4: workloads: ", "`kvs`"),
            (
                ",size=4M",
                "",
                ":4: workloads: ",
                "needs a size=, or the guest wants=",
            ),
            ("\"kv,size=4M\"", "", ":4: workloads: ", "needs one"),
            ("", "count = 65\n", ":5: count: ", "1 to 64"),
            ("", "seed = -1\n", ":5: guest.1.seed: ", "-1"),
            ("", "wants = \"0\"\n", ":5: guest.1.wants: ", "whole pages"),
            (
                "",
                "wants = \"9M\"\n",
                ":3: memory: ",
                "less than the 9.0 MiB",
            ),
            (
                "[[guest]]",
                "name = \"\"\n[[guest]]",
                ":1: name: ",
                "at least one letter",
            ),
            ("name = \"a\"\n", "", ":1: guest.1: ", "`name`"),
            (
                "kv,",
                "dbench,",
                ": no guest wants memory of a fixed size",
                "wants = ",
            ),
            ("]]", "]", ":1: ", ""),
            (GOOD, "guest = []\n", ": 0 guests", "1 to 64"),
            (GOOD, "", ": 0 guests", "[[guest]]"),
        ];
        mistakes::make(GOOD, &mistakes, load);
    }

    #[test]
    fn guest_of_files_wants_what_the_file_says_or_nothing() {
        let files = GOOD.replace("\"a\"", "\"b\"").replace("kv,", "dbench,");
        let fleet = load(&format!("{GOOD}{files}")).expect("right");
        assert_eq!(fleet.wants(), Bytes::from_mib(4));
        let fleet = load(&format!("{files}wants = \"3M\"\n")).expect("right");
        assert_eq!(fleet.wants(), Bytes::from_mib(3));
    }

    #[test]
    fn all_mistakes_are_told_and_nothing_that_only_follows_from_one() {
        let text = "nmae = \"x\"\n[[guest]]\nname = \"a\"\nmemory = \"8Q\"\nworkloads = [\"kv,size=4M\"]\n\
                    [[guest]]\nname = \"b\"\nmemroy = \"8M\"\nworkloads = [\"idle\", 7]\n\
                    [[guest]]\nname = \"c\"\nmemory = \"8M\"\nworkloads = [\"kvs\"]\n";
        let found = load(text).expect_err("six of them").to_string();
        let expected = [
            ":1: nmae: unknown field `nmae`",
            ":4: guest.1.memory: cannot be `8Q`",
            ":6: guest.2: missing field `memory`",
            ":8: guest.2.memroy: unknown field `memroy`",
            ":9: guest.2.workloads.[1]: invalid type: integer `7`",
            ":13: workloads: ",
        ];
        assert_eq!(found.lines().count(), expected.len(), "{found}");
        for (line, part) in found.lines().zip(expected) {
            assert!(line.contains(part), "no `{part}` in: {line}");
        }
    }

    #[test]
    fn file_that_is_not_there_is_named() {
        let error = Fleet::load(Path::new("/no/such")).expect_err("not there");
        assert!(error.to_string().contains("`/no/such`"));
    }
}
