//! Adapts a VM's stores to settings that have changed: shrinks a cache that is above its cap or its limit, moves the
//! swap file to another directory, gives back disk space behind its end.
//!
//! The worker does all of this, because only the worker writes to the stores. It does so in small steps, because
//! it has other things to do.

use std::time::{Duration, Instant};

use super::stash::trim_cache;
use crate::swap::Progress;
use crate::units::Pages;
use crate::vm::Vm;

/// Pages that one step moves from the cache or copies to another swap file.
const STEP: u16 = 64;
/// How long to wait when the swap file takes nothing, or the old one is still being read.
const PAUSE: Duration = Duration::from_millis(50);

/// When the next step is due; `None`: at the worker's next turn, whenever that is.
#[derive(Debug, Default)]
pub(super) struct Stores {
    due: Option<Instant>,
}

impl Stores {
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Takes a step, unless it is too early for the next one.
    pub(super) fn step(&mut self, vm: &Vm, now: Instant) {
        if self.due.is_some_and(|due| now < due) {
            return;
        }
        let trimmed = trim_cache(vm, STEP.into());
        // The cache is too large, but its oldest pages can go nowhere now: this must not become a busy loop.
        let waits = trimmed == Pages(0) && vm.zip.lock().is_above_limit();
        let copying = match vm.swap.file.step_move(STEP.into()) {
            Ok(Progress::Moving { left }) => Some(left),
            Ok(Progress::Done) => {
                let dir = vm.swap.file.dir();
                tracing::info!(vm = %vm.params.name, dir = %dir.display(), "the swap file has moved");
                None
            }
            Ok(_) => None,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(vm = %vm.params.name, error, "the swap file stays where it was");
                None
            }
        };
        if let Err(error) = vm.swap.file.trim() {
            tracing::debug!(vm = %vm.params.name, %error, "disk space is given back later");
        }
        self.due = if trimmed > Pages(0) || copying.is_some_and(|left| left > Pages(0)) {
            // At once, but the worker does its other jobs in between.
            Some(now)
        } else if waits || copying.is_some() {
            Some(now + PAUSE)
        } else {
            None
        };
    }
}
