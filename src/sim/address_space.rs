//! The memory of one simulated guest: what its page tables and its RAM file are to a real one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::stat::fstat;

use crate::engine::{Content, Engine, EngineError, EngineKind, Provided, Reply, SharedRun};
use crate::fault::Access;
use crate::pool::Pool;
use crate::sync::{AtomicU32, Mutex, MutexGuard, Ordering};
use crate::units::{FrameId, Gfn, GfnRun, PageBuf, Pages};

/// What the guest meets at a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum View {
    /// RAM that it must ask for.
    Closed,
    /// RAM that it reads and writes.
    Open,
    /// A frame that it reads.
    Pool(FrameId),
    /// A frame that it must ask for to read.
    ClosedPool(FrameId),
}

impl View {
    /// Whether it is a frame, closed or not.
    pub(super) const fn is_pool(self) -> bool {
        matches!(self, Self::Pool(_) | Self::ClosedPool(_))
    }
}

/// Why an access did not go through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trap {
    /// The thread waits in the kernel until the page has been woken more often than this.
    Kernel { wakes: u64 },
    /// The thread is in its signal handler and asks over its channel.
    Signal(Access),
}

#[derive(Debug)]
struct Page {
    view: View,
    /// What the RAM file holds; `None`: a hole. A hole that the mprotect engine has opened counts as
    /// filled, as its guest may fill it at any moment.
    content: Option<Box<PageBuf>>,
    /// Whether its next write is noted, because nothing was written or mapped since it was asked about.
    is_armed: bool,
    wakes: u64,
    /// How often its guest has asked for something else in its place: what it holds does not matter.
    unwanted: u32,
}

/// No refusal is armed.
const NEVER: u32 = u32::MAX;

/// See the [module text](super).
#[derive(Debug)]
pub(super) struct AddressSpace {
    kind: EngineKind,
    pools: Vec<Arc<Pool>>,
    pool: Mutex<Arc<Pool>>,
    pages: Mutex<Vec<Page>>,
    /// Runs that the guest's kernel still maps before it refuses one for want of VMAs.
    accepts: AtomicU32,
    /// Nonzero: handing pages over fails.
    dead: AtomicU32,
    /// Whether every fault is a signal.
    signals: bool,
}

impl AddressSpace {
    /// The memory of a guest that shares in the pool of this number.
    pub(super) fn new(
        kind: EngineKind,
        pages: u32,
        pools: &[Arc<Pool>],
        pool: usize,
        signals: bool,
    ) -> Self {
        let page = |_| Page {
            view: View::Closed,
            content: None,
            is_armed: false,
            wakes: 0,
            unwanted: 0,
        };
        Self {
            kind,
            pools: pools.to_vec(),
            pool: Mutex::new(Arc::clone(&pools[pool])),
            pages: Mutex::new((0..pages).map(page).collect()),
            accepts: AtomicU32::new(NEVER),
            dead: AtomicU32::new(0),
            signals,
        }
    }

    /// The guest's kernel maps so many more runs and then refuses one.
    pub(super) fn refuse_after(&self, runs: u32) {
        self.accepts.store(runs, Ordering::SeqCst);
    }

    /// The guest's kernel has VMAs again.
    pub(super) fn accept(&self) {
        self.accepts.store(NEVER, Ordering::SeqCst);
    }

    /// The guest asks for pages to be taken or attached, or has the answer.
    pub(super) fn set_unwanted(&self, run: GfnRun, unwanted: bool) {
        let mut pages = self.pages();
        for gfn in run.iter() {
            let count = &mut pages[gfn.index()].unwanted;
            *count = if unwanted { *count + 1 } else { *count - 1 };
        }
    }

    pub(super) fn set_dead(&self) {
        self.dead.store(1, Ordering::SeqCst);
    }

    fn is_refused(&self) -> bool {
        match self.accepts.load(Ordering::SeqCst) {
            NEVER => false,
            0 => true,
            left => {
                self.accepts.store(left - 1, Ordering::SeqCst);
                false
            }
        }
    }

