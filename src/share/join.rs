//! Moves a running VM to another sharing domain, or out of all domains.
//!
//! No frame of the old pool may be mapped when the shim gets the new pool, because the daemon would look for
//! a page's frame in the wrong one. So sharing stops, and the shared pages get memory of their own without being
//! asked for, batch by batch between the other jobs of the worker. Then the new pool replaces the old one.
//!
//! The guest goes on meanwhile. Until a page is mapped back the guest reads the frame, and afterwards the same
//! bytes in its own RAM.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memvisor_wire::system_error::cannot;

use crate::engine::EngineError;
use crate::page::{Home, PageGuard, Urgency};
use crate::pool::Pool;
use crate::remap::rehome;
use crate::units::{FrameId, Gfn, PageBuf};
use crate::vm::Vm;

/// Pages that are copied back at once.
const BATCH: usize = 64;
/// How long to wait when there is no memory for the pages, or some of them are busy.
/// Without a pause, one busy page of a stopped guest would keep a processor of the host busy.
const PAUSE: Duration = Duration::from_millis(20);

/// A move that is under way; belongs to the VM's worker.
#[derive(Debug)]
pub struct Joining {
    /// The pool to share in afterwards; `None`: sharing stays forbidden.
    pool: Option<Arc<Pool>>,
    cursor: u32,
    due: Instant,
}

impl Joining {
    /// Begins a move. A later move replaces an earlier one.
    #[must_use]
    pub fn begin(vm: &Vm, pool: Option<Arc<Pool>>, now: Instant) -> Self {
        vm.set_sharing(false);
        Self {
            pool,
            cursor: 0,
            due: now,
        }
    }

    /// When the next step is due.
    #[must_use]
    pub const fn due(&self) -> Instant {
        self.due
    }

    /// Takes a step if it is due; whether the move is over.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub fn step(&mut self, vm: &Vm, now: Instant) -> Result<bool, EngineError> {
        // The worker also comes by for its other jobs. The pause after a step in vain holds all the same.
        if now < self.due {
            return Ok(false);
        }
        if vm.table.count(Home::Shared(FrameId(0))) == 0 {
            if let Some(pool) = &self.pool {
                enter(vm, pool)?;
            }
            return Ok(true);
        }
        let mut copied = Vec::new();
        let ended = self.copy_back(vm, &mut copied);
        if copied.is_empty() {
            self.due = now + PAUSE;
        }
        // After a failure too: the copies that are in RAM are charged, and become the pages' homes.
        rehome(vm, copied)?;
        ended.map(|()| false)
    }

    /// Copies the frames of the next shared pages into RAM, as far as there is memory.
    fn copy_back<'a>(
        &mut self,
        vm: &'a Vm,
        copied: &mut Vec<(PageGuard<'a>, Home)>,
    ) -> Result<(), EngineError> {
        let is_shared = |gfn: &Gfn| matches!(vm.table.entry(*gfn).home(), Home::Shared(_));
        let mut content = PageBuf::zeroed();
        for _ in 0..vm.table.pages() {
            let gfn = Gfn(self.cursor);
            self.cursor = (self.cursor + 1) % vm.table.pages();
            let Some(page) = Some(gfn).filter(is_shared).and_then(|gfn| vm.try_lock(gfn)) else {
                continue;
            };
            let Home::Shared(frame) = page.home() else {
                continue;
            };
            // As a touch, which leaves the reserve alone: nobody waits for this copy.
            if !vm.budget.take(1, Urgency::Touch) {
                break;
            }
            vm.pool().read(frame, &mut content);
            // The frame stays mapped until `rehome`, so the copy must be complete before.
            if let Err(error) = vm.engine.write_back(gfn, &content) {
                vm.budget.give(1);
                return Err(error);
            }
            copied.push((page, Home::Resident));
            if copied.len() == BATCH {
                break;
            }
        }
        Ok(())
    }
}

fn enter(vm: &Vm, pool: &Arc<Pool>) -> Result<(), EngineError> {
    if !Arc::ptr_eq(pool, &vm.pool()) {
        let fd = pool.read_only_fd().map_err(cannot("open a pool to read"))?;
        vm.engine.set_pool(fd.as_fd())?;
        // The shim first: if it refuses, daemon and guest still agree on the old pool.
        vm.set_pool(Arc::clone(pool));
    }
    vm.set_sharing(true);
    Ok(())
}
