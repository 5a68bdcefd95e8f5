//! Control laws: where each balloon is to go, and how fast.
//!
//! Division says how much memory a VM may hold. Between that and a balloon is a loop: the balloon moves with a delay,
//! its guest may give pages that cost nothing, page for it, or need them back, and all of that shows only later. Most
//! balloon controllers that people write fail in that loop, each in its own way: they take a fixed part whatever the
//! guest does, they count on what is free at the moment, they derive the next target from what the balloon holds. So
//! the loop has a seam of its own, and laws that close it in other ways than ESX can be tried on the same host.
//!
//! A [`Law`] gets what the host knows of one VM ([`Seen`]) and what it remembered itself ([`Memory`]); it returns a
//! target and a pace ([`Step`]). Three things are not its business, and it cannot get them wrong:
//!
//! - *Bounds.* The target stays between [`Seen::least`] and [`Seen::most`], whatever a law says: maxima, reservation,
//!   limit, relief, what a state allows.
//! - *The pace.* The target moves from the previous target. It is never computed from what the balloon holds: such a
//!   target stands still when the balloon does, and a release that got stuck half way stays stuck.
//! - *What balloons do not bring.* Whatever a law leaves out is evicted, by the rules of the free-memory states.
//!
//! A law keeps nothing by itself: its memory is part of the snapshot, and the plan returns the next one. So a plan is
//! still a pure function, and can be made again with one thing different.
//!
//! A new law is a file beside `law/esx.rs` and a line in [`ALL`]. The properties in `properties.rs` hold for each law
//! that is listed there, and `memvisor balloon laws` runs it through what others have run into.

mod esx;
mod pid;
mod senpai;

#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

pub use self::esx::Esx;
pub use self::pid::Pid;
pub use self::senpai::Senpai;
pub use super::fair::{Allotment, Satisfied};
use super::snapshot::VmSnapshot;
use super::{Config, FreeState};
use crate::units::Pages;

/// All laws. The first one is the default.
pub const ALL: &[&dyn Law] = &[&Esx, &Pid, &Senpai];

/// The names of [`ALL`].
pub const NAMES: &[&str] = &["esx", "pid", "senpai"];

/// The longest time between two plans that counts, in milliseconds: nobody knows what happened in a longer one.
const LONGEST: u64 = 5000;

/// How the balloon of a VM is led. See the module text.
pub trait Law: Sync {
    /// Its name, for settings and status: one word.
    fn name(&self) -> &'static str;

    /// What it does, in a line.
    fn about(&self) -> &'static str;

    /// Where the balloon is to go, and how fast. `memory` is what the law left in it at the latest plan for this VM,
    /// or the default if there was none.
    fn step(&self, seen: &Seen<'_>, memory: &mut Memory) -> Step;
}

/// What a law knows of a VM, and of its host.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The VM.
    pub vm: &'a VmSnapshot,
    /// What division gives it.
    pub part: Allotment,
    /// The settings, those of the laws among them.
    pub config: &'a Config,
    /// All the host pages the daemon may use.
    pub budget: Pages,
    /// Those that are not in use.
    pub host_free: Pages,
    /// How short the host is.
    pub state: FreeState,
    /// Whether balloons grow in this state.
    pub inflates: bool,
    /// The least that the target can be: what the limit of the VM asks for, and in a state that gives nothing, what the
    /// balloon holds.
    pub least: Pages,
    /// The most that it can be.
    pub most: Pages,
    /// Milliseconds since the latest plan, at most five seconds; 0: there was none.
    pub elapsed_ms: u64,
}

/// What a law remembers of a VM between two plans. Beside the target, the numbers mean what the law wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// The target of the latest plan. `None`: there was none, and the law begins.
    pub target: Option<Pages>,
    /// A sum over time. `pid`: its integral, in thousandths of a page. `senpai`: microseconds of stall.
    pub sum: i64,
    /// An earlier value. `pid`: its error, smoothed, in thousandths of a page.
    pub last: i64,
    /// Milliseconds since something happened. `senpai`: since it moved the target.
    pub waited_ms: u64,
}

/// What a law decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// The guest pages that the balloon is to hold in the end.
    pub target: Pages,
    /// How fast the target goes there from where it was, in pages a second.
    pub pace: u64,
}

impl Step {
    /// To `target` without delay: the agent alone decides how fast the balloon follows.
    #[must_use]
    pub const fn at_once(target: Pages) -> Self {
        Self {
            target,
            pace: u64::MAX,
        }
    }
}

impl Seen<'_> {
    /// The pages with content, wherever they are: the guest may want to use all of them.
    #[must_use]
    pub fn wanted(&self) -> Pages {
        let vm = self.vm;
        super::total([vm.resident, vm.shared, vm.compressed, vm.swapped])
    }

    /// The pages that count against its part. While the host is short, evicted pages do too: the guest will touch them
    /// again, and only a balloon makes it want less.
    #[must_use]
    pub fn counted(&self) -> Pages {
        if self.state.is_short() {
            self.wanted()
        } else {
            self.vm.allocation()
        }
    }

    /// The target of the latest plan; where there was none, what the balloon holds.
    #[must_use]
    pub fn before(&self, memory: &Memory) -> Pages {
        let before = memory.target.unwrap_or(self.vm.ballooned);
        before.clamp(self.least, self.most)
    }
}

/// The target that a law gives a VM, within its bounds, and what it remembers.
pub(super) fn follow(seen: &Seen<'_>) -> (Pages, Memory) {
    let seen = &Seen {
        elapsed_ms: seen.elapsed_ms.min(LONGEST),
        ..*seen
    };
    let mut memory = seen.vm.law;
    let before = seen.before(&memory);
    let step = seen.config.law.step(seen, &mut memory);
    let wanted = step.target.clamp(seen.least, seen.most);
    let way = step.pace.saturating_mul(seen.elapsed_ms) / 1000;
    let target = match step.pace {
        u64::MAX => wanted,
        _ => Pages(
            wanted
                .0
                .clamp(before.0.saturating_sub(way), before.0.saturating_add(way)),
        ),
    };
    memory.target = Some(target);
    (target, memory)
}

/// A text that names no law.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("there is no control law `{}`; allowed: {}", .0.escape_debug(), NAMES.join(", "))]
pub struct UnknownLaw(String);

/// The law of that name.
///
/// # Errors
/// [`UnknownLaw`], with the names that exist.
pub fn named(name: &str) -> Result<&'static dyn Law, UnknownLaw> {
    let found = ALL.iter().find(|law| law.name() == name);
    found.copied().ok_or_else(|| UnknownLaw(name.to_owned()))
}

impl Default for &'static dyn Law {
    fn default() -> Self {
        ALL[0]
    }
}

impl Serialize for dyn Law {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for &'static dyn Law {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        named(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

impl fmt::Debug for dyn Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for dyn Law {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for dyn Law {}
