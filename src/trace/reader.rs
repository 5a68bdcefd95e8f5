//! Reads a trace as far as it is whole.

use std::io::{self, Read};

use serde::de::DeserializeOwned;
use thiserror::Error;

use super::format::{
    BLOCK_HEAD, End, Event, HEAD, HostFacts, Kind, Lost, MAGIC, MOST, OLDEST, Pools, Stalls,
    VERSION, VmFacts, decode, sum,
};
use crate::units::VmId;

/// Where and why a trace could not be read on. What was read before is whole.
#[derive(Debug, Error)]
#[error("byte {at}: {why}")]
pub struct Stop {
    /// Where the block begins that could not be read.
    pub at: u64,
    /// Why.
    pub why: Why,
}

/// Why a trace could not be read on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Why {
    /// It is something else.
    #[error("this is no trace: it does not begin with `memtrace`")]
    NoTrace,
    /// It is of another version.
    #[error("a trace of version {0}; this memvisor reads versions {OLDEST} to {VERSION}")]
    Version(u32),
    /// It ends in the middle.
    #[error("the file is cut off: {missing} bytes of {of} are missing")]
    Cut {
        /// How many bytes are missing.
        missing: usize,
        /// Of what.
        of: &'static str,
    },
    /// Bytes of it have changed.
    #[error("the file is damaged: {0}")]
    Damaged(&'static str),
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(io::Error),
}

/// A block of a trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// Where it begins in the file.
    pub offset: u64,
    /// How many bytes it takes there.
    pub bytes: u64,
    /// Of which VM it is; 0: of the host.
    pub vm: VmId,
    /// When, in microseconds since the trace began.
    pub at_us: u64,
    /// What it says.
    pub record: Record,
}

/// What a block says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// Of the host.
    Host(HostFacts),
    /// Of a VM that appears, or whose settings have changed.
    Vm(VmFacts),
    /// Of a VM that leaves.
    Gone(Stalls),
    /// What happened to pages.
    Events(Vec<Event>),
    /// What is missing.
    Lost(Lost),
    /// That the trace is complete.
    End(End),
    /// Of the resource pools.
    Pools(Pools),
}

/// The blocks of a trace, one after the other. After an error there are no more.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    at: u64,
    is_over: bool,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// [`Stop`]: it is no trace that can be read.
    pub fn new(mut from: R) -> Result<Self, Stop> {
        let stop = |why| Stop { at: 0, why };
        let mut head = [0; HEAD];
        let got = fill(&mut from, &mut head).map_err(|error| stop(Why::Io(error)))?;
        let magic = &head[..got.min(MAGIC.len())];
        if magic != &MAGIC[..magic.len()] || got == 0 {
            return Err(stop(Why::NoTrace));
        }
        if got < HEAD {
            let missing = HEAD - got;
            let of = "the head";
            return Err(stop(Why::Cut { missing, of }));
        }
        let version = u32_at(&head, 8);
        if !(OLDEST..=VERSION).contains(&version) {
            return Err(stop(Why::Version(version)));
        }
        Ok(Self {
            from,
            at: HEAD as u64,
            is_over: false,
        })
    }

    fn block(&mut self) -> Result<Option<Block>, Why> {
        let mut head = [0; BLOCK_HEAD];
        let got = fill(&mut self.from, &mut head).map_err(Why::Io)?;
        if got == 0 {
            return Ok(None);
        }
        let cut = |got: usize, want: usize, of| match want - got {
            0 => Ok(()),
            missing => Err(Why::Cut { missing, of }),
        };
        cut(got, BLOCK_HEAD, "a block's head")?;
        let len = u32_at(&head, 16) as usize;
        if len > MOST {
            return Err(Why::Damaged("a block is longer than any may be"));
        }
        let mut bytes = vec![0; len];
        let got = fill(&mut self.from, &mut bytes).map_err(Why::Io)?;
        cut(got, len, "a block")?;
        let (checked, expected) = head.split_at(20);
        if sum(checked, &bytes).to_le_bytes() != expected {
            return Err(Why::Damaged("the checksum of a block is wrong"));
        }
        let at_us = u64::from(u32_at(&head, 8)) | u64::from(u32_at(&head, 12)) << 32;
        let record = record(u32_at(&head, 0), &bytes, at_us)?;
        Ok(Some(Block {
            offset: self.at,
            bytes: (BLOCK_HEAD + len) as u64,
            vm: VmId(u32_at(&head, 4)),
            at_us,
            record,
        }))
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Block, Stop>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let block = self.block().map_err(|why| Stop { at: self.at, why });
        match &block {
            Ok(Some(block)) => self.at += block.bytes,
            Ok(None) | Err(_) => self.is_over = true,
        }
        block.transpose()
    }
}

