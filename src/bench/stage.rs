//! Where benchmarks with guests take place: a host in this process, guests in processes of their own.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clock::{allowed_cpus, pin};
use super::content::Content;
use super::driven::{DrivenGuest, DrivenOptions};
use super::{BenchError, Setup};
use crate::engine::EngineError;
use crate::host::{BareHost, BareVm, HostOptions};
use crate::machine::BudgetChoice;
use crate::page::Home;
use crate::policy::Esx;
use crate::reclaim::Evictor;
use crate::reclaim::victims::Choice;
use crate::runtime_dir::RuntimeDir;
use crate::settings::{Layer, Layers, Profile};
use crate::share::Peers;
use crate::units::{Bytes, Gfn, Pages, VmId};
use crate::vm::{Means, Vm};

/// How long the host may take to notice that a guest has come or gone.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(1);
/// After this many batches in a row that evicted nothing, nothing more is expected.
const IN_VAIN: u32 = 8;
/// What a host needs beside its guests' memory and half of it again.
const MARGIN: Bytes = Bytes::from_mib(64);
/// What a host needs at least when nothing is evicted: metadata, and what stays free.
const LEAST_MARGIN: Bytes = Bytes::from_mib(16);

/// A host for benchmarks.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    setup: &'a Setup<'a>,
    host: BareHost,
    dir: RuntimeDir,
}

impl<'a> Stage<'a> {
    /// Starts a host with room for guests of `pages` pages together, and for a copy of half of those pages.
    ///
    /// # Errors
    /// The host cannot be started.
    pub(crate) fn new(setup: &'a Setup<'a>, pages: u32) -> Result<Self, BenchError> {
        let guests = Pages(pages.into()).bytes().0;
        Self::with_memory(setup, guests + guests / 2 + MARGIN.0)
    }

    /// Starts a host with room for guests of `pages` pages together, and for nothing else.
    ///
    /// # Errors
    /// The host cannot be started.
    pub(crate) fn tight(setup: &'a Setup<'a>, pages: u32) -> Result<Self, BenchError> {
        let guests = Pages(pages.into()).bytes().0;
        Self::with_memory(setup, guests + (guests / 16).max(LEAST_MARGIN.0))
    }

    fn with_memory(setup: &'a Setup<'a>, bytes: u64) -> Result<Self, BenchError> {
        let runtime = setup.subdirectory("host")?;
        let dir = RuntimeDir::new(&runtime)
            .map_err(|error| BenchError::io("use a directory")(io::Error::other(error)))?;
        let memory = Bytes(bytes / 4096 * 4096);
        let options = HostOptions {
            memory,
            budget: BudgetChoice::Size(memory),
            policy: &Esx,
            engine: setup.options.engine,
            swap_dir: setup.scratch.clone(),
            swap_cache: None,
            runtime_dir: dir.clone(),
            record_balloon: None,
            http: None,
            vma_budget: None,
            layers: lifted(),
            config: None,
            trace: None,
        };
        Ok(Self {
            setup,
            host: BareHost::start(&options)?,
            dir,
        })
    }

    /// The host.
    #[must_use]
    pub(crate) const fn host(&self) -> &BareHost {
        &self.host
    }

    /// Where the host's sockets are.
    #[must_use]
    pub(crate) const fn dir(&self) -> &RuntimeDir {
        &self.dir
    }

    /// Starts a guest whose name no other has.
    ///
    /// # Errors
    /// The guest is not powered on.
    pub(crate) fn guest(&self, name: &str, pages: u32) -> Result<StageGuest, BenchError> {
        self.start(name, pages, false)
    }

    /// Starts a guest that serves some of its faults itself, whose name no other has.
    ///
    /// # Errors
    /// As [`guest`](Self::guest).
    pub(crate) fn inline_guest(&self, name: &str, pages: u32) -> Result<StageGuest, BenchError> {
        self.start(name, pages, true)
    }

    fn start(&self, name: &str, pages: u32, inline: bool) -> Result<StageGuest, BenchError> {
        let options = DrivenOptions {
            name: name.to_owned(),
            pages,
            memory_socket: self.dir.memory_socket(),
            inline,
        };
        let driven = DrivenGuest::start(&self.setup.program, &options)?;
        let vm = self.powered_on(name)?;
        Ok(StageGuest { driven, vm })
    }

    /// The VM of a guest that has been started, once it is there.
    ///
    /// # Errors
    /// The VM does not appear in time.
    pub(crate) fn powered_on(&self, name: &str) -> Result<BareVm, BenchError> {
        wait_for(&format!("guest `{name}` to power on"), || {
            self.host.vm(name)
        })
    }

