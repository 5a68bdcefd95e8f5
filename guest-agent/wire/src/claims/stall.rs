//! The causes for which threads of a guest stand still without the daemon.

use super::FIRST_STALL;

/// What a thread of the guest stood still for, without asking the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StallCause {
    /// It brought a page back from the compression cache.
    Refill,
    /// It replaced a shared page by a copy of its own.
    Break,
    /// It waited for another thread that had claimed the page.
    Asleep,
    /// It touched a page for the first time and put a page of zeroes there.
    Touch,
    /// It mapped a frozen page.
    Open,
    /// It brought a page back from the swap file.
    SwapIn,
}

impl StallCause {
    /// All causes, in the order of their words.
    pub const ALL: [Self; 6] = [
        Self::Refill,
        Self::Break,
        Self::Asleep,
        Self::Touch,
        Self::Open,
        Self::SwapIn,
    ];

    /// The word of the claim table in which its time adds up.
    #[must_use]
    pub const fn word(self) -> u32 {
        FIRST_STALL + self as u32
    }
}
