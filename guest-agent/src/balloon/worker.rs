//! The agent's thread: keeps a connection, polls, and sleeps in between.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use memvisor_wire::balloon::{Capabilities, MAX_STATS, Start, ToHost, VERSION};
use memvisor_wire::{SeqPacket, wait_readable};

use super::inflate::Balloon;
use super::link::{Link, LinkError};
use super::retry::{LogLevel, Retry};
use super::variant::suits;
use super::{AgentSettings, PageSource, Shared};

pub(super) struct Worker<'s> {
    settings: AgentSettings,
    source: &'s dyn PageSource,
    shared: &'s Shared,
    balloon: Balloon<'s>,
    retry: Retry,
}

impl<'s> Worker<'s> {
    pub(super) fn new(
        settings: AgentSettings,
        source: &'s dyn PageSource,
        shared: &'s Shared,
    ) -> Self {
        Self {
            source,
            shared,
            balloon: Balloon::new(source, &shared.relief, settings.is_paced),
            retry: Retry::new(),
            settings,
        }
    }

    pub(super) fn run(mut self, mut dial: impl FnMut() -> io::Result<SeqPacket>) {
        // Closes the requests even if this thread panics: nobody must wait for relief that cannot come.
        let shared = self.shared;
        let _close = CloseRequests(shared);
        while !shared.is_stopping() {
            if let Err(error) = self.converse(&mut dial) {
                self.balloon.release_all();
                self.rest(&error);
            }
        }
        self.balloon.release_all();
    }

    /// One connection, from dialling to its end. `Ok` when the agent has been told to stop.
    fn converse(
        &mut self,
        dial: &mut impl FnMut() -> io::Result<SeqPacket>,
    ) -> Result<(), LinkError> {
        let mut link = Link::open(dial()?, &self.start())?;
        // Only after START is answered: a host that accepts and then refuses must not be dialled at once again.
        self.retry.connected();
        self.balloon.begin(&mut link)?;
        loop {
            match self.serve(&mut link) {
                Err(LinkError::Reset) => {
                    tracing::info!(pages = self.balloon.pages(), "the host reset the balloon");
                    self.balloon.release_all();
                    link.restart(&self.start())?;
                    self.balloon.begin(&mut link)?;
                }
                end => return end,
            }
        }
    }

    fn serve(&mut self, link: &mut Link) -> Result<(), LinkError> {
        let interval = Duration::from_millis(u64::from(link.started().poll_interval_ms));
        let mut next_poll = Instant::now();
        while !self.shared.is_stopping() {
            if let Some(pages) = self.shared.relief.take() {
                let freed = self.relieve(link, pages);
                // Before the error is looked at: threads that asked must not wait for a connection that has ended.
                self.shared.relief.finish(*freed.as_ref().unwrap_or(&0));
                freed?;
            }
            if next_poll <= Instant::now() {
                next_poll = Instant::now() + interval;
                self.balloon.open_window();
                self.poll(link)?;
            }
            self.balloon.adjust(link)?;
            self.sleep(link, next_poll)?;
        }
        link.stop()
    }

    fn poll(&mut self, link: &mut Link) -> Result<(), LinkError> {
        if link.started().capabilities.contains(Capabilities::STATS) {
            let mut stats = self.source.stats();
            stats.truncate(MAX_STATS);
            link.tell(&ToHost::Stats(stats))?;
        }
        link.ask_target(&ToHost::GetTarget {
            total_pages: self.source.total_pages(),
            balloon_pages: self.balloon.pages(),
        })
    }

    fn relieve(&mut self, link: &mut Link, pages: u64) -> Result<u64, LinkError> {
        let before = self.balloon.pages();
        if before == 0 {
            return Ok(0);
        }
        if let Some(ceded) = self.balloon.cede(link) {
            return ceded;
        }
        if !link.started().capabilities.contains(Capabilities::RELIEF) {
            return Ok(0);
        }
        link.ask_target(&ToHost::Relief { pages })?;
        self.balloon.relieve(link, before)
    }

    /// Sleeps until the host or the guest says something or the next poll is due.
    fn sleep(&self, link: &mut Link, next_poll: Instant) -> Result<(), LinkError> {
        let timeout = next_poll.saturating_duration_since(Instant::now());
        let bell = &self.shared.bell;
        let [said, rung] = wait_readable([link.as_fd(), bell.as_fd()], Some(timeout))?;
        if rung {
            bell.silence()?;
        }
        if said {
            link.read_unasked()?;
        }
        Ok(())
    }

    /// Waits before the next connection. The balloon is empty now, so requests for relief end at once.
    fn rest(&mut self, error: &LinkError) {
        let (pause, say) = self.retry.after(error);
        match say {
            LogLevel::Info => {
                tracing::info!(%error, "balloon: not wanted, asking again now and then");
            }
            LogLevel::Warn => {
                tracing::warn!(%error, "balloon: no host, trying again after a pause");
            }
            LogLevel::Nothing => tracing::debug!(%error, ?pause, "balloon: still no host"),
        }
        let until = Instant::now() + pause;
        loop {
            // Answered although nothing can come: a thread that waits for relief has nothing else to do.
            if self.shared.relief.take().is_some() {
                self.shared.relief.finish(0);
            }
            let left = until.saturating_duration_since(Instant::now());
            if self.shared.is_stopping() || left.is_zero() {
                return;
            }
            let bell = &self.shared.bell;
            let woken = wait_readable([bell.as_fd()], Some(left)).and_then(|_| bell.silence());
            if let Err(error) = woken {
                tracing::error!(%error, "balloon: cannot wait for the bell");
                return;
            }
        }
    }

    fn start(&self) -> Start {
        let protocol = Some(self.settings.protocol).filter(|wish| suits(*wish, self.source));
        let protocol = protocol.unwrap_or_default();
        Start {
            min_version: VERSION,
            max_version: VERSION,
            capabilities: Capabilities::COMMON | protocol.capabilities(),
            token: self.settings.token,
            total_pages: self.source.total_pages(),
            name: self.settings.name.clone(),
        }
    }
}

/// Closes the requests for relief at the end of the thread, however it ends.
struct CloseRequests<'s>(&'s Shared);

impl Drop for CloseRequests<'_> {
    fn drop(&mut self) {
        self.0.relief.close();
    }
}
