//! What is told to who listens to a session.

use super::{Connection, Session};

impl Connection<'_> {
    /// Shows what both sides share to who listens.
    pub(super) fn show_shared(&mut self, session: &Session<'_>) {
        if let Some(tap) = &mut self.tap
            && let Some((words, count)) = session.variant.shared()
        {
            tap.mapped(words, count);
        }
    }

    /// Before it is sent: what the agent does next is heard after what it does that for.
    pub(super) fn tell_tap(&mut self, datagram: &[u8]) {
        if let Some(tap) = &mut self.tap {
            tap.sent(datagram);
        }
    }
}
