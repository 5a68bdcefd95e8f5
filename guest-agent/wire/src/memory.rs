//! The memory protocol between the shim of a guest and the daemon, over `memory.sock`.
//! `docs/memory-protocol.md` has the byte tables; a test decodes its worked example.
//!
//! One connection is one VM. The connection opens with a handshake,
//!
//! ```text
//! shim                                   daemon
//!  | HELLO name, pages, wishes ----------> |  refuses with ERROR, or makes a VM
//!  | <---- WELCOME engine, token + fds     |  fds: RAM (read-write), share pool (read-only);
//!  |                                       |       inline: claim table, arena and swap file (read-only)
//!  | READY base, channels + fd ----------> |  fd: userfaultfd (uffd engine only)
//!  | <------------------------- GO + fds   |  fds: fault channels; from here on guest threads may touch RAM
//! ```
//!
//! and then carries [`Command`]s to the shim's memory thread, one at a time; an [`Ack`] answers each.
//! Faults that the kernel reports by a signal travel over the *fault channels*, socket pairs that the
//! daemon made. The faulting thread takes a free channel, sends a [`Fault`], waits for the [`Reply`],
//! does what the reply says and, if that changed a mapping, sends [`Fault::Done`]. These messages have
//! a fixed size and encode without allocating, because a signal handler sends them.

mod channel;
mod command;
mod shares;

pub use channel::{FAULT_BYTES, Fault, REPLY_BYTES, Reply};
pub use command::{Ack, Command, Op, Remap};
pub use shares::{Shares, SharesError};

use crate::vm_name::NAME_MAX;
use crate::{DecodeError, Reader, Writer};

/// The version of this protocol. Both sides come from one build, so it must match exactly.
pub const VERSION: u16 = 8;
/// The longest message: a command of [`MAX_RUNS`] runs, rounded up.
pub const MAX_MESSAGE: usize = 16 * 1024;
/// Runs in one command. Each run takes a system call, and 1024 of them keep the memory thread busy for about 3 ms.
pub const MAX_RUNS: usize = 1024;
/// Bytes of a VM's name.
pub const MAX_NAME: usize = NAME_MAX;
/// Bytes of a salt and of the workload text shown by `vm show`.
pub const MAX_TEXT: usize = 256;
/// Fault channels of a guest: how many of its threads can wait for an answer of the daemon at once.
pub const MAX_CHANNELS: usize = 16;
/// Pages in one [`Fault::Attach`]: reading and comparing them takes the VM's worker a millisecond or two.
pub const MAX_ATTACH: u32 = 1024;
/// Bytes of the text of an error or of a page's history.
pub const MAX_REPORT: usize = 4096;

/// How the daemon makes accesses to guest memory wait for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// `userfaultfd` on the RAM mapping.
    Uffd,
    /// Page protection and SIGSEGV alone.
    Mprotect,
}

impl Engine {
    const fn code(self) -> u16 {
        match self {
            Self::Uffd => 1,
            Self::Mprotect => 2,
        }
    }

    fn from_code(code: u16) -> Result<Self, DecodeError> {
        match code {
            1 => Ok(Self::Uffd),
            2 => Ok(Self::Mprotect),
            _ => Err(DecodeError::Value {
                field: "engine",
                value: code.into(),
                allowed: "1 (uffd) or 2 (mprotect)".into(),
            }),
        }
    }

    /// The name used on command lines and in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uffd => "uffd",
            Self::Mprotect => "mprotect",
        }
    }
}

/// What a guest asks for when it is powered on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The VM's name, unique on its host.
    pub name: String,
    /// Configured size in pages.
    pub pages: u32,
    /// Whether this process could open a userfaultfd with the features the engine needs.
    pub uffd: bool,
    /// Guaranteed memory in pages.
    pub reservation: u32,
    /// The most memory in pages the VM may use; `pages` if there is no limit.
    pub limit: u32,
    /// The weight of this VM when memory is short.
    pub shares: u32,
    /// The most pages its balloon may hold; `u32::MAX` leaves that to the host.
    pub balloon_max: u32,
    /// Whether pages of this VM may be shared at all.
    pub sharing: bool,
    /// The salt of its sharing domain. Empty: a domain of its own.
    pub salt: Option<String>,
    /// What the guest runs, for display only.
    pub workload: String,
    /// Whether the shim can serve some of its faults by itself ([`claims`](crate::claims)).
    pub inline: bool,
    /// The resource pool that it is to be in. Empty: the root.
    pub resource_pool: String,
}

/// The daemon's answer to [`Hello`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The number of the VM.
    pub vm: u32,
    /// The engine that the daemon chose.
    pub engine: Engine,
    /// Proves to the balloon socket that an agent belongs to this VM.
    pub token: u64,
    /// Frames of the share pool, holes included.
    pub pool_frames: u32,
    /// Pages of the arena of compressed pages, holes included; `None` if the daemon serves all faults of this guest.
    pub arena_pages: Option<u32>,
}

/// The shim has mapped RAM and can take commands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ready {
    /// Where RAM starts in the guest process.
    pub base: u64,
    /// How many fault channels the shim wants.
    pub channels: u16,
}