    fn check_alive(&self) -> Result<(), EngineError> {
        match self.dead.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(EngineError::Gone),
        }
    }

    fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool.lock())
    }

    fn pages(&self) -> MutexGuard<'_, Vec<Page>> {
        self.pages.lock()
    }

    /// The guest reads bytes of a page.
    pub(super) fn load(&self, gfn: Gfn, at: usize, into: &mut [u8]) -> Result<(), Trap> {
        let mut pages = self.pages();
        let page = &mut pages[gfn.index()];
        match page.view {
            View::Open => into.copy_from_slice(&page.open_content(gfn).0[at..][..into.len()]),
            View::Closed => return Err(self.trap(page, Access::Read)),
            View::ClosedPool(_) => return Err(Trap::Signal(Access::Read)),
            View::Pool(frame) => {
                assert!(
                    self.pool().refs(frame) > 0,
                    "{gfn} maps frame {}, which is free",
                    frame.0
                );
                let mut content = PageBuf::zeroed();
                self.pool().read(frame, &mut content);
                into.copy_from_slice(&content.0[at..][..into.len()]);
            }
        }
        Ok(())
    }

    /// The guest writes bytes of a page.
    pub(super) fn store(&self, gfn: Gfn, at: usize, from: &[u8]) -> Result<(), Trap> {
        let mut pages = self.pages();
        let page = &mut pages[gfn.index()];
        match page.view {
            View::Open => {
                page.is_armed = false;
                page.open_content(gfn).0[at..][..from.len()].copy_from_slice(from);
            }
            View::Closed => return Err(self.trap(page, Access::Write)),
            View::Pool(_) | View::ClosedPool(_) => return Err(Trap::Signal(Access::Write)),
        }
        Ok(())
    }

    fn trap(&self, page: &Page, access: Access) -> Trap {
        match self.kind {
            EngineKind::Uffd if !self.signals => Trap::Kernel { wakes: page.wakes },
            EngineKind::Uffd | EngineKind::Mprotect => Trap::Signal(access),
        }
    }

    /// The faulting thread does what the daemon replied.
    pub(super) fn apply(&self, reply: Reply) {
        let (run, from_pool) = match reply {
            Reply::Retry => return,
            Reply::Open(run) => (run, false),
            Reply::Private(run) => (run, true),
            Reply::Reveal(run) => return self.open_frames(run),
            Reply::Attached(_) => panic!("{reply:?} answers a fault"),
        };
        for gfn in run.iter() {
            let page = &mut self.pages()[gfn.index()];
            if self.check_alive().is_err() {
                // The whole of it, whatever is where.
                page.content = None;
                continue;
            }
            assert!(page.content.is_some(), "{gfn} is opened as a hole");
            assert_eq!(
                page.view.is_pool(),
                from_pool,
                "{reply:?} while {gfn} is {:?}",
                page.view
            );
            page.view = View::Open;
            page.is_armed &= !from_pool;
        }
    }

    fn open_frames(&self, run: GfnRun) {
        for gfn in run.iter() {
            let page = &mut self.pages()[gfn.index()];
            page.view = match page.view {
                View::ClosedPool(frame) | View::Pool(frame) => View::Pool(frame),
                view => panic!("{gfn} is {view:?} and is revealed"),
            };
        }
    }

    /// A thread puts the content of a page that it has claimed in place.
    pub(super) fn install(&self, gfn: Gfn, content: PageBuf) {
        let page = &mut self.pages()[gfn.index()];
        assert_eq!(page.view, View::Closed, "{gfn} is brought and was there");
        page.fill(gfn, content);
        page.view = View::Open;
    }

    /// A thread gives a shared page that it has claimed a copy of its own.
    pub(super) fn break_shared(&self, gfn: Gfn) {
        let page = &mut self.pages()[gfn.index()];
        let View::Pool(frame) = page.view else {
            panic!("{gfn} is {:?} and is broken by its guest", page.view);
        };
        assert!(
            self.pool().refs(frame) > 0,
            "{gfn} is a copy of a free frame"
        );
        let mut content = PageBuf::zeroed();
        self.pool().read(frame, &mut content);
        page.fill(gfn, content);
    }

    /// The thread that gave a shared page a copy maps it.
    pub(super) fn map_copy(&self, gfn: Gfn) {
        let page = &mut self.pages()[gfn.index()];
        assert!(page.view.is_pool() && page.content.is_some(), "{gfn}");
        page.view = View::Open;
    }

    /// The guest's kernel drops its mapping of a page that it has, as it does when it moves or swaps
    /// memory itself; the next access is a minor fault.
    pub(super) fn forget_mapping(&self, gfn: Gfn) {
        let page = &mut self.pages()[gfn.index()];
        if self.kind == EngineKind::Uffd && page.view == View::Open {
            page.view = View::Closed;
        }
    }

    /// How often threads that wait for a page in the kernel have been woken.
    pub(super) fn wakes(&self, gfn: Gfn) -> u64 {
        self.pages()[gfn.index()].wakes
    }

    /// What the guest meets at a page.
    pub(super) fn view(&self, gfn: Gfn) -> View {
        self.pages()[gfn.index()].view
    }

    /// What the RAM file holds, if it is no hole.
    pub(super) fn content(&self, gfn: Gfn) -> Option<Box<PageBuf>> {
        self.pages()[gfn.index()].content.clone()
    }

    /// What the kernel would count for the RAM file.
    pub(super) fn allocated(&self) -> Pages {
        let pages = self.pages();
        Pages(pages.iter().filter(|page| page.content.is_some()).count() as u64)
    }
}

