//! For tests of the owners: some of them put together, and VMs that run without a guest.

use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use memvisor_wire::memory::Hello;
use memvisor_wire::{Doorbell, SeqPacket};
use tempfile::TempDir;

use super::admission::{Admission, Admitted, Engines};
use super::configuration::Configuration;
use super::member::{BalloonLine, Member};
use super::members::{Members, Name};
use super::options::{EngineChoice, HostOptions};
use super::pools::Pools;
use crate::engine::{EngineKind, Link, MprotectProvider, ShimEngine};
use crate::machine::BudgetChoice;
use crate::page::Budget;
use crate::policy::Esx;
use crate::reclaim::Worker;
use crate::runtime_dir::RuntimeDir;
use crate::sample::Sampler;
use crate::settings::{ConfigFile, Domain, Layer, Layers, Profile};
use crate::share::Peers;
use crate::sys::Process;
use crate::units::{Bytes, Pages};
use crate::vm::Vm;

/// The owners below the governor, with the budget of a small host.
pub(super) struct Rig {
    pub(super) dir: TempDir,
    pub(super) budget: Arc<Budget>,
    pub(super) members: Arc<Members>,
    pub(super) configuration: Arc<Configuration>,
    pub(super) pools: Arc<Pools>,
    pub(super) admission: Admission,
}

/// The options of a host that has `config` as its file, if anything.
pub(super) fn options(dir: &Path, memory: Bytes, config: Option<&str>) -> HostOptions {
    let config = config.map(|text| {
        let path = dir.join("memvisor.toml");
        std::fs::write(&path, text).expect("a directory of our own");
        ConfigFile::load(&path).expect("a good file")
    });
    let file = config.as_ref().map(|file| file.settings.clone());
    HostOptions {
        memory,
        budget: BudgetChoice::Size(memory),
        policy: &Esx,
        engine: EngineChoice::Mprotect,
        swap_dir: dir.to_owned(),
        swap_cache: None,
        runtime_dir: RuntimeDir::new("/run/memvisor").expect("short enough"),
        record_balloon: None,
        http: None,
        vma_budget: None,
        layers: Layers::new(Profile::Lab, file.unwrap_or_default(), Layer::default()),
        config,
        trace: None,
    }
}

impl Rig {
    /// A host of 64 MiB whose guests use page protection.
    pub(super) fn new(config: Option<&str>) -> Self {
        Self::with_engine(config, EngineKind::Mprotect)
    }

    /// A host whose guests have to use `engine`.
    pub(super) fn with_engine(config: Option<&str>, engine: EngineKind) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = options(dir.path(), Bytes::from_mib(64), config);
        let budget = Arc::new(Budget::new(options.memory.pages(), Pages(16)));
        let members = Arc::new(Members::default());
        let configuration = Arc::new(Configuration::new(&options));
        let pools = Arc::new(Pools::new(&budget).expect("memory"));
        let engines = Engines {
            first: engine,
            may_fall_back: false,
            vma_budget: 1000,
        };
        let admission = Admission::new(engines, &budget, &members, &configuration, &pools);
        Self {
            dir,
            budget,
            members,
            configuration,
            pools,
            admission,
        }
    }

    /// Writes another text to the configuration file.
    pub(super) fn rewrite(&self, text: &str) {
        let path = self.dir.path().join("memvisor.toml");
        std::fs::write(path, text).expect("a directory of our own");
    }

    /// A VM that runs, with a worker and without a guest.
    pub(super) fn run(&self, hello: &Hello) -> Running<'_> {
        let admitted = self.admission.admit(hello).expect("there is room");
        Running::start(self, admitted)
    }
}

/// The first message of a guest called `name` with `pages` and nothing special.
pub(super) fn hello(name: &str, pages: u32) -> Hello {
    Hello {
        name: name.to_owned(),
        pages,
        uffd: false,
        reservation: 0,
        limit: pages,
        shares: 1000,
        balloon_max: u32::MAX,
        sharing: true,
        salt: None,
        workload: String::new(),
        inline: false,
        resource_pool: String::new(),
    }
}

/// A VM that runs; dropping it gives everything back.
pub(super) struct Running<'a> {
    rig: &'a Rig,
    member: Arc<Member>,
    worker: Option<Worker>,
    _name: Name,
    _guest: SeqPacket,
}

impl<'a> Running<'a> {
    fn start(rig: &'a Rig, admitted: Admitted) -> Self {
        let (guest, socket) = SeqPacket::pair().expect("a pair of sockets");
        let process = Arc::new(Process::peer(&socket).expect("this process"));
        let link = Arc::new(Link::new(socket));
        let ram = admitted.ram;
        let engine = ShimEngine::new(Arc::clone(&ram), Arc::clone(&link), MprotectProvider);
        let (id, params) = (admitted.id, admitted.params);
        let vm = Vm::new(id, params, Box::new(engine), admitted.parts).expect("memory");
        let vm = Arc::new(vm);
        admitted.metadata.taken_over();
        let peers = Arc::clone(&rig.members) as Arc<dyn Peers>;
        let sampler = Sampler::new(1, Instant::now(), None);
        let worker = Worker::start(Arc::clone(&vm), Arc::clone(&link), peers, sampler);
        let worker = worker.expect("a thread");
        let bell = Doorbell::new().expect("an eventfd");
        let member = Arc::new(Member {
            vm,
            ram,
            link,
            worker: worker.handle().clone(),
            process,
            balloon: BalloonLine::new(1, Pages(0), bell),
            layered: Mutex::new(admitted.layered),
            domain: Mutex::new(Domain::Common),
            worth: Mutex::default(),
            recent: Mutex::default(),
        });
        rig.members.add(Arc::clone(&member));
        Self {
            rig,
            member,
            worker: Some(worker),
            _name: admitted.name,
            _guest: guest,
        }
    }
}

impl Deref for Running<'_> {
    type Target = Member;

    fn deref(&self) -> &Member {
        &self.member
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.join();
        }
        self.member.vm.tear_down();
        self.rig.members.remove(self.member.vm.id);
    }
}
