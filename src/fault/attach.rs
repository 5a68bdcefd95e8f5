//! Requests of the guest to attach pages. A request comes over a fault channel, as a fault does, and the answer goes
//! back over it. The worker does the attaching, because only the worker commands the shim.

use crossbeam::channel::{Sender, bounded};
use memvisor_wire::memory::MAX_ATTACH;

use super::core::{Channel, Core};
use super::driver::Driver;
use super::ended::Ended;
use crate::engine::Reply;
use crate::units::{Gfn, GfnRun};
use crate::vm::Vm;

/// What attaches pages: the worker of the VM.
pub trait Attacher: Send + std::fmt::Debug {
    /// Has `pages` attached to frames that hold the bytes of the pages from `source` on. The number of pages that
    /// were attached, counted from the first, is sent to `answer`, and then the bell of the VM rings. `false`: this
    /// cannot be done now, and no answer comes.
    fn attach(&self, pages: GfnRun, source: Gfn, answer: Sender<u32>) -> bool;
}

impl Core {
    /// Has the worker attach pages, for one channel at a time. Channels that ask meanwhile are told that none were
    /// attached.
    pub(super) fn attach(
        &mut self,
        channel: usize,
        pages: GfnRun,
        source: Gfn,
        out: &mut dyn Driver,
    ) -> Result<(), Ended> {
        self.claim(channel)?;
        check(&self.vm, pages, source)?;
        let is_attaching = |channel: &Channel| matches!(channel, Channel::Attaching(_));
        // Room for the one answer, so that the worker never waits until it is taken.
        let (answer, wait) = bounded(1);
        if !self.channels.iter().any(is_attaching) && self.attacher.attach(pages, source, answer) {
            self.channels[channel] = Channel::Attaching(wait);
            return Ok(());
        }
        self.channels[channel] = Channel::Idle;
        out.reply(channel, Reply::Attached(0))
    }

    /// Answers the guest's thread when the pages that it asked for have been attached.
    pub(super) fn tell_attached(&mut self, out: &mut dyn Driver) -> Result<(), Ended> {
        for (number, channel) in self.channels.iter_mut().enumerate() {
            // A worker that has ended never answers; the VM ends with it.
            if let Channel::Attaching(wait) = channel
                && let Ok(count) = wait.try_recv()
            {
                *channel = Channel::Idle;
                out.reply(number, Reply::Attached(count))?;
            }
        }
        Ok(())
    }
}

/// Checks that the guest may ask for this.
///
/// # Errors
/// [`Ended::Protocol`]: the request names pages outside the guest's RAM, or no pages, or too many.
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
