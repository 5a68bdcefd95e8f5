//! A guest that dies at a given step.

use crate::engine::{Content, Engine, EngineError, EngineKind, Provided, SharedRun};
use crate::sync::{AtomicU32, Ordering};
use crate::units::{Gfn, GfnRun, PageBuf};

/// How many more operations succeed.
#[derive(Debug)]
pub(super) struct Life(AtomicU32);

impl Default for Life {
    fn default() -> Self {
        Self(AtomicU32::new(u32::MAX))
    }
}

impl Life {
    /// The guest dies after so many more operations that need it.
    pub(super) fn end_after(&self, operations: u32) {
        self.0.store(operations, Ordering::SeqCst);
    }

    /// Whether it is dead.
    pub(super) fn is_over(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }

    fn step(&self) -> Result<(), EngineError> {
        match self.0.load(Ordering::SeqCst) {
            0 => Err(EngineError::Gone),
            u32::MAX => Ok(()),
            left => {
                self.0.store(left - 1, Ordering::SeqCst);
                Ok(())
            }
        }
    }
}

/// An engine whose guest has a [`Life`]. What needs no process goes on without it: the RAM file outlives the guest.
#[derive(Debug)]
pub(super) struct Mortal<E> {
    pub(super) engine: E,
    pub(super) life: std::sync::Arc<Life>,
}

impl<E: Engine> Engine for Mortal<E> {
    fn kind(&self) -> EngineKind {
        self.engine.kind()
    }

    fn freeze(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        self.life.step()?;
        self.engine.freeze(runs)
    }

    fn map_shared(&self, runs: &[SharedRun]) -> Result<usize, EngineError> {
        self.life.step()?;
        self.engine.map_shared(runs)
    }

    fn map_private(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        self.life.step()?;
        self.engine.map_private(runs)
    }

    fn close(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        self.life.step()?;
        self.engine.close(runs)
    }

    fn reveal(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        self.life.step()?;
        self.engine.reveal(runs)
    }

    fn thaw(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        self.life.step()?;
        self.engine.thaw(runs)
    }

    fn read(&self, gfn: Gfn, into: &mut PageBuf) {
        self.engine.read(gfn, into);
    }

    fn read_out(&self, run: GfnRun, into: &mut [PageBuf]) -> Result<(), EngineError> {
        self.engine.read_out(run, into)
    }

    fn prefetch(&self, gfn: Gfn) {
        self.engine.prefetch(gfn);
    }

    fn punch(&self, run: GfnRun) -> Result<(), EngineError> {
        self.engine.punch(run)
    }

    fn revoke(&self) -> Result<(), EngineError> {
        self.engine.revoke()
    }

    fn provide(&self, gfn: Gfn, content: Content<'_>) -> Result<Provided, EngineError> {
        self.life.step()?;
        self.engine.provide(gfn, content)
    }

    fn write_back(&self, gfn: Gfn, content: &PageBuf) -> Result<(), EngineError> {
        self.engine.write_back(gfn, content)
    }

    fn wake(&self, run: GfnRun) {
        self.engine.wake(run);
    }

    fn take_written(&self, run: GfnRun, each: &mut dyn FnMut(GfnRun)) -> bool {
        self.engine.take_written(run, each)
    }
}
