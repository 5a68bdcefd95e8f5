//! The objects to which physical pages belong: the reverse map of reclaim.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use memvisor_wire::Gfn;

use super::Kernel;
use super::pages::MAX_OBJECTS;

/// What became of a page that reclaim wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Eviction {
    /// It is free now.
    Freed {
        /// How long it took to write the page to the swap disk; zero for a page of a file.
        wrote: Duration,
    },
    /// Another thread is using the page right now, so it may be free or evictable in a moment.
    Busy,
    /// The page has to stay: the swap disk is full, or a disk failed to write it.
    Kept,
}

/// Something that owns physical pages and can give up single pages.
pub(super) trait Object: Send + Sync {
    /// Frees `gfn`, which was seen behind page `page` of this object. Never waits for the lock of a
    /// page.
    fn evict(&self, kernel: &Kernel, page: u32, gfn: Gfn) -> Eviction;
}

#[derive(Default)]
struct Table {
    objects: HashMap<u32, Arc<dyn Object>>,
    last: u32,
}

/// All objects by number. A page names its owner by a number, which costs 8 bytes per page and no
/// reference count.
#[derive(Default)]
pub(super) struct Objects(RwLock<Table>);

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Objects")
    }
}

impl Objects {
    /// Adds an object and returns its number, which is never 0.
    pub(super) fn add(&self, object: Arc<dyn Object>) -> u32 {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        loop {
            table.last = (table.last + 1) % MAX_OBJECTS;
            let number = table.last;
            // Numbers come round after 2^31 objects, and 0 stands for nobody.
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
        // Cloned, so that the table is not locked while the object evicts, which waits for the disk.
        table.objects.get(&number).cloned()
    }
}
