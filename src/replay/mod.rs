//! Replays a trace: the policy and the choice of victims that ship, over guests that do what recorded ones did.
//!
//! The problem: to compare two policies one would run the same guests twice, but no two runs are the same, and a host
//! that serves people cannot be run again at all. The naive way, a model of reclamation that is written for the
//! comparison, compares the models: what it leaves out (hysteresis, batches, caches that are full, pages given ahead) is
//! what policies differ in.
//!
//! The structure: a [`Story`](story::Story) is what guests did, in the order of time: accesses, what their pages compress
//! to, VMs that come and go. A `Machine` plays it to the code of the daemon. Its page tables, budget, fault path,
//! sampling, compression caches, swap files, evictor, snapshots and plans are those that ship. Simulated is what is
//! around them: the clock, the hand on guest memory (an [`Engine`](crate::engine::Engine) that has none), and a disk that
//! remembers of a page only how to make it again. What pages hold is made up, so that it compresses to what was recorded.
//!
//! An access to a page that is there costs a look at its entry, so tens of millions of them pass in a second. What time
//! things take is a stated [`Costs`]. Two bounds stand beside the results (`bounds.rs`): the least that any host could
//! have brought back, and what a fair split that never changes would have.
//!
//! What replay cannot know is in docs/replay.md and ADR 23: guests do not become faster when they wait less, nothing is
//! shared, and no balloon moves.

mod bounds;
mod content;
mod costs;
mod counts;
mod error;
mod guest;
mod infer;
mod machine;
mod over_time;
mod page;
mod results;
mod split;
pub mod story;
mod told;

pub use costs::{CostError, Costs};
pub use counts::Counts;
pub use error::ReplayError;
pub use page::page;
pub use results::{Bound, Outcome, Results, replay};

use crate::policy::Policy;
use crate::settings::HostSettings;
use crate::units::Pages;

/// What a story is replayed with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The policies.
    pub policies: Vec<&'static dyn Policy>,
    /// The choices of victims, by their names.
    pub victims: Vec<&'static str>,
    /// The budget of the host.
    pub memory: Pages,
    /// The settings of the host, but for its choice of victims.
    pub settings: HostSettings,
    /// What takes how long.
    pub costs: Costs,
}

#[cfg(test)]
mod tests;
