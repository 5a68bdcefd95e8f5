//! What guests did, put together from traces.
//!
//! A trace of a host says which VMs there were, what they were entitled to, and what their pages compressed to. A list
//! of accesses says what the guests used. Where a VM has such a list, the list is what it did. Where it has none, the
//! host's own trace says as much as the host has seen: faults, and accesses to frozen pages. What of a resident page is
//! accessed between those is guessed (`infer.rs`), and a VM of which only that is known is named in the remarks.
//!
//! What a page compresses to is known when it is evicted, but it holds that since it came. So a size counts from the
//! moment at which its page became resident last. A page that was never evicted has the size that some other page of its
//! VM has.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::content::Size;
use super::counts::Counts;
use super::told::Told;
use crate::policy::ResourcePool;
use crate::trace::format::{HostFacts, MAGIC, Stalls, VmFacts};
use crate::trace::{Access, Accesses, ImportError, Reader, Stop, csv, damon};
use crate::units::Pages;
use crate::vm::MAX_PAGES;

/// What guests did. See the module text.
#[derive(Debug, Default)]
pub struct Story {
    /// The recorded host, if there is a trace of one.
    pub host: Option<HostFacts>,
    /// The VMs, in the order in which they appear.
    pub vms: Vec<Vm>,
    /// The resource pools that there were, one set after the other.
    pub pools: Vec<Vec<ResourcePool>>,
    /// What happened, in the order of time.
    pub steps: Vec<Step>,
    /// How long all that took, in microseconds.
    pub length_us: u64,
    /// What the recorded host did, VM by VM.
    pub recorded: Option<Vec<Recorded>>,
    /// What is to be known of all that.
    pub remarks: Vec<String>,
}

/// What a recorded host did with a VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// Its pages.
    pub counts: Counts,
    /// For how long its threads stood still; `None`: the trace ends before the VM.
    pub stalls: Option<Stalls>,
}

/// A VM that is to be simulated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vm {
    /// What it is, when it appears.
    pub facts: VmFacts,
    /// Settings that it is given later.
    pub(super) changes: Vec<VmFacts>,
    /// The first known size of pages.
    pub(super) first: HashMap<u32, Size>,
    /// All sizes that were seen, ascending.
    pub(super) seen: Vec<Size>,
}

/// Something that happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// When, in microseconds since the beginning.
    pub at_us: u64,
    /// The page, or of settings and resource pools their number.
    pub gfn: u32,
    /// The VM, an index of [`Story::vms`]; of resource pools 0.
    pub vm: u16,
    /// What.
    pub what: Doing,
    /// Of a page that has another size now: that.
    pub size: u8,
}

/// What happens in a step. Of steps at the same time the earlier one of this list comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Doing {
    /// Other resource pools are in force, those of [`Story::pools`] with this number.
    Pools,
    /// The VM appears.
    Appear,
    /// It is given other settings.
    Change,
    /// A page has another size.
    Size,
    /// A page is read.
    Read,
    /// A page is written.
    Write,
    /// The VM leaves.
    Leave,
}

/// Why there is no story.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoryError {
    /// A file cannot be read.
    #[error("{file}: it cannot be read")]
    Read {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// It is a trace of which nothing can be read.
    #[error("{file}: {source}")]
    Trace {
        /// The file.
        file: String,
        /// Why.
        source: Stop,
    },
    /// It is no list of accesses.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Two traces of hosts.
    #[error(
        "{0}: a second trace of a host; one trace and any number of lists of accesses go together"
    )]
    Second(String),
    /// A list does not fit the trace.
    #[error("{file}: {why}")]
    Misfit {
        /// The file.
        file: String,
        /// Why.
        why: String,
    },
    /// More VMs than can be replayed.
    #[error("{0} VMs; at most {max} can be replayed", max = u16::MAX)]
    Many(usize),
    /// There is nothing in it.
    #[error("nothing is accessed in {0}")]
    Empty(String),
}

impl Vm {
    pub(super) fn new(facts: VmFacts) -> Self {
        Self {
            facts,
            changes: Vec::new(),
            first: HashMap::new(),
            seen: Vec::new(),
        }
    }

    /// Other settings that it is given, by the number of the step.
    pub(super) fn change(&self, number: u32) -> Option<&VmFacts> {
        self.changes.get(number as usize)
    }

    /// The size of each of its pages at the beginning.
    pub(super) fn sizes(&self) -> impl Iterator<Item = Size> {
        (0..self.facts.pages).map(|gfn| {
            let known = self.first.get(&gfn).copied();
            known.unwrap_or_else(|| self.likely(gfn))
        })
    }

    /// The size of a page of which none is known: that of a page that was seen, always the same for one gfn.
    fn likely(&self, gfn: u32) -> Size {
        let draw = u64::from(gfn.wrapping_mul(0x9e37_79b1));
        let at = (draw * self.seen.len() as u64) >> 32;
        let at = usize::try_from(at).unwrap_or_default();
        self.seen.get(at).copied().unwrap_or(Size::DENSE)
    }

