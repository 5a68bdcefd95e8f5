//! What settings that change ask of a VM's stores: a cache that is above its cap or its limit shrinks, a swap file
//! moves to another directory, disk space behind its end is given back.
//!
//! All of it is done by the worker, because only it writes to the stores, and in small steps, because
//! it has other things to do.

use std::time::{Duration, Instant};

use super::stash::trim_cache;
use crate::swap::Progress;
use crate::units::Pages;
use crate::vm::Vm;

/// Pages that one step moves from the cache or copies to another swap file.
const STEP: u16 = 64;
/// How long to wait when the swap file takes nothing, or somebody still reads from the old one.
const PAUSE: Duration = Duration::from_millis(50);

/// When the next step is due; nothing is until something was found to do.
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
        let waits = trimmed == Pages(0) && vm.zip.lock().is_above_limit();
        let copying = match vm.swap.step_move(STEP.into()) {
            Ok(Progress::Moving { left }) => Some(left),
            Ok(Progress::Done) => {
                let dir = vm.swap.dir();
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
        if let Err(error) = vm.swap.trim() {
            tracing::debug!(vm = %vm.params.name, %error, "disk space is given back later");
        }
        self.due = if trimmed > Pages(0) || copying.is_some_and(|left| left > Pages(0)) {
            Some(now)
        } else if waits || copying.is_some() {
            Some(now + PAUSE)
        } else {
            None
        };
    }
}
