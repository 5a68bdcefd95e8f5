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
        let (mut copied, mut ended) = (Vec::new(), Ok(true));
        for _ in 0..vm.table.pages() {
            if copied.len() == BATCH || !matches!(ended, Ok(true)) {
                break;
            }
            let gfn = Gfn(self.cursor);
            self.cursor = (self.cursor + 1) % vm.table.pages();
            if !matches!(vm.table.entry(gfn).home(), Home::Shared(_)) {
                continue;
            }
            if let Some(page) = vm.try_lock(gfn) {
                ended = copy_back(vm, page, &mut copied);
            }
        }
        let moved = !copied.is_empty();
        // Also after a failure: what is in RAM is paid for.
        rehome(vm, copied)?;
        ended?;
        Ok(if moved { Left::Some } else { Left::Waits })
    }
}

/// Copies the frame of a locked page into RAM; `false` when there is no memory for it.
fn copy_back<'a>(
    vm: &Vm,
    page: PageGuard<'a>,
    copied: &mut Vec<(PageGuard<'a>, Home)>,
) -> Result<bool, EngineError> {
    let Home::Shared(frame) = page.home() else {
        return Ok(true);
    };
    if !vm.budget.take(1, Urgency::Touch) {
        return Ok(false);
    }
    let mut content = PageBuf::zeroed();
    vm.pool().read(frame, &mut content);
    match vm.engine.write_back(page.gfn(), &content) {
        Ok(()) => {
            copied.push((page, Home::Resident));
            Ok(true)
        }
        Err(error) => {
            vm.budget.give(1);
            Err(error)
        }
    }
}
