//! `boot`: zeroes memory as an operating system does at power-on, frees it, and ends.
//!
//! Windows zeroes all pages when it boots. To its host such a guest suddenly uses all of its memory,
//! although there is nothing in it; several that boot at once are a boot storm. ESX gets the memory back
//! because equal pages are shared, and the pages of zeroes are all equal. The guest's kernel does not need
//! the pages either: they are free afterwards, and the first that a balloon takes.

use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;

use super::content::{Content, Mix};
use super::kind::{Allowed, Kind, PAUSE, Parameter, RATE, SIZE, Size, THREADS};
use super::pageset::{OwnPages, PageSet};
use super::spec::parse;
use super::{Failure, Work, Worker};

pub(super) const KIND: Kind = Kind {
    usage: "boot",
    does: "zeroes memory as Windows does when it boots, reads it back, frees it, and ends",
    parameters: &[SIZE, THREADS, CHECK, RATE, PAUSE],
    ends: true,
    size: |spec, kernel| Ok(Size::Passing(spec.pages.unwrap_or(kernel.ram_capacity()))),
    build: |builder| {
        let check = builder.spec.get(&CHECK, parse);
        let zeroes = Content::new(Mix::Zero, 0);
        let set = Arc::new(PageSet::map(builder.kernel, builder.pages, zeroes));
        Ok(builder.each(|share, random| Zeroer {
            pages: Some(OwnPages {
                set: Arc::clone(&set),
                share,
            }),
            zeroed: 0,
            seen: 0,
            check,
            random,
        }))
    },
    ..Kind::PLAIN
};

const CHECK: Parameter = Parameter {
    name: "check",
    default: Some("100"),
    allowed: Allowed::Range(0, 100),
    effect: "how many of 100 pages it reads back before it frees them; Windows reads none",
};

/// One thread that zeroes its pages.
#[derive(Debug)]
struct Zeroer {
    /// `None` when all is done.
    pages: Option<OwnPages>,
    zeroed: u32,
    /// Pages that were read back, or need not be.
    seen: u32,
    check: u32,
    random: StdRng,
}

impl Worker for Zeroer {
    fn step(&mut self) -> Result<Option<Work>, Failure> {
        let Some(pages) = &self.pages else {
            return Ok(None);
        };
        let count = pages.count();
        if self.zeroed < count {
            let done = pages.write(self.zeroed)?;
            self.zeroed += 1;
            return Ok(Some(done));
        }
        while self.seen < count && self.random.random_range(0..100) >= self.check {
            self.seen += 1;
        }
        if self.seen == count {
            // The last thread that is done frees the memory.
            self.pages = None;
            return Ok(None);
        }
        let done = pages.verify(self.seen);
        // A wrong page counts as seen, or it would be reported again and again.
        self.seen += u32::from(!matches!(done, Err(Failure::Kernel(_))));
        done.map(Some)
    }

    fn is_over(&self) -> bool {
        self.pages.is_none()
    }

    fn to_verify(&self) -> u32 {
        self.pages.as_ref().map_or(0, |_| self.zeroed)
    }

    fn verify(&mut self, number: u32) -> Result<Work, Failure> {
        let verify = |pages: &OwnPages| pages.verify(number);
        self.pages.as_ref().map_or(Ok(Work::default()), verify)
    }
}
