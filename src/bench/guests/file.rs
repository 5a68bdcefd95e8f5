//! A fleet from a file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memvisor_wire::vm_name::check_vm_name;
use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use super::fleet::{Fleet, FleetGuest, MAX_GUESTS, wants};
use crate::units::{Bytes, Pages, SizeError};

/// The most bytes of a file, far more than even the largest fleet needs.
const FILE_MAX: u64 = 1 << 20;

/// Why a fleet file is not used.
#[derive(Debug, Error)]
pub enum FleetError {
    /// It cannot be read.
    #[error("cannot read the fleet `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error("{}:{line}: {}{text}", path.display(), key_of(key))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// The key of that line, if it has one.
        key: Option<String>,
        /// What is wrong, and what is allowed.
        text: String,
    },
}

fn key_of(key: &Option<String>) -> String {
    key.as_ref().map_or(String::new(), |key| format!("{key}: "))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Option<Spanned<String>>,
    guest: Vec<Spanned<WrittenGuest>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGuest {
    name: Spanned<String>,
    memory: Spanned<Memory>,
    workloads: Spanned<Vec<String>>,
    wants: Option<Memory>,
    count: Option<Spanned<usize>>,
    seed: Option<u64>,
}

/// A size above zero in whole pages.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Memory(Bytes);

impl TryFrom<String> for Memory {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes: Bytes = text.parse().map_err(|error: SizeError| error.to_string())?;
        let pages = bytes.whole_pages().filter(|pages| *pages > Pages(0));
        let whole = pages.ok_or_else(|| format!("`{text}` is not a number of whole pages"))?;
        Ok(Self(whole.bytes()))
    }
}

/// A file and its text, from which errors get their line and key.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Fleet {
    /// Reads a fleet. It is named after the file unless the file names it.
    ///
    /// # Errors
    /// [`FleetError`], with the line and the key of the first mistake.
    pub fn load(path: &Path) -> Result<Self, FleetError> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(FILE_MAX).read_to_string(&mut text))
            .map_err(|source| FleetError::Read {
                path: path.to_owned(),
                source,
            })?;
        let source = Source { path, text: &text };
        let written: Written = toml::from_str(&text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            source.wrong(&span, error.message().to_owned())
        })?;
        source.fleet(written)
    }
}

impl Source<'_> {
    fn wrong(&self, span: &Range<usize>, text: String) -> FleetError {
        let before = self.text.get(..span.start).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        let line = self.text[start..].lines().next().unwrap_or_default();
        let key = line.split_once('=').map(|(key, _)| key.trim().to_owned());
        FleetError::Wrong {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            key,
            text,
        }
    }

    fn fleet(&self, written: Written) -> Result<Fleet, FleetError> {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        let name = match &written.name {
            Some(name) => name.get_ref().clone(),
            None => stem.into_owned(),
        };
        if let Some(place) = &written.name
            && (name.is_empty() || name.contains(char::is_control))
        {
            let text = "a name is at least one letter".to_owned();
            return Err(self.wrong(&place.span(), text));
        }
        let mut guests: Vec<FleetGuest> = Vec::new();
        let mut names = BTreeSet::new();
        for guest in written.guest {
            let place = guest.span();
            for guest in self.guests(guest.into_inner(), guests.len())? {
                if !names.insert(guest.name.clone()) {
                    let text = format!("there are two guests `{}`", guest.name);
                    return Err(self.wrong(&place, text));
                }
                guests.push(guest);
            }
        }
        if guests.is_empty() || guests.len() > MAX_GUESTS {
            let text = format!(
                "{} guests; allowed: 1 to {MAX_GUESTS}, each a table [[guest]]",
                guests.len()
            );
            return Err(self.wrong(&(0..0), text));
        }
        Ok(Fleet { name, guests })
    }

    /// The guests of one table. `before` guests have been read before.
    fn guests(&self, written: WrittenGuest, before: usize) -> Result<Vec<FleetGuest>, FleetError> {
        let WrittenGuest {
            name,
            memory: size,
            workloads,
            wants: wanted,
            count,
            seed,
        } = written;
        let (Memory(memory), named) = (*size.get_ref(), name.span());
        let known = wants(workloads.get_ref());
        let known = known.map_err(|text| self.wrong(&workloads.span(), text))?;
        let wants = wanted.map_or(known, |Memory(wanted)| wanted);
        if workloads.get_ref().is_empty() {
            let text = "a guest needs a workload, such as \"kv,size=320M\"".to_owned();
            return Err(self.wrong(&workloads.span(), text));
        }
        if wants > memory {
            let text = format!("{memory} are less than the {wants} that its workloads want");
            return Err(self.wrong(&size.span(), text));
        }
        let copies = count.as_ref().map_or(1, |count| *count.get_ref());
        if let Some(count) = count.filter(|count| !(1..=MAX_GUESTS).contains(count.get_ref())) {
            let text = format!("{copies} are no number of guests; allowed: 1 to {MAX_GUESTS}");
            return Err(self.wrong(&count.span(), text));
        }
        (1..=copies)
            .map(|number| {
                let name = match copies {
                    1 => name.get_ref().clone(),
                    _ => format!("{}-{number}", name.get_ref()),
                };
                check_vm_name(&name).map_err(|error| self.wrong(&named, error.to_string()))?;
                let default = (before + number) as u64;
                Ok(FleetGuest {
                    name,
                    memory,
                    workloads: workloads.get_ref().clone(),
                    seed: seed.map_or(default, |seed| seed + number as u64 - 1),
                    wants,
                })
            })
            .collect()
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
            (changed("memory", "size"), ":3: size: ", "`memory`"),
            (changed("\"8M\"", "\"8Q\""), ":3: memory: ", "`8Q`"),
            (changed("\"8M\"", "\"5000\""), ":3: memory: ", "whole pages"),
            (changed("\"8M\"", "8"), ":3: memory: ", "expected a string"),
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
                "needs a workload",
            ),
            (format!("{good}count = 65\n"), ":5: count: ", "1 to 64"),
            (format!("{good}seed = -1\n"), ":5: seed: ", "-1"),
            (
                format!("{good}wants = \"0\"\n"),
                ":5: wants: ",
                "whole pages",
            ),
            (format!("{good}{good}"), ":5: ", "two guests `a`"),
            (
                format!("name = \"\"\n{good}"),
                ":1: name: ",
                "at least one letter",
            ),
            (changed("name = \"a\"\n", ""), ":1: ", "`name`"),
            ("guest = []\n".to_owned(), ":1: ", "1 to 64"),
            (String::new(), ":1: ", "`guest`"),
            (changed("]]", "]"), ":1: ", ""),
        ] {
            let error = load(&text).expect_err(&text).to_string();
            assert!(error.contains("mine.toml"), "{error}");
            assert!(
                error.contains(at) && error.contains(part),
                "{text}\n{error}"
            );
        }
        let error = Fleet::load(Path::new("/no/such")).expect_err("not there");
        assert!(error.to_string().contains("`/no/such`"));
    }
}
