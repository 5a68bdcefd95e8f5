//! Writes a trace.

use std::io::{self, Write};

use serde::Serialize;

use super::format::{BLOCK_HEAD, Encoder, Event, Kind, MAGIC, MOST, MOST_OF_EVENT, VERSION, sum};
use crate::units::VmId;

/// Bytes after which a block of events is written: few enough that little is lost with a damaged one.
const BLOCK: usize = 64 << 10;

/// A trace that is being written.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    bytes: u64,
    events: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a trace.
    ///
    /// # Errors
    /// As writing.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        let bytes = super::format::HEAD as u64;
        Ok(Self {
            out,
            bytes,
            events: 0,
        })
    }

    /// Writes facts. `vm` is 0 for the host.
    ///
    /// # Errors
    /// As writing; facts that are too long for a block are invalid input.
    pub fn facts(
        &mut self,
        kind: Kind,
        vm: VmId,
        at_us: u64,
        facts: &impl Serialize,
    ) -> io::Result<()> {
        let json = serde_json::to_vec(facts)?;
        if json.len() > MOST {
            let text = format!("{} bytes of facts; at most {MOST} fit", json.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.block(kind, vm, at_us, &json)
    }

    /// Writes events of a VM, in the order of their times.
    ///
    /// # Errors
    /// As writing.
    pub fn events(&mut self, vm: VmId, events: &[Event]) -> io::Result<()> {
        let mut rest = events.iter().peekable();
        while let Some(first) = rest.peek() {
            let start_us = first.at_us;
            let mut encoder = Encoder::new(start_us);
            while encoder.len() + MOST_OF_EVENT <= BLOCK
                && let Some(event) = rest.next()
            {
                encoder.push(event);
                self.events += 1;
            }
            self.block(Kind::Events, vm, start_us, encoder.bytes())?;
        }
        Ok(())
    }

    fn block(&mut self, kind: Kind, vm: VmId, start_us: u64, bytes: &[u8]) -> io::Result<()> {
        let mut head = Vec::with_capacity(BLOCK_HEAD);
        head.extend((kind as u32).to_le_bytes());
        head.extend(vm.0.to_le_bytes());
        head.extend(start_us.to_le_bytes());
        let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        head.extend(len.to_le_bytes());
        let sum = sum(&head, bytes);
        head.extend(sum.to_le_bytes());
        self.out.write_all(&head)?;
        self.out.write_all(bytes)?;
        self.bytes += (BLOCK_HEAD + bytes.len()) as u64;
        Ok(())
    }

    /// Hands what is written to whoever is below.
    ///
    /// # Errors
    /// As writing.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// How many bytes the trace has so far.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many events it has so far.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.events
    }
}