    /// Waits until no guest is left.
    ///
    /// # Errors
    /// A guest does not end in time.
    pub(crate) fn wait_until_empty(&self) -> Result<(), BenchError> {
        if self.host.wait_until_empty(PATIENCE) {
            Ok(())
        } else {
            Err(BenchError::Overtime {
                what: "all guests to end".to_owned(),
                limit: PATIENCE,
            })
        }
    }
}

/// The usual settings, but that a balloon may hold nearly all of a guest: nobody but a benchmark asks it to.
fn lifted() -> Layers {
    let mut layer = Layer::default();
    layer
        .put("Mem.CtlMaxPercent", "99")
        .expect("a setting and a value that it may have");
    Layers::new(Profile::default(), Layer::default(), layer)
}

/// Waits until `probe` has something.
///
/// # Errors
/// [`BenchError::Overtime`].
pub(crate) fn wait_for<T>(
    what: &str,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T, BenchError> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        if start.elapsed() > PATIENCE {
            return Err(BenchError::Overtime {
                what: what.to_owned(),
                limit: PATIENCE,
            });
        }
        std::thread::sleep(POLL);
    }
}

/// A guest and the host's side of it.
#[derive(Debug)]
pub(crate) struct StageGuest {
    /// Its process.
    pub(crate) driven: DrivenGuest,
    /// Its VM.
    pub(crate) vm: BareVm,
}

impl StageGuest {
    /// Its VM.
    #[must_use]
    pub(crate) fn vm(&self) -> &Arc<Vm> {
        self.vm.vm()
    }

    /// Has it write all its memory.
    ///
    /// # Errors
    /// The guest has ended.
    pub(crate) fn fill(&mut self, content: &Content) -> Result<(), BenchError> {
        self.driven.fill(content)
    }

    /// Evicts all its resident pages by `means`, as its worker does; how many left.
    ///
    /// # Errors
    /// The guest is gone.
    pub(crate) fn evict_all(&self, seed: u64, means: Means) -> Result<u64, EngineError> {
        let vm = self.vm();
        let mut evictor = Evictor::new(seed);
        let (mut all, mut in_vain) = (0, 0);
        // Pages that these means cannot take stay. A batch may consist of such pages alone, so one empty batch is not
        // the end.
        while vm.table.count(Home::Resident) > 0 && in_vain < IN_VAIN {
            let evicted = evictor
                .evict(vm, Pages(u64::MAX), means, Choice::default())?
                .0;
            in_vain = if evicted == 0 { in_vain + 1 } else { 0 };
            all += evicted;
        }
        Ok(all)
    }
}

/// The peers of a scanner that works alone.
#[derive(Debug)]
pub(crate) struct NoPeers;

impl Peers for NoPeers {
    fn known_hash(&self, _vm: VmId, _gfn: Gfn) -> Option<u32> {
        None
    }

    fn nudge(&self, _vm: VmId, _gfn: Gfn) {}
}

/// Where a guest runs, and the host that serves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Both on one processor.
    SameCpu,
    /// Each on one of its own.
    TwoCpus,
    /// The guest on one, and the host wherever it goes.
    GuestPinned,
    /// Wherever they go.
    Free,
}

impl Place {
    /// Its name in cases.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::SameCpu => "same CPU",
            Self::TwoCpus => "two CPUs",
            Self::GuestPinned => "guest pinned",
            Self::Free => "as it comes",
        }
    }
}

/// Keeps the host and a guest in their place. Once it is dropped, the host may run everywhere again.
#[derive(Debug)]
pub(crate) struct Pinned {
    all: Vec<usize>,
}

impl Pinned {
    /// Puts process `guest` and this process, which serves its faults, in place. `None` if there is only one
    /// processor, where all places are the same.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new(guest: u32, place: Place) -> Result<Option<Self>, BenchError> {
        let io = BenchError::io("choose processors");
        let all = allowed_cpus().map_err(&io)?;
        let [first, second, ..] = all[..] else {
            return Ok(None);
        };
        let (host, guest_on) = match place {
            Place::SameCpu => (Some(first), Some(first)),
            Place::TwoCpus => (Some(first), Some(second)),
            Place::GuestPinned => (None, Some(second)),
            Place::Free => (None, None),
        };
        for (pid, processor) in [(guest, guest_on), (std::process::id(), host)] {
            if let Some(processor) = processor {
                pin(pid, &[processor]).map_err(&io)?;
            }
        }
        Ok(Some(Self { all }))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Not expected to fail: this process was pinned to a part of these processors before.
        let _ = pin(std::process::id(), &self.all);
    }
}
