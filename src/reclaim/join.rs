//! Moving a VM to another sharing domain while it runs.
//!
//! No frame of the old pool may be mapped when the shim gets the new one, or the daemon would look for
//! a page's frame in the wrong pool. So sharing stops, the shared pages get memory of their own, batch
//! by batch between the other jobs of the worker, and then the pools change.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::EngineError;
use crate::pool::Pool;
use crate::share::{Leaver, Left};
use crate::vm::Vm;

/// How long to wait when there is no memory for the pages, or some of them are busy.
const PAUSE: Duration = Duration::from_millis(20);

/// A move that is under way.
#[derive(Debug)]
pub(super) struct Joining {
    leaver: Leaver,
    /// The pool to share in afterwards; none: sharing stays forbidden.
    pool: Option<Arc<Pool>>,
    due: Instant,
}

impl Joining {
    /// Begins a move; a later one replaces an earlier one.
    pub(super) fn begin(vm: &Vm, pool: Option<Arc<Pool>>, now: Instant) -> Self {
        vm.set_sharing(false);
        Self {
            leaver: Leaver::default(),
            pool,
            due: now,
        }
    }

    /// When the next step is due.
    pub(super) const fn due(&self) -> Instant {
        self.due
    }

    /// Takes a step if it is due; whether the move is over.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub(super) fn step(&mut self, vm: &Vm, now: Instant) -> Result<bool, EngineError> {
        if now < self.due {
            return Ok(false);
        }
        match self.leaver.step(vm)? {
            Left::Some => Ok(false),
            Left::Waits => {
                self.due = now + PAUSE;
                Ok(false)
            }
            Left::Everything => {
                if let Some(pool) = &self.pool {
                    enter(vm, pool)?;
                }
                Ok(true)
            }
        }
    }
}

fn enter(vm: &Vm, pool: &Arc<Pool>) -> Result<(), EngineError> {
    if !Arc::ptr_eq(pool, &vm.pool()) {
        let what = "open a pool to read";
        let fd = pool
            .read_only_fd()
            .map_err(|source| EngineError::Kernel { what, source })?;
        vm.engine.set_pool(fd.as_fd())?;
        vm.set_pool(Arc::clone(pool));
    }
    vm.set_sharing(true);
    Ok(())
}
