//! `files`: reads real files through the page cache with Zipf popularity.

use std::cmp::Reverse;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memvisor_wire::PAGE_SIZE;
use rand::rngs::StdRng;

use super::kind::{Kind, Need, PAUSE, RATE, SIZE, Size, THREADS, ZIPF};
use super::pageset::Share;
use super::spec::parse;
use super::truth::Truth;
use super::zipf::Popularity;
use super::{Failure, Work, Worker};
use crate::kernel::{CachedFile, Kernel, KernelError};

/// The most files that are read. Each is open twice, once for the guest and once to verify, and a
/// process has 1024 descriptors by default.
const MAX_FILES: usize = 128;

/// The search for the largest files ends after about this many files and directories.
const MAX_ENTRIES: usize = 100_000;

pub(super) const KIND: Kind = Kind {
    usage: "files:PATH",
    does: "reads a file, or those of a directory, through the page cache with Zipf popularity",
    parameters: &[SIZE, THREADS, ZIPF, RATE, PAUSE],
    need: |_| Need::Cache,
    size: |spec, kernel| Ok(Size::Cache(spec.pages.unwrap_or(kernel.ram_capacity()))),
    build: |builder| {
        let set = Arc::new(FileSet::open(
            builder.kernel,
            builder.spec.path(),
            builder.pages,
        )?);
        builder.pages = set.pages();
        let popularity = Popularity::new(set.pages().into(), builder.spec.get(&ZIPF, parse));
        Ok(builder.each(|share, random| Reader {
            set: Arc::clone(&set),
            share,
            popularity,
            random,
        }))
    },
    ..Kind::PLAIN
};

/// The files, with their pages numbered through from the first file to the last.
#[derive(Debug)]
struct FileSet {
    files: Vec<(CachedFile, Truth)>,
    /// The number of the first page behind each file.
    ends: Vec<u32>,
}

impl FileSet {
    /// Opens the largest files under `path`, up to `max_pages` pages of them.
    fn open(kernel: &Arc<Kernel>, path: &Path, max_pages: u32) -> Result<Self, KernelError> {
        let error = |source| KernelError::File {
            path: path.to_owned(),
            source,
        };
        let mut set = Self {
            files: Vec::new(),
            ends: Vec::new(),
        };
        for file in largest_files(path).map_err(error)? {
            let left = max_pages - set.pages();
            if left == 0 {
                break;
            }
            // A file that cannot be opened is skipped, unless the path names it.
            let truth = match Truth::open(&file, left) {
                Err(_) if file != path => continue,
                other => other.map_err(error)?,
            };
            set.ends.push(set.pages() + truth.pages());
            set.files.push((kernel.open_file(&file)?, truth));
        }
        if set.pages() == 0 {
            return Err(error(io::Error::other("there is nothing to read in it")));
        }
        Ok(set)
    }

    fn pages(&self) -> u32 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn verify(&self, number: u32) -> Result<Work, Failure> {
        let index = self.ends.partition_point(|end| *end <= number);
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        let (file, truth) = &self.files[index];
        let page = number - start;
        let mut found = [0; PAGE_SIZE];
        file.read(u64::from(page) * PAGE_SIZE as u64, &mut found)?;
        truth.judge(page, &found, || file.gfn_of(page))
    }
}

/// The largest files under a directory, or the file itself. Links are not followed, and unreadable
/// directories and files are left out.
fn largest_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut directories = vec![path.to_owned()];
    let mut files = Vec::new();
    let mut looked_at = 0;
    while let Some(directory) = directories.pop() {
        // A directory that cannot be read is left out, and the rest of the tree is still read.
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            looked_at += 1;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => directories.push(entry.path()),
                Ok(metadata) if metadata.is_file() && metadata.len() > 0 => {
                    files.push((Reverse(metadata.len()), entry.path()));
                }
                _ => {}
            }
        }
        if looked_at > MAX_ENTRIES {
            break;
        }
    }
    // By size and then by name, so that all guests read the same files in the same order.
    files.sort();
    files.truncate(MAX_FILES);
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// One thread that reads.
#[derive(Debug)]
struct Reader {
    set: Arc<FileSet>,
    share: Share,
    popularity: Popularity,
    random: StdRng,
}

impl Worker for Reader {
    fn step(&mut self) -> Result<Option<Work>, Failure> {
        let page = self.popularity.choose(&mut self.random) as u32;
        self.set.verify(page).map(Some)
    }

    fn to_verify(&self) -> u32 {
        self.share.count(self.set.pages())
    }

    fn verify(&mut self, number: u32) -> Result<Work, Failure> {
        self.set.verify(self.share.page(number))
    }
}
