//! `idle`: fills memory once, if it was given a size, and then does nothing at all.

use super::kind::{CONTENT, Kind, Need, SIZE, Size};
use super::pageset::OwnPages;
use super::{Failure, Work, Worker};

pub(super) const KIND: Kind = Kind {
    usage: "idle",
    does: "fills memory once if it has a size, then does nothing",
    parameters: &[SIZE, CONTENT],
    need: |spec| Need::Pages(spec.pages.unwrap_or(0)),
    size: |spec, _| Ok(Size::Memory(spec.pages.unwrap_or(0))),
    build: |builder| match (builder.pages, builder.spec.lasts) {
        (0, None) => Ok(Vec::new()),
        // With a time it has a thread, which ends then.
        _ => Ok(builder.each_with_pages(|pages, _| Sleeper { pages })),
    },
    ..Kind::PLAIN
};

#[derive(Debug)]
struct Sleeper {
    pages: OwnPages,
}

impl Worker for Sleeper {
    fn pages(&self) -> Option<&OwnPages> {
        Some(&self.pages)
    }

    fn step(&mut self) -> Result<Option<Work>, Failure> {
        Ok(None)
    }
}
