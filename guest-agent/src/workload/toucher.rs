//! `toucher`: touches random pages of an active set, whose size changes at given times. The estimators
//! of active memory are tested with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use super::pageset::{PageSet, Share};
use super::{Failure, Work, Worker};

/// One thread that touches pages of its share.
#[derive(Debug)]
pub(super) struct Toucher {
    pub(super) set: Arc<PageSet>,
    pub(super) share: Share,
    pub(super) active: u32,
    pub(super) then: Vec<(Duration, u32)>,
    pub(super) write: u8,
    pub(super) random: StdRng,
    /// When the first step began; the times of `then` count from here.
    pub(super) started: Option<Instant>,
}

impl Toucher {
    /// The size of the active set at this time after the start.
    fn active_at(&self, elapsed: Duration) -> u32 {
        let passed = self.then.iter().rev().find(|(at, _)| *at <= elapsed);
        passed.map_or(self.active, |(_, pages)| *pages)
    }
}

impl Worker for Toucher {
    fn to_load(&self) -> u32 {
        self.share.count(self.set.pages())
    }

    fn load(&mut self, number: u32) -> Result<Work, Failure> {
        self.set.write(self.share.page(number))
    }

    fn step(&mut self) -> Result<Option<Work>, Failure> {
        let started = *self.started.get_or_insert_with(Instant::now);
        let active = self.active_at(started.elapsed()).min(self.set.pages());
        if active == 0 {
            return Ok(None);
        }
        let count = self.share.count(active);
        if count == 0 && self.then.is_empty() {
            return Ok(None);
        }
        // A thread that has no page of the active set touches its own first page, if the set ever changes.
        let count = count.max(1).min(self.to_load());
        if count == 0 {
            return Ok(None);
        }
        let page = self.share.page(self.random.random_range(0..count));
        let done = match self.random.random_range(0..100) < self.write {
            true => self.set.rewrite(page),
            false => self.set.verify(page),
        };
        done.map(Some)
    }

    fn idle_for(&self) -> Option<Duration> {
        let elapsed = self.started?.elapsed();
        let next = self.then.iter().map(|(at, _)| *at).find(|at| *at > elapsed);
        next.map(|at| at.saturating_sub(elapsed))
    }

    fn to_verify(&self) -> u32 {
        self.to_load()
    }

    fn verify(&mut self, number: u32) -> Result<Work, Failure> {
        self.set.verify(self.share.page(number))
    }
}
