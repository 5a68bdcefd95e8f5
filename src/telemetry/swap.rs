//! Swapped pages.

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Pages};

/// The swap file of one VM, and its part of the host cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SwapStatus {
    /// Slots of the file in use.
    pub slots: u64,
    /// Pages the policy wants compressed or swapped; 0 when nothing is to be taken (ESX: SWTGT).
    pub target_pages: Pages,
    /// Read operations so far.
    pub reads: u64,
    /// Write operations so far.
    pub writes: u64,
    /// Bytes read so far.
    pub in_bytes: Bytes,
    /// Bytes written so far.
    pub out_bytes: Bytes,
    /// Write operations so far that the full or failing file refused.
    pub errors: u64,
    /// Pages in the host cache now (ESX: llSwapUsed).
    pub cached_pages: Pages,
    /// Bytes read from the host cache for the guest so far (ESX: LLSWR).
    pub cache_in_bytes: Bytes,
    /// Bytes written to the host cache so far (ESX: LLSWW).
    pub cache_out_bytes: Bytes,
    /// Operations so far that the full or failing host cache refused.
    pub cache_errors: u64,
    /// Pages so far that moved from the host cache to the file.
    pub demoted: u64,
    /// Pages so far that came back without being asked for by the guest.
    pub unswapped: u64,
    /// Pages that are to come back in a second because an operator has ordered it; 0: none.
    pub unswap_rate: u32,
}

/// The host cache of swapped pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SwapCacheStatus {
    /// How much of its directory the VMs may take; 0: there is none, or it is off.
    pub size_pages: Pages,
    /// How much they have taken: the length of their files there.
    pub taken_pages: Pages,
}
