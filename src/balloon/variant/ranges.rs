//! Ranges, and ranges with free page reporting.

use memvisor_wire::balloon::{ToAgent, ToHost};

use super::{Variant, result};
use crate::balloon::{BalloonVm, batch};

/// The guest names ranges, and is told what became of each page.
#[derive(Debug)]
pub(super) struct Ranges;

impl Variant for Ranges {
    fn answer(&mut self, vm: &dyn BalloonVm, message: &ToHost) -> Option<ToAgent> {
        Some(match message {
            ToHost::Lock(pages) => ToAgent::LockResult(result(vm, batch::lock(vm, pages))),
            ToHost::Unlock(pages) => ToAgent::UnlockResult(result(vm, batch::unlock(vm, pages))),
            _ => return None,
        })
    }
}

/// As [`Ranges`], and besides the guest reports ranges that it does not use. They are dropped and not in the balloon: a
/// touch of one is a first touch.
#[derive(Debug)]
pub(super) struct Reporting;

impl Variant for Reporting {
    fn answer(&mut self, vm: &dyn BalloonVm, message: &ToHost) -> Option<ToAgent> {
        match message {
            ToHost::Report(pages) => {
                batch::drop_content(vm, pages);
                Some(ToAgent::Reported)
            }
            other => Ranges.answer(vm, other),
        }
    }
}
