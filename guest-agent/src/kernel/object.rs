//! What physical pages belong to: the reverse map of reclaim.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::Kernel;
use crate::protocol::Gfn;

/// What became of a page that reclaim wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Eviction {
    /// It is free now.
    Freed {
        /// For so long it was written to the swap disk.
        wrote: Duration,
    },
    /// Somebody is at it right now, so it may be free or evictable in a moment.
    Busy,
    /// It has to stay: there is no room on the swap disk.
    Kept,
}

/// Something that owns physical pages and can give single ones up.
pub(super) trait Object: Send + Sync {
    /// Frees `gfn`, which was seen behind page `page` of this object, without ever waiting for a
    /// lock of a page.
    fn evict(&self, kernel: &Kernel, page: u32, gfn: Gfn) -> Eviction;
}

#[derive(Default)]
struct Table {
    objects: HashMap<u32, Arc<dyn Object>>,
    last: u32,
}

/// All objects by number. Pages name their owner by a number, which costs them 8 bytes and no
/// reference count.
#[derive(Default)]
pub(super) struct Objects(RwLock<Table>);

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Objects")
    }
}

impl Objects {
    /// Adds an object and says its number, which is never 0.
    pub(super) fn add(&self, object: Arc<dyn Object>) -> u32 {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        loop {
            table.last = table.last.wrapping_add(1);
            let number = table.last;
            if number != 0 && !table.objects.contains_key(&number) {
                table.objects.insert(number, object);
                return number;
            }
        }
    }

    /// Removes an object that owns no page any more.
    pub(super) fn remove(&self, number: u32) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        table.objects.remove(&number);
    }

    /// The object with this number.
    pub(super) fn get(&self, number: u32) -> Option<Arc<dyn Object>> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.objects.get(&number).cloned()
    }
}
