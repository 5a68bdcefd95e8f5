//! The entries of page lists, which hold a page number and a status.

#[cfg(test)]
use proptest::prelude::*;

use super::PageStatus;
use super::declare::{ANY, Carried, Field, Of};
#[cfg(test)]
use super::document::Table;
use crate::{DecodeError, Gfn, Reader, Writer};

/// The status of an entry that has not been answered yet. An agent sends it, a host never does.
pub const PAGE_NOT_ANSWERED: u64 = 0;

/// The low bits of an entry have the status, as in VMware's driver: a page number times 4096 leaves 12 of them.
const STATUS_BITS: u32 = 12;
const STATUS_MASK: u64 = (1 << STATUS_BITS) - 1;

/// An entry of a page list: a page number above, its status below.
///
/// The page number has 52 bits, more than the 32 of a gfn, because that is how VMware's driver has it: a page behind
/// the last gfn is INVALID, and does not break the form of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedPage {
    /// The page number.
    pub page: u64,
    /// What became of the page; `None` in a request.
    pub status: Option<PageStatus>,
}

impl ListedPage {
    /// An entry of a request.
    #[must_use]
    pub const fn asked(page: u64) -> Self {
        Self { page, status: None }
    }

    /// The entry of the answer.
    #[must_use]
    pub const fn answered(self, status: PageStatus) -> Self {
        Self {
            status: Some(status),
            ..self
        }
    }
}

group! {
    /// A [`ListedPage`] in a message.
    pub(super) struct Entry {
        /// page number times 4096, and [a status](#page-lists)
        entry: u64,
    }
}

group! {
    /// A [`Gfn`] of an array.
    pub(super) struct Number {
        /// of any page
        number "page number": u32,
    }
}

impl Carried for Gfn {
    type By = Number;

    fn pack(&self) -> Number {
        Number { number: self.0 }
    }

    fn unpack(Number { number }: Number) -> Result<Self, DecodeError> {
        Ok(Self(number))
    }
}

impl Carried for ListedPage {
    type By = Entry;

    /// A status is one more than its number, because zero means that there is none.
    fn pack(&self) -> Entry {
        let status = self
            .status
            .map_or(PAGE_NOT_ANSWERED, |status| status as u64 + 1);
        let entry = self.page << STATUS_BITS | status;
        Entry { entry }
    }

    fn unpack(Entry { entry }: Entry) -> Result<Self, DecodeError> {
        let most = PageStatus::ALL.len() as u64;
        let status = entry & STATUS_MASK;
        Of::part("page status", "", PAGE_NOT_ANSWERED..=most).check(status)?;
        Ok(Self {
            page: entry >> STATUS_BITS,
            status: status
                .checked_sub(1)
                .and_then(|number| PageStatus::ALL.get(number as usize).copied()),
        })
    }

    #[cfg(test)]
    fn any_packed() -> BoxedStrategy<Entry> {
        let most = PageStatus::ALL.len() as u64;
        (0..1_u64 << 52, 0..=most)
            .prop_map(|(page, status)| Entry {
                entry: page << STATUS_BITS | status,
            })
            .boxed()
    }
}