    /// Whether any size of its pages is known.
    const fn knows_sizes(&self) -> bool {
        !self.seen.is_empty()
    }
}

impl Story {
    /// Reads the files: at most one trace of a host, and lists of accesses.
    ///
    /// # Errors
    /// [`StoryError`] names the file and the place in it.
    pub fn load(files: &[PathBuf]) -> Result<Self, StoryError> {
        let mut host = None;
        let mut lists = Vec::new();
        for path in files {
            let file = path.display().to_string();
            match Source::open(path, &file)? {
                Source::Trace(_) if host.is_some() => return Err(StoryError::Second(file)),
                Source::Trace(reader) => host = Some(Told::by(*reader, &file)),
                Source::List(list) => lists.push((file, list)),
            }
        }
        let story = match host {
            Some(told) => told.with(lists)?,
            None => of_lists(lists)?,
        };
        if story.vms.len() > usize::from(u16::MAX) {
            return Err(StoryError::Many(story.vms.len()));
        }
        if !story.steps.iter().any(|step| step.what >= Doing::Read) || story.vms.is_empty() {
            let files: Vec<_> = files.iter().map(|it| it.display().to_string()).collect();
            return Err(StoryError::Empty(files.join(", ")));
        }
        Ok(story)
    }

    pub(super) fn finish(mut self) -> Self {
        self.steps.sort_by_key(|step| (step.at_us, step.what));
        self.length_us = self.steps.last().map_or(0, |step| step.at_us);
        let unknown = self.vms.iter().filter(|vm| !vm.knows_sizes()).count();
        if unknown > 0 {
            self.remarks.push(format!(
                "what pages compress to is not known of {unknown} of {} VMs: theirs do not compress",
                self.vms.len()
            ));
        }
        self
    }
}

/// A file that is read.
enum Source {
    Trace(Box<Reader<BufReader<File>>>),
    List(Accesses),
}

impl Source {
    fn open(path: &Path, name: &str) -> Result<Self, StoryError> {
        let broken = |source| StoryError::Read {
            file: name.to_owned(),
            source,
        };
        let mut head = Vec::new();
        let open = || File::open(path).map_err(broken);
        open()?
            .take(damon::MAGIC.len() as u64)
            .read_to_end(&mut head)
            .map_err(broken)?;
        if head.starts_with(&MAGIC) {
            let reader = Reader::new(BufReader::new(open()?));
            return match reader {
                Ok(reader) => Ok(Self::Trace(Box::new(reader))),
                Err(source) => Err(StoryError::Trace {
                    file: name.to_owned(),
                    source,
                }),
            };
        }
        if head == damon::MAGIC {
            let bytes = std::fs::read(path).map_err(broken)?;
            return Ok(Self::List(damon::read(name, &bytes)?));
        }
        if damon::json::is_record(&head) {
            return Ok(Self::List(damon::json::load(name, path)?));
        }
        Ok(Self::List(csv::read(name, BufReader::new(open()?))?))
    }
}

pub(super) fn step(vm: usize, at_us: u64, access: &Access) -> Step {
    Step {
        at_us,
        gfn: access.gfn,
        vm: index(vm),
        what: if access.write {
            Doing::Write
        } else {
            Doing::Read
        },
        size: 0,
    }
}

/// The number of a VM. Where there are more than that, there is no story in the end.
pub(super) fn index(vm: usize) -> u16 {
    u16::try_from(vm).unwrap_or(u16::MAX)
}

/// A story of lists alone. VMs are there from the beginning, and as large as their highest page says.
fn of_lists(lists: Vec<(String, Accesses)>) -> Result<Story, StoryError> {
    let mut story = Story::default();
    let firsts = lists.iter().filter_map(|(_, list)| list.accesses.first());
    let began_us = firsts.map(|access| access.at_us).min().unwrap_or_default();
    for (file, list) in lists {
        let before = story.vms.len();
        story.remarks.extend(list.remarks);
        let mut pages = vec![0; list.vms.len()];
        for access in &list.accesses {
            let most = &mut pages[access.vm as usize];
            if access.gfn >= MAX_PAGES {
                let why = format!(
                    "gfn {}; the highest that a VM can have is {}",
                    access.gfn,
                    MAX_PAGES - 1
                );
                return Err(StoryError::Misfit { file, why });
            }
            *most = (access.gfn + 1).max(*most);
            let at = before + access.vm as usize;
            story.steps.push(step(at, access.at_us - began_us, access));
        }
        let vms = list.vms.into_iter().zip(pages).map(|(name, pages)| {
            Vm::new(VmFacts {
                name,
                pages,
                // Normal shares: ten for each MiB.
                shares: (Pages(pages.into()).bytes().0 / (1 << 20) * 10)
                    .max(1)
                    .try_into()
                    .unwrap_or(u32::MAX),
                ..VmFacts::default()
            })
        });
        story.vms.extend(vms);
    }
    let appear = |vm| Step {
        at_us: 0,
        gfn: 0,
        vm: index(vm),
        what: Doing::Appear,
        size: 0,
    };
    story.steps.extend((0..story.vms.len()).map(appear));
    Ok(story.finish())
}