/// Every message of the connection itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Shim to daemon: power on.
    Hello(Hello),
    /// Daemon to shim: accepted.
    Welcome(Welcome),
    /// Shim to daemon: RAM is mapped.
    Ready(Ready),
    /// Daemon to shim, with the shim's ends of the fault channels: run.
    Go,
    /// Daemon to shim: remap.
    Command(Command),
    /// Shim to daemon: remapped.
    Ack(Ack),
    /// Either way: why the connection ends now.
    Error(String),
    /// Daemon to shim, with a descriptor: from here on, frames are those of another pool. No page is
    /// mapped from the old pool any more. The shim acknowledges it like a command without runs.
    Pool {
        /// A number of the same sequence as that of the commands.
        seq: u32,
    },
}

const HELLO: u16 = 1;
const WELCOME: u16 = 2;
const READY: u16 = 3;
const GO: u16 = 4;
const COMMAND: u16 = 5;
const ACK: u16 = 6;
const ERROR: u16 = 7;
const POOL: u16 = 8;

/// Stands in place of the pages of the arena where the daemon serves all faults of the guest.
const NOT_INLINE: u32 = 0;

const NO_SALT: u16 = 0;
const WITH_SALT: u16 = 1;

impl Message {
    /// The message as a datagram.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u16(VERSION);
        match self {
            Self::Hello(hello) => hello.write(w.u16(HELLO)),
            Self::Welcome(welcome) => {
                w.u16(WELCOME).u32(welcome.vm).u16(welcome.engine.code());
                w.u64(welcome.token).u32(welcome.pool_frames);
                w.u32(welcome.arena_pages.unwrap_or(NOT_INLINE));
            }
            Self::Ready(ready) => {
                w.u16(READY).u64(ready.base).u16(ready.channels);
            }
            Self::Go => {
                w.u16(GO);
            }
            Self::Command(command) => command.write(w.u16(COMMAND)),
            Self::Ack(ack) => {
                w.u16(ACK).u32(ack.seq).u32(ack.done).u32(ack.errno);
            }
            Self::Error(text) => {
                w.u16(ERROR).text(text);
            }
            Self::Pool { seq } => {
                w.u16(POOL).u32(*seq);
            }
        }
        w.finish()
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// [`DecodeError`] names the field, its value and what is allowed.
    pub fn decode(datagram: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(datagram);
        let theirs = r.u16("version")?;
        // Before anything else is read: another version may have another layout from the type on.
        if theirs != VERSION {
            return Err(DecodeError::Version {
                protocol: "memory",
                theirs,
                ours: VERSION,
            });
        }
        let message = match r.u16("type")? {
            HELLO => Self::Hello(Hello::read(&mut r)?),
            WELCOME => Self::Welcome(Welcome {
                vm: r.u32("vm")?,
                engine: Engine::from_code(r.u16("engine")?)?,
                token: r.u64("token")?,
                pool_frames: r.u32("pool_frames")?,
                arena_pages: match r.u32("arena_pages")? {
                    NOT_INLINE => None,
                    pages => Some(pages),
                },
            }),
            READY => Self::Ready(Ready {
                base: r.u64("base")?,
                channels: r.u16("channels")?,
            }),
            GO => Self::Go,
            COMMAND => Self::Command(Command::read(&mut r)?),
            ACK => Self::Ack(Ack {
                seq: r.u32("seq")?,
                done: r.u32("done")?,
                errno: r.u32("errno")?,
            }),
            ERROR => Self::Error(r.text("text", MAX_REPORT)?.to_owned()),
            POOL => Self::Pool { seq: r.u32("seq")? },
            other => {
                return Err(DecodeError::Value {
                    field: "type",
                    value: u64::from(other),
                    allowed: "1 (hello) to 8 (pool)".into(),
                });
            }
        };
        r.end()?;
        Ok(message)
    }

    /// The name of the message, for errors about the order of messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "HELLO",
            Self::Welcome(_) => "WELCOME",
            Self::Ready(_) => "READY",
            Self::Go => "GO",
            Self::Command(_) => "COMMAND",
            Self::Ack(_) => "ACK",
            Self::Error(_) => "ERROR",
            Self::Pool { .. } => "POOL",
        }
    }
}

impl Hello {
    fn write(&self, w: &mut Writer) {
        w.text(&self.name).u32(self.pages).u16(u16::from(self.uffd));
        w.u32(self.reservation).u32(self.limit).u32(self.shares);
        w.u32(self.balloon_max).u16(u16::from(self.sharing));
        match &self.salt {
            None => w.u16(NO_SALT),
            Some(salt) => w.u16(WITH_SALT).text(salt),
        };
        w.text(&self.workload).u16(u16::from(self.inline));
        w.text(&self.resource_pool);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: r.text("name", MAX_NAME)?.to_owned(),
            pages: r.u32("pages")?,
            uffd: flag(r, "uffd")?,
            reservation: r.u32("reservation")?,
            limit: r.u32("limit")?,
            shares: r.u32("shares")?,
            balloon_max: r.u32("balloon_max")?,
            sharing: flag(r, "sharing")?,
            salt: match flag(r, "salt")? {
                false => None,
                true => Some(r.text("salt", MAX_TEXT)?.to_owned()),
            },
            workload: r.text("workload", MAX_TEXT)?.to_owned(),
            inline: flag(r, "inline")?,
            resource_pool: r.text("resource_pool", MAX_NAME)?.to_owned(),
        })
    }
}

fn flag(r: &mut Reader<'_>, field: &'static str) -> Result<bool, DecodeError> {
    match r.u16(field)? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(DecodeError::Value {
            field,
            value: u64::from(value),
            allowed: "0 (no) or 1 (yes)".into(),
        }),
    }
}

#[cfg(test)]
mod document;
#[cfg(test)]
mod tests;
