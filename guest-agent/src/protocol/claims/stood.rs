//! What threads of a guest say for how long they stood still.

use super::FIRST_STOOD;

/// What a thread of the guest did while it stood still without the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stood {
    /// It brought a page back from the compression cache.
    Refill,
    /// It gave itself a copy of a shared page.
    Break,
    /// It waited for another thread that had claimed the page.
    Asleep,
    /// It gave itself a page of zeroes.
    Touch,
    /// It had a frozen page back.
    Open,
    /// It brought a page back from the swap file.
    SwapIn,
}

impl Stood {
    /// All there are.
    pub const ALL: [Self; 6] = [
        Self::Refill,
        Self::Break,
        Self::Asleep,
        Self::Touch,
        Self::Open,
        Self::SwapIn,
    ];

    /// The word of it.
    #[must_use]
    pub const fn word(self) -> u32 {
        FIRST_STOOD + self as u32
    }
}
