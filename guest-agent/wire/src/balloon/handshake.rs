//! `START` and `STARTED`: who the two sides are and what they agree on.

use bitflags::bitflags;

use super::{DecodeError, MAX_NAME_BYTES, MAX_RANGES, Reader, VERSION, Writer, cut, value};

bitflags! {
    /// What an agent can do. The host answers with the capabilities that it will use.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Capabilities: u32 {
        /// More than one range in a `LOCK` or `UNLOCK`.
        const BATCHED = 1;
        /// The host may send `TARGET` and `RESET` at any time. Without this capability the host
        /// speaks only when asked, and a `RESET` takes the place of the next reply.
        const DOORBELL = 1 << 1;
        /// The agent sends `STATS`.
        const STATS = 1 << 2;
        /// The agent sends `RELIEF` when its guest is short of memory.
        const RELIEF = 1 << 3;
    }
}

/// The first message of an agent, and the first after a reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The lowest version the agent speaks, from 1.
    pub min_version: u16,
    /// The highest version the agent speaks, at least `min_version`.
    pub max_version: u16,
    /// What the agent offers. Bits unknown to the host are ignored.
    pub capabilities: Capabilities,
    /// The secret that the virtual hardware of this VM gave to its guest. Nobody else knows it, so
    /// nobody else can balloon the VM.
    pub token: u64,
    /// How many pages of RAM the guest sees.
    pub total_pages: u64,
    /// What the guest calls itself, for people; at most [`MAX_NAME_BYTES`] bytes.
    pub name: String,
}

impl Start {
    /// The version both sides will speak: the highest common one. So far there is only one version.
    #[must_use]
    pub fn agreed_version(&self) -> Option<u16> {
        (self.min_version..=self.max_version)
            .contains(&VERSION)
            .then_some(VERSION)
    }
}

/// The host's consent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// The offered capabilities that the host will use.
    pub capabilities: Capabilities,
    /// The number of the VM, as shown by `memvisor top`.
    pub vm: u32,
    /// How often the agent should ask for its target, in milliseconds, at least 1.
    pub poll_interval_ms: u32,
    /// Ranges that the host accepts in one batch, 1 to [`MAX_RANGES`].
    pub max_ranges: u32,
    /// The most pages that this balloon may hold now. For information only, because it may change.
    pub balloon_max: u64,
}

impl Start {
    pub(super) fn write(&self, to: &mut Writer) {
        to.u16(self.min_version)
            .u16(self.max_version)
            .u32(self.capabilities.bits())
            .u64(self.token)
            .u64(self.total_pages)
            .text(cut(&self.name, MAX_NAME_BYTES));
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let min_version = from.u16("min_version")?;
        let max_version = from.u16("max_version")?;
        if min_version == 0 {
            return Err(value("min_version", 0_u32, "1 and up"));
        }
        if max_version < min_version {
            return Err(value("max_version", max_version, "min_version and up"));
        }
        Ok(Self {
            min_version,
            max_version,
            capabilities: Capabilities::from_bits_truncate(from.u32("capabilities")?),
            token: from.u64("token")?,
            total_pages: from.u64("total_pages")?,
            name: from.text("name", MAX_NAME_BYTES)?.to_owned(),
        })
    }
}

impl Started {
    pub(super) fn write(&self, to: &mut Writer) {
        to.u32(self.capabilities.bits())
            .u32(self.vm)
            .u32(self.poll_interval_ms)
            .u32(self.max_ranges)
            .u64(self.balloon_max);
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let started = Self {
            capabilities: Capabilities::from_bits_truncate(from.u32("capabilities")?),
            vm: from.u32("vm")?,
            poll_interval_ms: from.u32("poll_interval_ms")?,
            max_ranges: from.u32("max_ranges")?,
            balloon_max: from.u64("balloon_max")?,
        };
        if started.poll_interval_ms == 0 {
            return Err(value("poll_interval_ms", 0_u32, "1 and up"));
        }
        if !(1..=MAX_RANGES as u32).contains(&started.max_ranges) {
            return Err(value("max_ranges", started.max_ranges, "1 to 512"));
        }
        Ok(started)
    }
}
