//! One simulated guest as its host sees it: its memory, a model of its page tables and its RAM file, and what its
//! threads share.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex as StdMutex};

use memvisor_guest_agent::shim::mapping::{Mapping, execute, obey};
use memvisor_wire::memory::{Ack, Command, Fault, Op, Remap};
use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::{Claims, Line, Spec};
use crate::engine::{Content, Engine, EngineError, EngineKind, Reply};
use crate::pool::Pool;
use crate::sync::{AtomicU32, Mutex, MutexGuard, Ordering};
use crate::units::{FrameId, Gfn, GfnRun, PAGE_SIZE, PageBuf, Pages};
use crate::vm::Counter;

/// What an access of the guest finds at a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum View {
    /// RAM that the guest must ask for.
    #[default]
    Closed,
    /// RAM that the guest reads and writes.
    Open,
    /// A frame that the guest reads.
    Pool(FrameId),
    /// A frame that the guest must ask for before it can read it.
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
    /// The thread is in its signal handler.
    Signal,
}

#[derive(Debug, Default)]
struct Page {
    view: View,
    /// What the RAM file holds; `None`: a hole. A hole that the mprotect engine has opened counts as
    /// filled, as its guest may fill it at any moment.
    content: Option<Box<PageBuf>>,
    /// Whether the page counts as unwritten: nothing was written or mapped since the host last asked.
    is_armed: bool,
    wakes: u64,
    /// Whether what it holds is part of a large page.
    is_large: bool,
    /// Whether writes to it are noted.
    is_tracked: bool,
    /// How many requests of its guest to replace its content are under way. Above zero, the content does not matter.
    unwanted: u32,
}

/// How many more times something goes well.
#[derive(Debug)]
pub(super) struct Countdown(AtomicU32);

impl Countdown {
    /// It always goes well: a failure never comes.
    pub(super) const NEVER: u32 = u32::MAX;

    pub(super) fn set(&self, times: u32) {
        self.0.store(times, Ordering::SeqCst);
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }

    /// Whether it goes well this time.
    fn step(&self) -> bool {
        let left = self.0.load(Ordering::SeqCst);
        if left != Self::NEVER {
            self.set(left.saturating_sub(1));
        }
        left > 0
    }
}

/// See the [module text](super).
#[derive(Debug)]
pub(super) struct AddressSpace {
    kind: EngineKind,
    large_page: u32,
    pools: Vec<Arc<Pool>>,
    pool: Mutex<Arc<Pool>>,
    pages: Mutex<Vec<Page>>,
    /// Runs that the guest's kernel still maps before it refuses one for want of VMAs.
    pub(super) accepts: Countdown,
    /// How many it refused to threads that had claimed a page.
    pub(super) refused: Counter,
    /// How many more operations that need the guest succeed before it is dead.
    pub(super) life: Countdown,
    /// What the guest last wrote. A std mutex, so that looking at it is no point to switch tasks at.
    memory: StdMutex<Vec<PageBuf>>,
    /// The claims by which its threads serve faults themselves, if they do.
    pub(super) claims: Option<Claims>,
    pub(super) line: Line,
}

impl AddressSpace {
    /// A guest like this, all of whose pages are holes.
    pub(super) fn new(spec: &Spec, pools: &[Arc<Pool>], claims: Option<Claims>) -> Self {
        Self {
            kind: spec.kind,
            large_page: spec.large_page,
            pools: pools.to_vec(),
            pool: Mutex::new(Arc::clone(&pools[spec.salt])),
            pages: Mutex::new((0..spec.pages).map(|_| Page::new()).collect()),
            accepts: Countdown(AtomicU32::new(Countdown::NEVER)),
            refused: Counter::default(),
            life: Countdown(AtomicU32::new(Countdown::NEVER)),
            memory: StdMutex::new(vec![PageBuf::zeroed(); spec.pages as usize]),
            claims,
            line: Line::default(),
        }
    }

    /// `true`: the guest asks for pages to be taken or attached. `false`: it has the answer.
    pub(super) fn set_unwanted(&self, run: GfnRun, unwanted: bool) {
        let mut pages = self.pages();
        for gfn in run.iter() {
            let count = &mut pages[gfn.index()].unwanted;
            *count = if unwanted { *count + 1 } else { *count - 1 };
        }
    }

