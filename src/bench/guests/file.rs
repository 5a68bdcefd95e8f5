//! A fleet from a file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use memvisor_wire::vm_name::check_vm_name;
use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use super::fleet::{Fleet, FleetGuest, MAX_GUESTS, wants};
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
        let (mut reading, written) = Reading::toml::<Written>(&text, &["guest"]);
        let guests = reading.guests(written.guest);
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
        Err(Invalid::new(path.display().to_string(), reading.problems).into())
    }
}

impl Reading {
    /// The guests, each of which says whether it can be.
    fn guests(&mut self, written: BTreeMap<String, Spanned<WrittenGuest>>) -> Vec<FleetGuest> {
        let mut tables: Vec<_> = written.into_values().collect();
        tables.sort_by_key(|table| table.span().start);
        let (mut guests, mut names) = (Vec::new(), BTreeSet::new());
        for table in tables {
            let place = table.span();
            for guest in self.copies(table.into_inner(), guests.len()) {
                if !names.insert(guest.name.clone()) {
                    let text = format!("there are two guests `{}`", guest.name);
                    self.wrong(place.clone(), &text);
                }
                guests.push(guest);
            }
        }
        if self.problems.is_empty() && !(1..=MAX_GUESTS).contains(&guests.len()) {
            let guests = guests.len();
            let text =
                format!("{guests} guests; allowed: 1 to {MAX_GUESTS}, each a table [[guest]]");
            self.wrong(None, &text);
        }
        guests
    }

    /// The guests of one table. `before` guests have been read before.
    fn copies(&mut self, written: WrittenGuest, before: usize) -> Vec<FleetGuest> {
        let WrittenGuest {
            name,
            memory,
            workloads,
            ..
        } = written;
        let (named, places) = (name.span(), workloads.span());
        let (name, workloads) = (name.into_inner(), workloads.into_inner());
        let (size, Memory(memory)) = (memory.span(), memory.into_inner());
        let known = wants(&workloads).unwrap_or_else(|text| {
            self.wrong(places.clone(), &format!("workloads: {text}"));
            Bytes(0)
        });
        if workloads.is_empty() {
            let text = "workloads: a guest needs one, such as \"kv,size=320M\"";
            self.wrong(places, text);
        }
        let wants = written.wants.map_or(known, |Memory(wanted)| wanted);
        if wants > memory {
            let text =
                format!("memory: {memory} are less than the {wants} that its workloads want");
            self.wrong(size, &text);
        }
        let copies = written.count.as_ref().map_or(1, |count| *count.get_ref());
        if let Some(count) = written
            .count
            .filter(|count| !(1..=MAX_GUESTS).contains(count.get_ref()))
        {
            let text =
                format!("count: {copies} are no number of guests; allowed: 1 to {MAX_GUESTS}");
            self.wrong(count.span(), &text);
            return Vec::new();
        }
        let guest = |number: usize| FleetGuest {
            name: match copies {
                1 => name.clone(),
                _ => format!("{name}-{number}"),
            },
            memory,
            workloads: workloads.clone(),
            seed: match written.seed {
                Some(seed) => seed + number as u64 - 1,
                None => (before + number) as u64,
            },
            wants,
        };
        let guests: Vec<_> = (1..=copies).map(guest).collect();
        if let Some(Err(error)) = guests.last().map(|guest| check_vm_name(&guest.name)) {
            self.wrong(named, &format!("name: {error}"));
        }
        guests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Fleet, FleetError> {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("mine.toml");
        std::fs::write(&path, text).expect("write");
        Fleet::load(&path)
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
        let good = "[[guest]]\nname = \"a\"\nmemory = \"8M\"\nworkloads = [\"kv,size=4M\"]\n";
        load(good).expect("right");
        let changed = |from: &str, to: &str| good.replacen(from, to, 1);
        for (text, at, part) in [
            (changed("memory", "size"), ":3: guest.1.size: ", "`memory`"),
            (changed("\"8M\"", "\"8Q\""), ":3: guest.1.memory: ", "`8Q`"),
            (
                changed("\"8M\"", "\"5000\""),
                ":3: guest.1.memory: ",
                "whole pages",
            ),
            (
                changed("\"8M\"", "8"),
                ":3: guest.1.memory: ",
                "cannot be `8`",
            ),
            (
                changed("\"8M\"", "\"2M\""),
                ":3: memory: ",
                "less than the 4.0 MiB",
            ),
            (changed("\"a\"", "\"a/b\""), ":2: name: ", "a/b"),
            (changed("kv,", "kvs,"), ":4: workloads: ", "`kvs`"),
            (changed(",size=4M", ""), ":4: workloads: ", "needs a size="),
            (
                changed("\"kv,size=4M\"", ""),
                ":4: workloads: ",
                "needs one",
            ),
            (format!("{good}count = 65\n"), ":5: count: ", "1 to 64"),
            (format!("{good}seed = -1\n"), ":5: guest.1.seed: ", "-1"),
            (
                format!("{good}wants = \"0\"\n"),
                ":5: guest.1.wants: ",
                "whole pages",
            ),
            (format!("{good}{good}"), ":5: ", "two guests `a`"),
            (
                format!("name = \"\"\n{good}"),
                ":1: name: ",
                "at least one letter",
            ),
            (changed("name = \"a\"\n", ""), ":1: guest.1: ", "`name`"),
            ("guest = []\n".to_owned(), ": 0 guests", "1 to 64"),
            (String::new(), ": 0 guests", "[[guest]]"),
            (changed("]]", "]"), ":1: ", ""),
        ] {
            let error = load(&text).expect_err(&text).to_string();
            assert!(error.contains("mine.toml"), "{error}");
            assert!(
                error.contains(at) && error.contains(part),
                "{text}\n{error}"
            );
        }
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