impl Page {
    fn open_content(&mut self, gfn: Gfn) -> &mut PageBuf {
        let content = self.content.as_deref_mut();
        content.unwrap_or_else(|| panic!("{gfn} is a hole that the guest fills unseen"))
    }

    fn fill(&mut self, gfn: Gfn, content: PageBuf) {
        assert!(self.content.is_none(), "{gfn} is filled and is no hole");
        self.content = Some(Box::new(content));
    }
}

fn refused(what: &'static str, run: GfnRun) -> EngineError {
    EngineError::Refused {
        what,
        run,
        source: io::Error::from_raw_os_error(libc::ENOMEM),
    }
}

impl Engine for Arc<AddressSpace> {
    fn kind(&self) -> EngineKind {
        self.kind
    }

    fn freeze(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        for run in runs {
            // Dropping page-table entries takes no VMA, so with userfaultfd nothing is refused.
            if self.kind == EngineKind::Mprotect && self.is_refused() {
                return Err(refused("freeze", *run));
            }
            for gfn in run.iter() {
                let page = &mut self.pages()[gfn.index()];
                assert!(page.content.is_some(), "{gfn} is frozen as a hole");
                assert!(!page.view.is_pool(), "{gfn} is frozen while it is shared");
                page.view = View::Closed;
            }
        }
        Ok(())
    }

    fn map_shared(&self, runs: &[SharedRun]) -> Result<usize, EngineError> {
        let mut content = PageBuf::zeroed();
        for (done, SharedRun { run, frame: first }) in runs.iter().enumerate() {
            if self.is_refused() {
                return Ok(done);
            }
            for (gfn, frame) in run.iter().zip((first.0..).map(FrameId)) {
                let page = &mut self.pages()[gfn.index()];
                assert_eq!(page.view, View::Closed, "{gfn} is shared and not frozen");
                assert!(
                    self.pool().refs(frame) > 0,
                    "{gfn} is mapped to frame {}, which is free",
                    frame.0
                );
                self.pool().read(frame, &mut content);
                assert!(
                    page.content.as_deref() == Some(&content) || page.unwanted > 0,
                    "{gfn} is mapped to frame {} of other bytes",
                    frame.0
                );
                page.view = View::Pool(frame);
                page.is_armed = false;
            }
        }
        Ok(runs.len())
    }

    fn map_private(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        for gfn in runs.iter().flat_map(|run| run.iter()) {
            let page = &mut self.pages()[gfn.index()];
            assert!(
                page.view.is_pool(),
                "{gfn} gets RAM back and was not shared"
            );
            page.view = View::Closed;
        }
        Ok(())
    }

    fn close(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        for run in runs {
            if self.is_refused() {
                return Err(refused("close", *run));
            }
            for gfn in run.iter() {
                let page = &mut self.pages()[gfn.index()];
                page.view = match page.view {
                    View::Pool(frame) => View::ClosedPool(frame),
                    view => panic!("{gfn} is {view:?} and is closed"),
                };
            }
        }
        Ok(())
    }

    fn reveal(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        for run in runs {
            if self.is_refused() {
                return Err(refused("reveal", *run));
            }
            self.open_frames(*run);
        }
        Ok(())
    }