fn record(kind: u32, bytes: &[u8], at_us: u64) -> Result<Record, Why> {
    let kind = Kind::of(kind).ok_or(Why::Damaged("there is no such kind of block"))?;
    Ok(match kind {
        Kind::Host => Record::Host(json(bytes)?),
        Kind::Vm => Record::Vm(json(bytes)?),
        Kind::Gone => Record::Gone(json(bytes)?),
        Kind::Lost => Record::Lost(json(bytes)?),
        Kind::End => Record::End(json(bytes)?),
        Kind::Pools => Record::Pools(json(bytes)?),
        Kind::Events => Record::Events(
            decode(bytes, at_us).ok_or(Why::Damaged("a block's bytes are no events"))?,
        ),
    })
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Why> {
    serde_json::from_slice(bytes).map_err(|_| Why::Damaged("the facts of a block make no sense"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes[at..at + 4].try_into().expect("four bytes");
    u32::from_le_bytes(bytes)
}

/// Reads until `into` is full or the end comes; how much was read.
fn fill(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match from.read(&mut into[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Writer;
    use super::super::format::PoolFacts;
    use super::super::format::tests::event;
    use super::*;
    use crate::units::Pages;

    /// A trace of a host and two VMs.
    fn written(mut events: Vec<Event>) -> Vec<u8> {
        events.sort_by_key(|event| event.at_us);
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).expect("memory");
        let host = HostFacts {
            memory: Pages(1000),
            ..HostFacts::default()
        };
        let (at, vm) = (5, VmId(1));
        let whole = "memory";
        writer.facts(Kind::Host, VmId(0), at, &host).expect(whole);
        let facts = VmFacts::default();
        writer.facts(Kind::Vm, vm, at, &facts).expect(whole);
        for (vm, events) in (1..).zip(events.chunks(7)) {
            writer.events(VmId(vm), events).expect(whole);
        }
        let pools = Pools {
            pools: vec![PoolFacts::default()],
        };
        writer.facts(Kind::Pools, VmId(0), at, &pools).expect(whole);
        let lost = Lost { events: 3 };
        writer.facts(Kind::Lost, vm, at, &lost).expect(whole);
        let stalls = Stalls::default();
        writer.facts(Kind::Gone, vm, at, &stalls).expect(whole);
        let end = End::default();
        writer.facts(Kind::End, VmId(0), at, &end).expect(whole);
        assert_eq!(writer.count(), events.len() as u64);
        assert_eq!(writer.bytes(), bytes.len() as u64);
        bytes
    }

    fn read(bytes: &[u8]) -> (Vec<Block>, Option<Stop>) {
        let reader = match Reader::new(bytes) {
            Ok(reader) => reader,
            Err(stop) => return (Vec::new(), Some(stop)),
        };
        let mut blocks = Vec::new();
        for block in reader {
            match block {
                Ok(block) => blocks.push(block),
                Err(stop) => return (blocks, Some(stop)),
            }
        }
        (blocks, None)
    }

    #[test]
    fn other_files_and_versions_are_told() {
        let said = |bytes: &[u8]| read(bytes).1.expect("it stops").to_string();
        assert!(said(b"time_us,vm,gfn\n").contains("no trace"));
        assert!(said(b"").contains("no trace"));
        assert!(said(b"memtr").contains("7 bytes of the head are missing"));
        let other = "version 3; this memvisor reads versions 1 to 2";
        assert!(said(b"memtrace\x03\0\0\0").contains(other));
    }

    #[test]
    fn trace_of_version_1_is_read() {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).expect("memory");
        let facts = serde_json::json!({
            "name": "a", "pages": 7, "shares": 5, "reservation": 0, "limit": null
        });
        writer
            .facts(Kind::Vm, VmId(1), 0, &facts)
            .expect("in memory");
        bytes[8] = 1;
        let (blocks, stop) = read(&bytes);
        assert!(stop.is_none(), "{stop:?}");
        let Some(Record::Vm(vm)) = blocks.first().map(|block| &block.record) else {
            panic!("{blocks:?}");
        };
        assert_eq!((vm.pages, vm.pool.as_str()), (7, ""));
    }

    proptest! {
        #[test]
        fn trace_is_read_back(events in proptest::collection::vec(event(), 0..40)) {
            let (blocks, stop) = read(&written(events.clone()));
            prop_assert!(stop.is_none());
            let mut found: Vec<Event> = Vec::new();
            for block in &blocks {
                if let Record::Events(events) = &block.record {
                    found.extend(events);
                }
            }
            let mut events = events;
            events.sort_by_key(|event| event.at_us);
            prop_assert_eq!(found, events);
            prop_assert!(matches!(blocks.last().map(|it| &it.record), Some(Record::End(_))));
        }

        /// Whatever is cut off, all blocks before the cut are there, and the place of the cut is named.
        #[test]
        fn trace_that_is_cut_off_is_read_up_to_there(
            events in proptest::collection::vec(event(), 1..40),
            at: prop::sample::Index,
        ) {
            let bytes = written(events);
            let (whole, _) = read(&bytes);
            let cut = at.index(bytes.len());
            let (blocks, stop) = read(&bytes[..cut]);
            let expected: Vec<_> = whole
                .into_iter()
                .filter(|block| block.offset + block.bytes <= cut as u64)
                .collect();
            let end = expected.last().map_or(HEAD as u64, |last| last.offset + last.bytes);
            match stop {
                Some(stop) if cut >= HEAD => prop_assert_eq!(stop.at, end),
                Some(stop) => prop_assert_eq!(stop.at, 0),
                None => prop_assert_eq!(cut as u64, end, "the cut is between blocks"),
            }
            prop_assert_eq!(blocks, expected);
        }

        /// No flipped bit is taken for something that was written.
        #[test]
        fn trace_that_is_damaged_is_read_up_to_there(
            events in proptest::collection::vec(event(), 1..40),
            at: prop::sample::Index,
            bit in 0..8,
        ) {
            let mut bytes = written(events);
            let (whole, _) = read(&bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            let (blocks, stop) = read(&bytes);
            let stop = stop.expect("it is damaged");
            let expected: Vec<_> = whole
                .into_iter()
                .filter(|block| block.offset + block.bytes <= at as u64)
                .collect();
            prop_assert!(stop.at <= at as u64);
            prop_assert_eq!(blocks, expected);
        }
    }
}
