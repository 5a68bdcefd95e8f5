//! The content of the pages that benchmarks work on: synthetic classes, or files of the user.
//!
//! The cost of a scanner and of a compressor depends on what they look at, so every figure names the class it
//! was measured on. A page is a function of its class, a seed and its number. So host, guest and peer make the
//! same bytes on their own, and a guest can verify what it reads without a second copy.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use super::class::{Class, Dice};
use crate::units::{PAGE_SIZE, PageBuf};

/// Pages in a group. All pages of a group have the same class and are either all common or all unique, because
/// real guests have their equal pages in runs.
pub const GROUP: u64 = 32;

/// The seed of what is equal in all guests.
const COMMON: u64 = 0x636f_6d6d_6f6e;

/// The most files read below a directory: enough for a corpus, and a bound for trees such as `/proc`.
const FILES_MAX: usize = 100_000;

/// Where pages come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A synthetic class.
    Class(Class),
    /// A file, or all files of a directory, in whole pages.
    Path(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Class(class) => class.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// What a guest's memory, or a part of a peer's, holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Content {
    /// Where pages come from.
    pub source: Source,
    /// Tells one guest and round from the others.
    pub seed: u64,
    /// Of a hundred groups of pages, how many are the same for all seeds.
    pub common_percent: u8,
}

impl Content {
    /// Pages of `source` that are this seed's alone.
    #[must_use]
    pub const fn unique(source: Source, seed: u64) -> Self {
        Self {
            source,
            seed,
            common_percent: 0,
        }
    }

    /// Whether page `number` is the same for all seeds.
    #[must_use]
    pub const fn is_common(&self, number: u64) -> bool {
        // Spread evenly: group 0, 2, 4... for 50 %.
        let group = number / GROUP;
        let percent = self.common_percent as u64;
        (group * percent) % 100 < percent
    }
}

/// Makes the pages of a [`Content`].
#[derive(Clone, Debug)]
pub struct Maker {
    content: Content,
    corpus: Option<Arc<Corpus>>,
}

impl Maker {
    /// Reads at most `pages` pages of files, if the content comes from there.
    ///
    /// # Errors
    /// Files cannot be read, or there is not one whole page in them.
    pub fn new(content: Content, pages: u32) -> io::Result<Self> {
        let corpus = match &content.source {
            Source::Class(_) => None,
            Source::Path(path) => Some(Arc::new(Corpus::read(path, pages as usize)?)),
        };
        Ok(Self { content, corpus })
    }

    /// The same maker with another seed; files are not read again.
    #[must_use]
    pub fn with_seed(&self, seed: u64) -> Self {
        let mut maker = self.clone();
        maker.content.seed = seed;
        maker
    }

    /// What it makes.
    #[must_use]
    pub const fn content(&self) -> &Content {
        &self.content
    }

    /// Fills `page` with what page `number` holds.
    pub fn make(&self, number: u64, page: &mut PageBuf) {
        let common = self.content.is_common(number);
        let seed = if common { COMMON } else { self.content.seed };
        match (&self.content.source, &self.corpus) {
            (Source::Class(class), _) => {
                class.fill(&mut Dice::new(seed, number), number / GROUP, page);
            }
            (Source::Path(_), Some(corpus)) => {
                corpus.copy(number, page);
                // Files are the same for every seed. Where pages must differ, one word is changed by the seed.
                if !common && seed != 0 {
                    let mark = Dice::new(seed, number).next();
                    page.0[PAGE_SIZE / 2..PAGE_SIZE / 2 + 8].copy_from_slice(&mark.to_le_bytes());
                }
            }
            (Source::Path(_), None) => page.0.fill(0),
        }
    }
}

/// Whole pages of files.
#[derive(Debug)]
struct Corpus(Vec<PageBuf>);

impl Corpus {
    fn read(path: &Path, most: usize) -> io::Result<Self> {
        let mut pages = Vec::new();
        for file in files(path)? {
            if pages.len() >= most {
                break;
            }
            // Errors are ignored in a directory, which may hold files that this user cannot read.
            match read_pages(&file, most, &mut pages) {
                Err(error) if file == path => return Err(error),
                _ => {}
            }
        }
        if pages.is_empty() {
            let why = format!("there is not one whole page of {PAGE_SIZE} bytes in it");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(Self(pages))
    }

    fn copy(&self, number: u64, page: &mut PageBuf) {
        let at = (number % self.0.len() as u64) as usize;
        page.0.copy_from_slice(&self.0[at].0);
    }
}

fn read_pages(path: &Path, most: usize, pages: &mut Vec<PageBuf>) -> io::Result<()> {
    let mut file = File::open(path)?;
    while pages.len() < most {
        let mut page = PageBuf::zeroed();
        match file.read_exact(&mut page.0) {
            Ok(()) => pages.push(page),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The regular files at and below `path`, in the order of their names; links are not followed.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let (mut found, mut dirs) = (Vec::new(), vec![path.to_owned()]);
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let Ok(kind) = fs::symlink_metadata(&path) else {
                continue;
            };
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() && found.len() < FILES_MAX {
                found.push(path);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn page(class: Class, seed: u64, number: u64) -> PageBuf {
        let content = Content::unique(Source::Class(class), seed);
        let mut page = PageBuf([0xee; PAGE_SIZE]);
        Maker::new(content, 0)
            .expect("no file")
            .make(number, &mut page);
        page
    }

    #[test]
    fn pages_are_the_same_for_a_seed_and_differ_for_another() {
        for &class in Class::value_variants() {
            assert!(page(class, 1, 5) == page(class, 1, 5), "{class}");
            assert_eq!(Class::from_str(&class.to_string(), false), Ok(class));
            if !matches!(class, Class::Zero | Class::Mixed) {
                assert!(page(class, 1, 5) != page(class, 2, 5), "{class}");
                assert!(page(class, 1, 5) != page(class, 1, 6), "{class}");
            }
        }
    }

    #[test]
    fn common_groups_are_half_of_all_and_equal_for_all_seeds() {
        let source = Source::Class(Class::Random);
        let content = |seed| Content {
            source: source.clone(),
            seed,
            common_percent: 50,
        };
        let makers = [1, 2].map(|seed| Maker::new(content(seed), 0).expect("no file"));
        let (mut one, mut other) = (PageBuf::zeroed(), PageBuf::zeroed());
        let mut common = 0;
        for number in 0..GROUP * 20 {
            makers[0].make(number, &mut one);
            makers[1].make(number, &mut other);
            assert_eq!(one == other, makers[0].content().is_common(number));
            common += u64::from(one == other);
        }
        assert_eq!(common, GROUP * 10);
    }

    #[test]
    fn directory_is_read_in_whole_pages_and_marked_only_where_it_must_differ() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::create_dir(dir.path().join("d")).expect("a directory");
        fs::write(dir.path().join("d/b"), vec![2; PAGE_SIZE * 2 + 5]).expect("write");
        fs::write(dir.path().join("a"), vec![1; 10]).expect("write");
        let source = Source::Path(dir.path().to_owned());
        let maker = Maker::new(Content::unique(source, 0), 10).expect("readable");
        let mut page = PageBuf::zeroed();
        maker.make(1, &mut page);
        assert!(page.0 == [2; PAGE_SIZE]);
        maker.with_seed(4).make(1, &mut page);
        assert!(page.0 != [2; PAGE_SIZE]);
        let small = Source::Path(dir.path().join("a"));
        let error = Maker::new(Content::unique(small, 0), 10).expect_err("too small");
        assert!(error.to_string().contains("one whole page"), "{error}");
    }
}
