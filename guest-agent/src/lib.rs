//! What runs inside a memvisor guest, and the words it exchanges with its host.
//!
//! - [`protocol`]: the messages of both sockets: types, limits, versions, codec. No I/O.
//! - [`balloon`]: the agent: gives pages of the guest to its host and takes them back.
//! - [`shim`]: the virtual hardware: RAM mapping, memory thread, fault handler. The guest's operator
//!   trusts it; it is the only part with `unsafe`.

pub mod balloon;
pub mod protocol;
pub mod shim;
