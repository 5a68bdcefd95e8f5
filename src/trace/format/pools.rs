//! What a trace says of resource pools.

use serde::{Deserialize, Serialize};

use crate::units::Pages;

/// The resource pools of the host from now on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Pools {
    /// All of them, each after its parent; none if there is only the root, with nothing set.
    pub pools: Vec<PoolFacts>,
}

/// A resource pool.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PoolFacts {
    /// Its name.
    pub name: String,
    /// The name of the pool that it stands in; `None`: it is the root.
    pub parent: Option<String>,
    /// Its weight against the VMs and pools beside it.
    pub shares: u32,
    /// What those in it are guaranteed together.
    pub reservation: Pages,
    /// The most that those in it hold together; `None`: no limit.
    pub limit: Option<Pages>,
    /// Whether reservations in it that exceed its own are taken from its parent.
    pub expandable: bool,
    /// Whether the shares of the pools directly in it grow with what is in these.
    pub scalable: bool,
}