    /// RAM as a thread of the guest maps it.
    pub(super) const fn mapped_by(&self, who: Who) -> Mapped<'_> {
        Mapped { space: self, who }
    }

    /// A faulting thread does what the daemon replied; the message with which it confirms that, if any.
    pub(super) fn obey(&self, reply: Reply) -> Option<Fault> {
        obey(&self.mapped_by(Who::Asked), reply)
    }

    fn check_alive(&self) -> Result<(), EngineError> {
        self.life.step().then_some(()).ok_or(EngineError::Gone)
    }

    fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool.lock())
    }

    fn pages(&self) -> MutexGuard<'_, Vec<Page>> {
        self.pages.lock()
    }

    /// What its pages must hold: what the guest last wrote, or zeroes.
    pub(super) fn memory(&self) -> MutexGuard<'_, Vec<PageBuf>> {
        self.memory.lock().expect("no holder panicked")
    }

    /// The guest reads a page or writes it, as far as it may.
    pub(super) fn access(
        &self,
        gfn: Gfn,
        write: bool,
        touch: impl FnOnce(&mut PageBuf),
    ) -> Result<(), Trap> {
        let mut pages = self.pages();
        let page = &mut pages[gfn.index()];
        match page.view {
            View::Open => {
                page.is_armed &= !write;
                let Some(content) = page.content.as_deref_mut() else {
                    panic!("{gfn} is a hole that the guest fills unseen");
                };
                touch(content);
            }
            View::Pool(frame) if !write => touch(&mut self.frame(gfn, frame)),
            View::Closed if self.kind == EngineKind::Uffd && self.claims.is_none() => {
                return Err(Trap::Kernel { wakes: page.wakes });
            }
            View::Closed | View::Pool(_) | View::ClosedPool(_) => return Err(Trap::Signal),
        }
        Ok(())
    }

    /// What a page that maps `frame` reads.
    fn frame(&self, gfn: Gfn, frame: FrameId) -> PageBuf {
        let refs = self.pool().refs(frame);
        assert!(refs > 0, "{gfn} maps {frame:?}, which is free");
        let mut content = PageBuf::zeroed();
        self.pool().read(frame, &mut content);
        content
    }

    /// The guest's kernel drops its mapping of a resident page, as it does when it moves or swaps
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

    /// Whether a thread of the guest has claimed a page.
    pub(super) fn is_taken(&self, gfn: Gfn) -> bool {
        let claims = self.claims.as_ref();
        claims.is_some_and(|claims| claims.table().is_taken(gfn))
    }

    /// How many claims its threads gave up.
    pub(super) fn given_up(&self) -> u64 {
        let claims = self.claims.as_ref();
        claims.map_or(0, |claims| claims.table().given_up())
    }

    /// What an access of the guest finds at a page.
    pub(super) fn view(&self, gfn: Gfn) -> View {
        self.pages()[gfn.index()].view
    }

    /// Whether what a page holds is part of a large page.
    pub(super) fn is_large(&self, gfn: Gfn) -> bool {
        self.pages()[gfn.index()].is_large
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
    fn new() -> Self {
        Self {
            is_tracked: true,
            ..Self::default()
        }
    }

    fn fill(&mut self, gfn: Gfn, content: PageBuf) {
        assert!(self.content.is_none(), "{gfn} is filled and is no hole");
        self.content = Some(Box::new(content));
    }
}

/// Which thread of the guest remaps, which decides whether its kernel may refuse a VMA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    /// The memory thread, which may be refused.
    MemoryThread,
    /// A thread that has claimed a page; it may be refused too.
    Claimer,
    /// A thread that does what the daemon said. It is never refused here: a refusal would end its VM.
    Asked,
}

/// The mapping of RAM as one thread of the guest changes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapped<'a> {
    space: &'a AddressSpace,
    who: Who,
}

impl Mapped<'_> {
    /// Takes a VMA for a mapping; `ENOMEM` where the guest's kernel refuses one.
    fn take_vma(&self) -> nix::Result<()> {
        if self.who == Who::Asked || self.space.accepts.step() {
            return Ok(());
        }
        if self.who == Who::Claimer {
            self.space.refused.one();
        }
        Err(Errno::ENOMEM)
    }

    /// Does something with each page of a run; a model may switch tasks before each.
    fn each(&self, run: GfnRun, mut change: impl FnMut(Gfn, &mut Page)) -> nix::Result<()> {
        for gfn in run.iter() {
            change(gfn, &mut self.space.pages()[gfn.index()]);
        }
        Ok(())
    }

    /// Changes what the guest finds at pages. The VMAs for that have been taken.
    fn change(&self, op: Op, run: GfnRun, frame: u32) -> nix::Result<()> {
        let space = self.space;
        let mut frames = (frame..).map(FrameId);
        self.each(run, |gfn, page| {
            let frame = frames.next().expect("as many as pages");
            let is_hole = page.content.is_none();
            page.view = match (op, page.view) {
                (Op::Freeze, View::Closed | View::Open) if !is_hole => View::Closed,
                // Runs are joined over holes.
                (Op::Freeze, View::Closed) if space.kind == EngineKind::Uffd => View::Closed,
                (Op::Open, View::Closed | View::Open) if !is_hole => {
                    page.is_armed = false;
                    page.is_tracked = true;
                    View::Open
                }
                // Without userfaultfd the kernel maps a large page only where all of it is open.
                (Op::Enlarge, View::Closed) if !is_hole && space.kind == EngineKind::Uffd => {
                    page.is_large = true;
                    page.is_tracked = false;
                    View::Open
                }
                (Op::Enlarge, View::Open) if !is_hole => {
                    page.is_large = true;
                    page.is_tracked = space.kind == EngineKind::Mprotect;
                    View::Open
                }
                (Op::MapShared, View::Closed) => {
                    let is_same = page.content.as_deref() == Some(&space.frame(gfn, frame));
                    assert!(is_same || page.unwanted > 0, "{gfn} gets other bytes");
                    page.is_armed = false;
                    View::Pool(frame)
                }
                (Op::MapPrivate, View::Pool(_) | View::ClosedPool(_)) => View::Closed,
                (Op::Close, View::Pool(frame)) => View::ClosedPool(frame),
                (Op::Reveal, View::Pool(frame) | View::ClosedPool(frame)) => View::Pool(frame),
                (_, view) => panic!("{op:?} of {gfn}, which is {view:?}, a hole: {is_hole}"),
            };
        })
    }
}

