//! Questions of the guest to attach pages: they come over a fault channel as faults do, and the answer goes back
//! there; in between they are the worker's, which alone commands the shim.

use crossbeam::channel::{Receiver, Sender, bounded};
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

/// The one question of a VM that is under way.
#[derive(Debug)]
pub(super) struct Attaching {
    attacher: Box<dyn Attacher>,
    /// Over which channel it came, and where its answer comes.
    under_way: Option<(usize, Receiver<u32>)>,
}

impl Attaching {
    pub(super) fn new(attacher: Box<dyn Attacher>) -> Self {
        Self {
            attacher,
            under_way: None,
        }
    }

    /// Begins with a question that came over `channel`. `false`: it is to be answered by none.
    pub(super) fn begin(
        &mut self,
        vm: &Vm,
        channel: usize,
        pages: GfnRun,
        source: Gfn,
    ) -> Result<bool, Ended> {
        check(vm, pages, source)?;
        if self.under_way.is_some() {
            return Ok(false);
        }
        let (answer, wait) = bounded(1);
        let begun = self.attacher.attach(pages, source, answer);
        self.under_way = begun.then_some((channel, wait));
        Ok(begun)
    }

    /// The answer and the channel that it belongs to, when it has come.
    pub(super) fn answered(&mut self) -> Option<(usize, u32)> {
        let (channel, wait) = self.under_way.as_ref()?;
        // A worker that has ended does not answer: then the VM ends.
        let answer = (*channel, wait.try_recv().ok()?);
        self.under_way = None;
        Some(answer)
    }
}

fn check(vm: &Vm, pages: GfnRun, source: Gfn) -> Result<(), Ended> {
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
