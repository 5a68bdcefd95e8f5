//! What a host does and says without being asked: resets, targets, and pages that it moves itself.

use memvisor_wire::balloon::{Capabilities, ToAgent, ToHost};

use super::{MAX_UNANSWERED_PUSHES, Reset, Session};
use crate::balloon::SessionError;
use crate::balloon::counters::add;

impl Session<'_> {
    /// Looks what is new, and returns the reset that the agent must be told of at once.
    pub(super) fn doorbell(&mut self) -> Result<Option<ToAgent>, SessionError> {
        // Before the looks: what changes after them rings again.
        self.vm.doorbell().silence()?;
        if self.vm.is_closing() {
            return Err(SessionError::Closing);
        }
        self.has_news = true;
        if !self.vm.take_reset() || self.variant.may_touch() {
            return Ok(None);
        }
        add(&self.vm.counters().resets, 1);
        self.vm.release_all();
        let pushes = self.capabilities.contains(Capabilities::DOORBELL);
        self.resetting = Some(if pushes { Reset::Sent } else { Reset::Owed });
        Ok(pushes.then_some(ToAgent::Reset))
    }

    /// The target, if the doorbell has rung and the agent does not know it.
    pub(super) fn news(&mut self) -> Option<ToAgent> {
        let is_heard = self.capabilities.contains(Capabilities::DOORBELL)
            && self.resetting.is_none()
            && self.unanswered < MAX_UNANSWERED_PUSHES;
        if !std::mem::take(&mut self.has_news) || !is_heard || self.target() == self.target_sent {
            return None;
        }
        self.unanswered += 1;
        Some(self.tell_target())
    }

    /// Has the protocol move pages that the host chooses itself; for how many it worked.
    pub(super) fn act(&mut self) -> u64 {
        if self.resetting.is_some() {
            return 0;
        }
        self.variant.act(self.vm)
    }

    /// The first request after a reset is answered by the `RESET` if that is still owed, unless the request has no
    /// reply whose place a `RESET` could take.
    pub(super) fn answer_resetting(&mut self, message: &ToHost) -> Option<ToAgent> {
        if self.resetting == Some(Reset::Sent) || !message.has_reply() {
            return None;
        }
        self.resetting = Some(Reset::Sent);
        Some(ToAgent::Reset)
    }
}
