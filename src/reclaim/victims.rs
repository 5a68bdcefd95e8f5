//! Which resident pages of a VM are evicted.
//!
//! A good victim is one that its guest does not want back soon. Nobody knows which, and guests differ. So there are
//! several choices, and a host follows one of them (`Memvisor.Victims`): *random* pages, as in ESX (`random`), or those
//! that nobody wanted back while they were frozen (`second_chance`). Each keeps its own state for each VM, and goes on
//! with it when a host comes back to it.
//!
//! What a choice says is a preference. Whatever it returns is frozen, copied and stored by the evictor alike, and where
//! it finds no page, the evictor takes any. So no choice can leave a host without a way out. It is asked once for each
//! batch.
//!
//! A new choice is a file beside `victims/random.rs` and a line in `KINDS`: the values of the setting, the benchmark
//! `victims` and the simulated machine follow from that.

mod random;
mod second_chance;

use std::fmt;

use rand::rngs::StdRng;

use self::random::Random;
pub(super) use self::random::random;
pub(super) use self::second_chance::{Dense, SecondChance, is_frozen};
use crate::engine::EngineError;
use crate::page::{Entry, PageGuard};
use crate::units::Gfn;
use crate::vm::Vm;

/// What a choice of victims knows of one VM. It belongs to the VM's worker.
pub(super) trait Victims: fmt::Debug + Send {
    /// Locks up to `want` resident pages, in any order. Those that are frozen already stay so.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    fn choose<'a>(
        &mut self,
        vm: &'a Vm,
        dice: &mut StdRng,
        want: usize,
    ) -> Result<Vec<PageGuard<'a>>, EngineError>;

    /// Where victims that do not compress go on waiting, frozen. `None`: they are swapped at once.
    fn dense(&mut self) -> Option<&mut Dense> {
        None
    }
}

/// A choice of victims.
struct Kind {
    name: &'static str,
    new: fn() -> Box<dyn Victims>,
}

/// Any pages, as in ESX.
pub const RANDOM: &str = "random";
/// Pages that nobody wanted back while they were frozen.
pub const SECOND_CHANCE: &str = "second-chance";

/// All choices. The first is the default.
const KINDS: &[Kind] = &[
    Kind {
        name: RANDOM,
        new: || Box::new(Random),
    },
    Kind {
        name: SECOND_CHANCE,
        new: || Box::<SecondChance>::default(),
    },
];

/// The names of all choices.
pub const NAMES: [&str; KINDS.len()] = {
    let mut names = [""; KINDS.len()];
    let mut at = 0;
    while at < KINDS.len() {
        names[at] = KINDS[at].name;
        at += 1;
    }
    names
};

/// One of the choices: its place in [`NAMES`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Choice(usize);

impl Choice {
    /// The choice of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().position(|known| *known == name).map(Self)
    }
}

/// The state of every choice for one VM.
#[derive(Debug)]
pub(super) struct Choices([Box<dyn Victims>; KINDS.len()]);

impl Choices {
    pub(super) fn of(&mut self, choice: Choice) -> &mut dyn Victims {
        &mut *self.0[choice.0]
    }
}

impl Default for Choices {
    fn default() -> Self {
        Self(std::array::from_fn(|at| (KINDS[at].new)()))
    }
}

/// All pages of the VM once, from `start` on and round.
fn round(vm: &Vm, start: u32) -> impl Iterator<Item = Gfn> {
    let pages = vm.table.pages();
    (start..pages).chain(0..start.min(pages)).map(Gfn)
}

/// Locks pages that qualify, until there are `want`. It takes no more out of `gfns` than it needs: that drains a queue.
pub(super) fn take<'a>(
    vm: &'a Vm,
    mut gfns: impl Iterator<Item = Gfn>,
    want: usize,
    qualifies: impl Fn(Entry) -> bool,
    chosen: &mut Vec<PageGuard<'a>>,
) {
    while chosen.len() < want
        && let Some(gfn) = gfns.next()
    {
        // Asked before the lock, because a look is cheaper than a lock, and again under it, when it cannot change. A
        // page of a large one cannot leave alone.
        if qualifies(vm.table.entry(gfn))
            && !vm.large.holds(gfn)
            && let Some(page) = vm.try_lock(gfn)
            && qualifies(page.entry())
        {
            chosen.push(page);
        }
    }
}
