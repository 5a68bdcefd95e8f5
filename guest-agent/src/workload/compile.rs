//! `compile`: one process after the other that starts, reads inputs, fills memory, works on it and exits, as
//! compilers do. One compilation is one operation.
//!
//! Memory of such a guest is young: a page that a host moves to its swap file is often free by the time it
//! comes back. The inputs are equal in all guests and stay in the page cache, as headers do.

use std::sync::Arc;
use std::time::Duration;

use memvisor_wire::units::parse_pages;
use rand::RngExt;
use rand::rngs::StdRng;

use super::content::{Content, Mix, hash};
use super::diskset::DiskSet;
use super::kind::{Allowed, CONTENT, Kind, PAUSE, Parameter, SIZE, THREADS, ZIPF};
use super::pageset::{PageSet, Share};
use super::spec::parse;
use super::zipf::Popularity;
use super::{Failure, Work, Worker};
use crate::kernel::Kernel;

pub(super) const KIND: Kind = Kind {
    usage: "compile",
    does: "runs short processes that read common inputs, fill memory, work on it and exit",
    parameters: &[SIZE, THREADS, INPUTS, ZIPF, PAUSE, CONTENT.or("text")],
    build: |builder| {
        let spec = builder.spec;
        // The seed is the same in all guests, and so are the inputs.
        let inputs = Content::new(Mix::Text, hash(0, 0x696e_7075_7473));
        let inputs = DiskSet::create(
            builder.kernel,
            spec.get(&INPUTS, parse_pages),
            INPUT_PAGES,
            Duration::ZERO,
            inputs,
        )?;
        let inputs = Arc::new(inputs);
        let popularity = Popularity::new(inputs.count().into(), spec.get(&ZIPF, parse));
        Ok(builder.each(|share, random| Compiler {
            kernel: Arc::clone(builder.kernel),
            inputs: Arc::clone(&inputs),
            popularity,
            share,
            pages: share.count(builder.pages),
            content: spec.content,
            domain: hash(builder.domain, share.thread.into()),
            random,
            round: 0,
            process: None,
        }))
    },
    ..Kind::PLAIN
};

const INPUTS: Parameter = Parameter {
    name: "inputs",
    default: Some("16M"),
    allowed: Allowed::Text(
        "at least one page, as a number with B, K, M, G, T or pages, such as 256M",
        |text| parse_pages(text).is_some(),
    ),
    effect: "what compilations read through the page cache, equal in all guests",
};

/// Pages of an input file.
const INPUT_PAGES: u32 = 4;

/// Pages that a process fills for each input file that it reads.
const PAGES_AN_INPUT: u32 = 16;

/// One thread that runs one process after the other.
#[derive(Debug)]
struct Compiler {
    kernel: Arc<Kernel>,
    inputs: Arc<DiskSet>,
    popularity: Popularity,
    share: Share,
    /// The size of the largest process. Each process has a random size from half of this up to this.
    pages: u32,
    content: Mix,
    domain: u64,
    random: StdRng,
    round: u64,
    process: Option<Process>,
}

/// A running process, and how far it is.
#[derive(Debug)]
struct Process {
    set: PageSet,
    filled: u32,
    worked: u32,
    verified: u32,
}

impl Compiler {
    fn start(&mut self) -> Process {
        self.round += 1;
        let least = self.pages.div_ceil(2);
        let pages = self.random.random_range(least..=self.pages);
        let content = Content::new(self.content, hash(self.domain, self.round));
        Process {
            set: PageSet::map(&self.kernel, pages, content),
            filled: 0,
            worked: 0,
            verified: 0,
        }
    }

    /// Does the next page of work of a process.
    fn go_on(&mut self, process: &mut Process) -> Result<Work, Failure> {
        let pages = process.set.pages();
        if process.filled < pages {
            let mut read = Work::default();
            if process.filled.is_multiple_of(PAGES_AN_INPUT) {
                let file = self.popularity.choose(&mut self.random) as u32;
                read = self.inputs.read(file, 0..self.inputs.records())?;
            }
            let written = process.set.write(process.filled)?;
            process.filled += 1;
            return Ok(read + written);
        }
        // A wrong page counts as done, or it would be reported again and again.
        let over =
            |done: &Result<Work, Failure>| u32::from(!matches!(done, Err(Failure::Kernel(_))));
        if process.worked < pages {
            let done = process.set.rewrite(self.random.random_range(0..pages));
            process.worked += over(&done);
            return done;
        }
        let done = process.set.verify(process.verified);
        process.verified += over(&done);
        done
    }
}

impl Worker for Compiler {
    fn to_load(&self) -> u32 {
        self.inputs.pages_of(self.share)
    }

    fn load(&mut self, number: u32) -> Result<Work, Failure> {
        self.inputs.load(self.share, number)
    }

    fn step(&mut self) -> Result<Option<Work>, Failure> {
        if self.pages == 0 {
            return Ok(None);
        }
        let mut process = match self.process.take() {
            Some(process) => process,
            None => self.start(),
        };
        let done = self.go_on(&mut process);
        // Otherwise it exits here, which frees its memory.
        if process.verified < process.set.pages() {
            self.process = Some(process);
        }
        done.map(Some)
    }

    fn is_amid_operation(&self) -> bool {
        self.process.is_some()
    }

    fn to_verify(&self) -> u32 {
        let filled = self.process.as_ref().map_or(0, |process| process.filled);
        self.to_load() + filled
    }

    fn verify(&mut self, number: u32) -> Result<Work, Failure> {
        match (number.checked_sub(self.to_load()), &self.process) {
            (Some(page), Some(process)) => process.set.verify(page),
            _ => self.inputs.verify(self.share, number),
        }
    }
}