    fn thaw(&self, runs: &[GfnRun]) -> Result<(), EngineError> {
        if self.kind == EngineKind::Uffd {
            return Ok(());
        }
        for run in runs {
            if self.is_refused() {
                return Err(refused("thaw", *run));
            }
            for gfn in run.iter() {
                let page = &mut self.pages()[gfn.index()];
                assert!(page.content.is_some(), "{gfn} is thawed as a hole");
                assert!(!page.view.is_pool(), "{gfn} is thawed while it is shared");
                page.view = View::Open;
            }
        }
        Ok(())
    }

    fn set_pool(&self, pool: BorrowedFd<'_>) -> Result<(), EngineError> {
        let file = |fd: BorrowedFd<'_>| fstat(fd).expect("it is open").st_ino;
        let is_it = |known: &&Arc<Pool>| {
            let fd = known.read_only_fd().expect("/proc is there");
            file(fd.as_fd()) == file(pool)
        };
        let pool = self.pools.iter().find(is_it).expect("a pool of the host");
        let shares = self.pages().iter().any(|page| page.view.is_pool());
        assert!(!shares, "the guest still maps the pool that it leaves");
        *self.pool.lock() = Arc::clone(pool);
        Ok(())
    }

    fn prefetch(&self, _gfn: Gfn) {}

    fn read(&self, gfn: Gfn, into: &mut PageBuf) {
        let pages = self.pages();
        let content = pages[gfn.index()].content.as_deref();
        into.clone_from(content.unwrap_or_else(|| panic!("{gfn} is read and is a hole")));
    }

    fn read_out(&self, run: GfnRun, into: &mut [PageBuf]) -> Result<(), EngineError> {
        assert_eq!(run.count as usize, into.len(), "a buffer a page");
        run.iter()
            .zip(into)
            .for_each(|(gfn, into)| self.read(gfn, into));
        Ok(())
    }

    fn punch(&self, run: GfnRun) -> Result<(), EngineError> {
        for gfn in run.iter() {
            let page = &mut self.pages()[gfn.index()];
            if self.check_alive().is_err() {
                // The whole of it, whatever is where.
                page.content = None;
                continue;
            }
            assert!(page.content.is_some(), "{gfn} is punched and is a hole");
            if page.view == View::Open {
                let may_be_open = self.kind == EngineKind::Uffd && page.unwanted > 0;
                assert!(may_be_open, "{gfn} is punched while the guest can write it");
                page.view = View::Closed;
            }
            page.content = None;
        }
        Ok(())
    }

    fn provide(&self, gfn: Gfn, content: Content<'_>) -> Result<Provided, EngineError> {
        self.check_alive()?;
        let page = &mut self.pages()[gfn.index()];
        assert!(!page.view.is_pool(), "{gfn} is provided while it is shared");
        match content {
            Content::Zero => page.fill(gfn, PageBuf::zeroed()),
            Content::Bytes(bytes) => page.fill(gfn, bytes.clone()),
            Content::Present => assert!(page.content.is_some(), "{gfn} is present as a hole"),
        }
        match self.kind {
            EngineKind::Uffd => {
                page.view = View::Open;
                page.is_armed = false;
                page.wakes += 1;
                Ok(Provided::Done)
            }
            EngineKind::Mprotect => Ok(Provided::Ask(Reply::Open(GfnRun::single(gfn)))),
        }
    }

    fn write_back(&self, gfn: Gfn, content: &PageBuf) -> Result<(), EngineError> {
        self.check_alive()?;
        let page = &mut self.pages()[gfn.index()];
        assert!(page.view.is_pool(), "{gfn} is broken out and is not shared");
        page.fill(gfn, content.clone());
        Ok(())
    }

    fn wake(&self, run: GfnRun) {
        let mut pages = self.pages();
        run.iter().for_each(|gfn| pages[gfn.index()].wakes += 1);
    }

    fn take_written(&self, run: GfnRun, each: &mut dyn FnMut(GfnRun)) -> bool {
        if self.kind == EngineKind::Mprotect {
            return false;
        }
        for gfn in run.iter() {
            let page = &mut self.pages()[gfn.index()];
            // Also a hole, and what was frozen after it was written.
            if !page.view.is_pool() && !page.is_armed {
                page.is_armed = true;
                each(GfnRun::single(gfn));
            }
        }
        true
    }
}
