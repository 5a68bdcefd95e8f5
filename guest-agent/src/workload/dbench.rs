//! `dbench`: clients that read, write, replace and flush files on a disk of the guest, like dbench.
//!
//! The files are more than memory holds, so what a client gets done depends on how many of their pages the
//! guest has free memory to cache. This is the guest that a host harms without noticing when it takes memory
//! that looks idle: the page cache.

use std::sync::Arc;
use std::time::Duration;

use memvisor_wire::units::{parse_duration, parse_pages};
use rand::RngExt;
use rand::rngs::StdRng;

use super::diskset::DiskSet;
use super::kind::{
    Allowed, CONTENT, Kind, Need, PAUSE, Parameter, RATE, SIZE, Size, THREADS, WRITE, ZIPF,
};
use super::pageset::Share;
use super::spec::parse;
use super::zipf::Popularity;
use super::{Failure, Work, Worker};

pub(super) const KIND: Kind = Kind {
    usage: "dbench",
    does: "reads, writes and replaces files on the guest's own disk, through its page cache",
    parameters: &[
        SIZE,
        THREADS,
        WRITE.or("20"),
        ZIPF,
        FILE,
        LATENCY,
        RATE,
        PAUSE,
        CONTENT,
    ],
    // More than memory, or all of it would soon be cached.
    need: |_| Need::Cache,
    size: |spec, kernel| {
        let twice = kernel.ram_capacity().saturating_mul(2);
        Ok(Size::Cache(spec.pages.unwrap_or(twice)))
    },
    build: |builder| {
        let spec = builder.spec;
        let set = DiskSet::create(
            builder.kernel,
            builder.pages,
            spec.get(&FILE, parse_file),
            spec.get(&LATENCY, parse_latency),
            builder.content(),
        )?;
        builder.pages = set.pages();
        let set = Arc::new(set);
        let popularity = Popularity::new(set.count().into(), spec.get(&ZIPF, parse));
        Ok(builder.each(|share, random| Client {
            set: Arc::clone(&set),
            share,
            popularity,
            write: spec.get(&WRITE, parse),
            random,
        }))
    },
    ..Kind::PLAIN
};

const FILE: Parameter = Parameter {
    name: "file",
    default: Some("64K"),
    allowed: Allowed::Text("one page to 64M, such as 64K", |text| {
        parse_file(text).is_some()
    }),
    effect: "the size of a file",
};

pub(super) const LATENCY: Parameter = Parameter {
    name: "latency",
    default: Some("0s"),
    allowed: Allowed::Text("a time up to 1s, such as 200us", |text| {
        parse_latency(text).is_some()
    }),
    effect: "the least time in which its disk reads or writes a page; with 0s the disk is as fast as the file \
             behind it",
};

/// The largest file, in pages.
const MAX_FILE: u32 = 64 << 8;

/// Records that an operation reads or writes: 16 KiB, which begin in any record.
const REQUEST: u32 = 16;

/// One write of so many replaces its file.
const REPLACE: u32 = 10;

/// One write of so many is flushed to the disk.
const FLUSH: u32 = 20;

fn parse_file(text: &str) -> Option<u32> {
    parse_pages(text).filter(|pages| *pages <= MAX_FILE)
}

fn parse_latency(text: &str) -> Option<Duration> {
    parse_duration(text).filter(|time| *time <= Duration::from_secs(1))
}

/// One thread that uses the files.
#[derive(Debug)]
struct Client {
    set: Arc<DiskSet>,
    share: Share,
    popularity: Popularity,
    write: u32,
    random: StdRng,
}

impl Worker for Client {
    fn to_load(&self) -> u32 {
        self.set.pages_of(self.share)
    }

    fn load(&mut self, number: u32) -> Result<Work, Failure> {
        self.set.load(self.share, number)
    }

    fn step(&mut self) -> Result<Option<Work>, Failure> {
        let file = self.popularity.choose(&mut self.random) as u32;
        let start = self.random.random_range(0..self.set.records());
        let records = start..start + REQUEST;
        if self.random.random_range(0..100) >= self.write {
            return self.set.read(file, records).map(Some);
        }
        let done = match self.random.random_range(0..REPLACE) {
            0 => self.set.replace(file, REQUEST)?,
            _ => self.set.write(file, records)?,
        };
        if self.random.random_range(0..FLUSH) == 0 {
            self.set.flush(file)?;
        }
        Ok(Some(done))
    }

    fn verify(&mut self, number: u32) -> Result<Work, Failure> {
        self.set.verify(self.share, number)
    }
}
