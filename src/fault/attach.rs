//! Questions of the guest to attach pages: they come over a fault channel as faults do, and the answer goes back
//! there; in between they are the worker's, which alone commands the shim.

use crossbeam::channel::Sender;
use memvisor_guest_agent::protocol::memory::MAX_ATTACH;

use super::ended::Ended;
use crate::units::{Gfn, GfnRun};
use crate::vm::Vm;

/// Who attaches pages.
pub trait Attacher: Send + std::fmt::Debug {
    /// Has `pages` attached to frames with the bytes of as many pages from `source` on. How many were, from the
    /// first on, goes to `answer`, and then the bell of the VM is rung. `false`: not now, and there is no answer.
    fn attach(&self, pages: GfnRun, source: Gfn, answer: Sender<u32>) -> bool;
}

/// Whether the guest may ask for this.
///
/// # Errors
/// [`Ended::Protocol`]: it names what is not its RAM, or none or too many pages.
pub(super) fn check(vm: &Vm, pages: GfnRun, source: Gfn) -> Result<(), Ended> {
    let GfnRun { start, count } = pages;
    let size = vm.table.pages();
    let is_inside = |start: Gfn| u64::from(start.0) + u64::from(count) <= u64::from(size);
    let error = if !(1..=MAX_ATTACH).contains(&count) {
        format!("{count} pages to be attached; 1 to {MAX_ATTACH} are allowed")
    } else if !is_inside(start) || !is_inside(source) {
        format!("{count} pages to be attached at {start} from {source}, and it has {size} pages")
    } else {
        return Ok(());
    };
    Err(Ended::Protocol(error))
}
