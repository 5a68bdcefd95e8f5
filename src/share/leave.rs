//! Leaving the pool: shared pages get memory of their own again, before the guest asks for it.
//!
//! For a VM whose sharing domain changes while it runs, or whose pages may not be shared any more. The
//! guest goes on meanwhile: until a page is mapped back it reads its frame, and afterwards the same
//! bytes in its own RAM.

use crate::engine::EngineError;
use crate::page::{Home, PageGuard, Urgency};
use crate::remap::rehome;
use crate::units::{FrameId, Gfn, PageBuf};
use crate::vm::Vm;

/// Pages that are moved at once.
const BATCH: usize = 64;

/// How far a VM has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// No page is shared any more.
    Everything,
    /// Some pages were moved, and there are more.
    Some,
    /// None could be moved: there is no memory for those that are left, or they are busy.
    Waits,
}

/// The walk of a VM that leaves its pool; belongs to its worker. Sharing must be forbidden first.
#[derive(Debug, Default)]
pub struct Leaver {
    cursor: u32,
}

impl Leaver {
    /// Moves the next shared pages back to RAM.
    ///
    /// # Errors
    /// [`EngineError`] when the guest or its session is gone.
    pub fn step(&mut self, vm: &Vm) -> Result<Left, EngineError> {
        if vm.table.count(Home::Shared(FrameId(0))) == 0 {
            return Ok(Left::Everything);
        }
        let mut copied = Vec::new();
        let ended = self.copy_back(vm, &mut copied);
        let left = if copied.is_empty() {
            Left::Waits
        } else {
            Left::Some
        };
        // Also after a failure: what is in RAM is paid for.
        rehome(vm, copied)?;
        ended.map(|()| left)
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
            if !vm.budget.take(1, Urgency::Touch) {
                break;
            }
            vm.pool().read(frame, &mut content);
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
