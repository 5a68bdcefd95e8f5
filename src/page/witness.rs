//! Who is told what happens to the pages of a VM.
//!
//! The table knows where pages are, and forgets where they were. Whoever wants to know more, such as the recorder of a
//! trace, is told at the moment itself, on the thread that moves the page and under the lock of the page. So a witness
//! must return at once, and may neither lock nor wait.

use std::fmt;
use std::sync::Arc;

use super::{Home, PageTable};
use crate::units::Gfn;

/// See the module text. A VM has one witness or none.
pub trait Witness: fmt::Debug + Send + Sync {
    /// A page has moved from one home to another.
    fn moved(&self, gfn: Gfn, from: Home, to: Home);

    /// The guest has accessed a resident page that was frozen: it wants it back, or the page was being sampled.
    fn accessed(&self, gfn: Gfn);

    /// The page was compressed, to that many bytes; the size of a page stands for one that does not compress to half.
    fn compressed(&self, gfn: Gfn, bytes: u32);

    /// The content of the page has this digest ([`crate::digest`]).
    fn hashed(&self, gfn: Gfn, digest: u64);
}

impl PageTable {
    /// The same table, of which `witness` is told what happens to its pages.
    #[must_use]
    pub fn witnessed(mut self, witness: Arc<dyn Witness>) -> Self {
        self.witness = Some(witness);
        self
    }

    /// Who is to be told what happens to the pages, if anybody is.
    #[must_use]
    pub fn witness(&self) -> Option<&dyn Witness> {
        self.witness.as_deref()
    }
}