/// The contract of the engines: each step must be one that the state of its page allows.
impl Mapping for Mapped<'_> {
    fn pages(&self) -> u32 {
        u32::try_from(self.space.pages().len()).expect("a few")
    }

    fn remap(&self, op: Op, Remap { run, frame }: Remap) -> nix::Result<()> {
        let space = self.space;
        match (op, space.kind) {
            // Dropping page-table entries takes no VMA.
            (Op::Freeze, EngineKind::Uffd) | (Op::MapPrivate, _) => {}
            _ => self.take_vma()?,
        }
        self.change(op, run, frame)
    }

    fn map_present(&self, run: GfnRun) -> nix::Result<()> {
        self.take_vma()?;
        self.each(run, |gfn, page| {
            assert!(page.content.is_some(), "{gfn} gets a hole for its frame");
            assert!(page.view.is_pool(), "{gfn} gets RAM and was not shared");
            page.view = View::Open;
            page.is_armed = false;
        })
    }

    fn open(&self, gfn: Gfn) -> nix::Result<()> {
        self.change(Op::Open, GfnRun::single(gfn), 0)
    }

    fn install(&self, gfn: Gfn, content: &[u8; PAGE_SIZE]) -> nix::Result<()> {
        self.each(GfnRun::single(gfn), |gfn, page| {
            assert_eq!(page.view, View::Closed, "{gfn} is brought and was there");
            page.fill(gfn, PageBuf(*content));
            page.view = View::Open;
        })
    }

    fn copy_to_ram(&self, gfn: Gfn) -> nix::Result<()> {
        self.each(GfnRun::single(gfn), |gfn, page| {
            let View::Pool(frame) = page.view else {
                panic!("{gfn} is {:?} and is broken by its guest", page.view);
            };
            page.fill(gfn, self.space.frame(gfn, frame));
        })
    }

    fn punch(&self, run: GfnRun) -> nix::Result<()> {
        self.each(run, |gfn, page| {
            assert!(page.view.is_pool(), "{gfn} is punched by its guest");
            page.content = None;
        })
    }
}

impl Engine for Arc<AddressSpace> {
    fn kind(&self) -> EngineKind {
        self.kind
    }

    fn command(&self, op: Op, runs: &[Remap]) -> Result<Ack, EngineError> {
        self.check_alive()?;
        let (seq, runs) = (0, runs.to_vec());
        let command = Command { seq, op, runs };
        Ok(execute(&self.mapped_by(Who::MemoryThread), &command))
    }

    fn large_page(&self) -> Option<u32> {
        Some(self.large_page)
    }

    fn dissolve(&self, run: GfnRun) -> Result<(), EngineError> {
        self.check_alive()?;
        for gfn in run.iter() {
            let page = &mut self.pages()[gfn.index()];
            assert!(page.content.is_some(), "{gfn} is dissolved and is a hole");
            assert_eq!(page.view, View::Closed, "{gfn} is dissolved");
            page.is_large = false;
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

    fn forget(&self) {}

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
            assert!(page.content.is_some(), "{gfn} is punched and is a hole");
            assert!(!page.is_large, "{gfn} is punched out of a large page");
            if page.view == View::Open {
                let may_be_open = self.kind == EngineKind::Uffd && page.unwanted > 0;
                assert!(may_be_open, "{gfn} is punched while the guest can write it");
                page.view = View::Closed;
            }
            page.content = None;
        }
        Ok(())
    }

    fn revoke(&self) -> Result<(), EngineError> {
        self.pages().iter_mut().for_each(|page| page.content = None);
        Ok(())
    }

    fn provide(&self, gfn: Gfn, content: Content<'_>) -> Result<(), EngineError> {
        self.check_alive()?;
        let page = &mut self.pages()[gfn.index()];
        assert!(!page.view.is_pool(), "{gfn} is provided while it is shared");
        match content {
            Content::Zero => page.fill(gfn, PageBuf::zeroed()),
            Content::Bytes(bytes) => page.fill(gfn, bytes.clone()),
            Content::Present => assert!(page.content.is_some(), "{gfn} is present as a hole"),
        }
        if self.kind == EngineKind::Uffd {
            page.view = View::Open;
            page.is_armed = false;
            page.wakes += 1;
        }
        Ok(())
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
            // This includes holes, and pages that were frozen after they were written.
            if !page.view.is_pool() && !page.is_armed && page.is_tracked {
                page.is_armed = true;
                each(GfnRun::single(gfn));
            }
        }
        true
    }
}
