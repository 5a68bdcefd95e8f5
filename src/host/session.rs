//! The life of one VM, from its guest's first message to the last page given back.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use memvisor_wire::memory::{MAX_CHANNELS, MAX_MESSAGE, Message, Ready, Welcome};
use memvisor_wire::system_error::{SystemError, cannot};
use memvisor_wire::{Doorbell, Received, SeqPacket, wait_readable};
use thiserror::Error;

use super::admission::{Admitted, Refusal};
use super::daemon::Host;
use super::member::{BalloonLine, Member};
use super::{traced, vm_settings};
use crate::chain::chain;
use crate::engine::{Engine, EngineKind, Link, MprotectProvider, Ram, ShimEngine, UffdProvider};
use crate::fault::{Attacher, Ended, FaultThread, Faulter};
use crate::reclaim::{Job, Worker, WorkerHandle};
use crate::sample::Sampler;
use crate::settings::Domain;
use crate::share::AttachRequest;
use crate::sys::{Pagemap, Process, Uffd};
use crate::throttle::Throttle;
use crate::units::{Gfn, GfnRun, PAGE_SIZE, Pages, VmId};
use crate::vm::{Parts, Vm, VmParams};

/// How long a guest may take for each step of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a guest that was told to end may take to do so by itself.
const END_GRACE: Duration = Duration::from_millis(700);
/// How long the kernel may take to end a killed guest.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// Any process of the same user can have itself refused as often as it can open a socket.
static REFUSALS: Throttle = Throttle::new(20, Duration::from_secs(1));
/// Three lines for each VM: enough for some dozen at once, and then for three VMs a second.
static POWER: Throttle = Throttle::new(200, Duration::from_millis(100));

/// Why a handshake failed.
#[derive(Debug, Error)]
#[non_exhaustive]
enum HandshakeError {
    #[error("the connection ended before the handshake did")]
    Closed,
    #[error("nothing came within {HANDSHAKE:?} where {0} is expected")]
    Timeout(&'static str),
    #[error("message of {len} bytes; at most {MAX_MESSAGE} are allowed")]
    TooLong { len: usize },
    #[error(transparent)]
    Decode(#[from] memvisor_wire::DecodeError),
    #[error("{got} where {wanted} is expected")]
    Order {
        got: &'static str,
        wanted: &'static str,
    },
    #[error("READY names {channels} fault channels; 1 to {MAX_CHANNELS} are allowed")]
    Channels { channels: u16 },
    #[error("READY comes with {got} descriptors; {wanted} belong to it")]
    Descriptors { got: usize, wanted: usize },
    #[error("READY maps RAM at {base:#x}: not page aligned, or it leaves the address space")]
    Base { base: u64 },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Kernel(#[from] SystemError),
}

/// Serves one connection on the memory socket to its end.
pub(super) fn run(host: &Arc<Host>, socket: SeqPacket) {
    match power_on(host, &socket) {
        Ok(powered) => powered.live(host, socket),
        Err(error) => {
            REFUSALS.line(|unsaid| tracing::warn!(%error, unsaid, "a guest was not powered on"));
            // An error is ignored: if the guest is gone, there is nobody to tell.
            let _ = socket.send(&Message::Error(chain(&error)).encode());
        }
    }
}

/// The fault channels of a guest. Nobody but the daemon ever holds its own ends: whoever has a descriptor of a socket
/// can make the kernel hold the socket's lock for ever, by receiving into a page that is never brought.
struct Channels {
    ours: Vec<SeqPacket>,
    theirs: Vec<SeqPacket>,
}

impl Channels {
    fn new(count: u16) -> io::Result<Self> {
        let pairs: io::Result<Vec<_>> = (0..count).map(|_| SeqPacket::pair()).collect();
        let (ours, theirs) = pairs?.into_iter().unzip();
        Ok(Self { ours, theirs })
    }
}

/// A guest whose handshake is done, except for the last message (GO).
struct Powered {
    id: VmId,
    token: u64,
    admitted: Admitted,
    process: Process,
    ready: Ready,
    uffd: Option<Arc<Uffd>>,
    channels: Channels,
    doorbell: Doorbell,
}

fn power_on(host: &Arc<Host>, socket: &SeqPacket) -> Result<Powered, HandshakeError> {
    socket
        // A guest that reads nothing must not keep this thread waiting.
        .set_send_timeout(HANDSHAKE)
        .map_err(cannot("bound the time of sending"))?;
    // From the kernel and not from HELLO: this process is killed when the VM ends.
    let process = Process::peer(socket).map_err(cannot("identify the guest's process"))?;
    let (hello, _) = receive(socket, "HELLO")?;
    let Message::Hello(hello) = hello else {
        return Err(HandshakeError::Order {
            got: hello.name(),
            wanted: "HELLO",
        });
    };
    let admitted = host.admission.admit(&hello)?;
    let (id, token) = (admitted.id, rand::random());
    welcome(host, socket, &admitted, id, token)?;
    let (ready, fds) = receive(socket, "READY")?;
    let Message::Ready(ready) = ready else {
        return Err(HandshakeError::Order {
            got: ready.name(),
            wanted: "READY",
        });
    };
    let uffd = check_ready(&admitted, &ready, fds)?;
    let channels = Channels::new(ready.channels).map_err(cannot("make the fault channels"))?;
    let doorbell = Doorbell::new().map_err(cannot("make an eventfd"))?;
    Ok(Powered {
        id,
        token,
        admitted,
        process,
        ready,
        uffd,
        channels,
        doorbell,
    })
}

fn receive(
    socket: &SeqPacket,
    wanted: &'static str,
) -> Result<(Message, Vec<OwnedFd>), HandshakeError> {
    let [readable] =
        wait_readable([socket.as_fd()], Some(HANDSHAKE)).map_err(cannot("wait for the guest"))?;
    if !readable {
        return Err(HandshakeError::Timeout(wanted));
    }
    let mut buffer = [0; MAX_MESSAGE];
    let (received, fds) = socket
        .recv_with_fds(&mut buffer)
        .map_err(cannot("receive from the guest"))?;
    match received {
        Received::Closed => Err(HandshakeError::Closed),
        Received::Message { len } if len > MAX_MESSAGE => Err(HandshakeError::TooLong { len }),
        Received::Message { len } => Ok((Message::decode(&buffer[..len])?, fds)),
    }
}

fn welcome(
    host: &Host,
    socket: &SeqPacket,
    admitted: &Admitted,
    id: VmId,
    token: u64,
) -> Result<(), HandshakeError> {
    let pool = admitted
        .parts
        .pool
        .read_only_fd()
        .map_err(cannot("open the pool to read"))?;
    let zip = &admitted.parts.zip;
    let arena = zip
        .read_only_fd()
        .map_err(cannot("open the compression cache to read"))?;
    let swap = admitted
        .parts
        .swap
        .file
        .read_only_fd()
        .map_err(cannot("open the swap file to read"))?;
    let claims = admitted.claims.as_deref();
    let welcome = Message::Welcome(Welcome {
        vm: id.0,
        engine: admitted.engine,
        token,
        pool_frames: host.pools.frames(),
        arena_pages: claims.map(|_| zip.arena_pages()),
    });
    let mut fds = vec![admitted.ram.as_fd(), pool.as_fd()];
    if let Some(claims) = claims {
        fds.extend([claims.as_fd(), arena.as_fd(), swap.as_fd()]);
    }
    socket
        .send_with_fds(&welcome.encode(), &fds)
        .map_err(cannot("send WELCOME"))?;
    Ok(())
}

fn check_ready(
    admitted: &Admitted,
    ready: &Ready,
    mut fds: Vec<OwnedFd>,
) -> Result<Option<Arc<Uffd>>, HandshakeError> {
    let channels = ready.channels;
    if channels == 0 || usize::from(channels) > MAX_CHANNELS {
        return Err(HandshakeError::Channels { channels });
    }
    let size = Pages(u64::from(admitted.params.pages)).bytes().0;
    // Gfns are reckoned from this base: with one near the end of the address space they would wrap around.
    if !ready.base.is_multiple_of(PAGE_SIZE as u64) || ready.base.checked_add(size).is_none() {
        return Err(HandshakeError::Base { base: ready.base });
    }
    let wanted = usize::from(admitted.engine == EngineKind::Uffd);
    let got = fds.len();
    if got != wanted {
        return Err(HandshakeError::Descriptors { got, wanted });
    }
    let uffd = fds.pop().map(Uffd::from_guest).transpose();
    let uffd = uffd.map_err(cannot("take over the guest's userfaultfd"))?;
    Ok(uffd.map(Arc::new))
}

fn engine(
    ram: &Arc<Ram>,
    link: &Arc<Link>,
    uffd: Option<&Arc<Uffd>>,
    base: u64,
    pagemap: Option<Pagemap>,
) -> Box<dyn Engine> {
    let (ram, link) = (Arc::clone(ram), Arc::clone(link));
    match uffd {
        Some(uffd) => {
            let provider = UffdProvider::new(Arc::clone(uffd), base, pagemap);
            Box::new(ShimEngine::new(ram, link, provider))
        }
        None => Box::new(ShimEngine::new(ram, link, MprotectProvider)),
    }
}

impl Powered {
    /// Runs the VM on this thread until it ends, and gives everything back.
    fn live(self, host: &Arc<Host>, socket: SeqPacket) {
        let Admitted {
            name,
            params,
            layered,
            ram,
            mut parts,
            metadata,
            ..
        } = self.admitted;
        let Channels { ours, theirs } = self.channels;
        let link = Arc::new(Link::new(socket));
        let base = self.ready.base;
        // It may fail: without a page map every page that is due is hashed, which only costs time.
        let pagemap = Pagemap::open(&self.process, base, params.pages);
        let tracks_writes = pagemap.is_ok();
        let engine = engine(&ram, &link, self.uffd.as_ref(), base, pagemap.ok());
        let balloon_max =
            vm_settings::balloon_max(params.pages, &layered.now, &host.configuration.settings());
        parts.witness = traced::appears(&host.recorder, self.id, &params, &layered.now);
        let Some(vm) = put_together(self.id, params, engine, parts, &link) else {
            return;
        };
        // The ceiling until the first plan.
        vm.orders.set_ceiling(host.first_ceiling(&layered.now));
        // From here on the tear-down of the VM gives it back.
        metadata.taken_over();
        let peers = Arc::clone(&host.members) as Arc<dyn crate::share::Peers>;
        // The policy sets the rates of scanning and sampling at its next look.
        let process = Arc::new(self.process);
        let asked = Some(Arc::clone(&process));
        let sampler = Sampler::new(rand::random(), Instant::now(), asked);
        let worker = Worker::start(Arc::clone(&vm), Arc::clone(&link), peers, sampler);
        let faults = worker.as_ref().ok().map(|worker| {
            let (vm, link) = (Arc::clone(&vm), Arc::clone(&link));
            let attacher = Box::new(worker.handle().clone());
            let guest = Faulter {
                pid: process.pid(),
                base,
                uffd: self.uffd,
                sockets: ours,
            };
            FaultThread::new(vm, link, guest, attacher)
        });
        let (faults, worker) = match (faults, worker) {
            (Some(Ok(faults)), Ok(worker)) => (faults, worker),
            (faults, worker) => {
                tracing::error!(vm = %vm.params.name, "the VM's threads cannot be started");
                link.end("the host cannot start the VM's threads");
                drop((faults, worker.map(Worker::join)));
                vm.tear_down();
                return;
            }
        };
        let domain = host.configuration.domain(self.id, &layered.now);
        vm.set_sharing(domain != Domain::None);
        let member = Arc::new(Member {
            vm: Arc::clone(&vm),
            ram,
            link: Arc::clone(&link),
            worker: worker.handle().clone(),
            process,
            balloon: BalloonLine::new(self.token, balloon_max, self.doorbell),
            layered: Mutex::new(layered),
            domain: Mutex::new(domain),
            worth: Mutex::default(),
            recent: Mutex::default(),
        });
        // Added before `is_closed` is asked: either `Members::close` ends this VM, or it never runs.
        host.add(Arc::clone(&member));
        log_power_on(&member, tracks_writes);
        let runs = link.go(&theirs) && !host.members.is_closed();
        // The guest has its own descriptors of these sockets now.
        drop(theirs);
        let ended = if runs { faults.run() } else { Ended::GuestGone };
        power_off(host, &member, worker, &ended);
        // Last: the name stays taken until nothing is left of the VM.
        drop(name);
    }
}

/// Makes the VM. `None`: there is no memory for its tables, and its guest has been told.
fn put_together(
    id: VmId,
    params: VmParams,
    engine: Box<dyn Engine>,
    parts: Parts,
    link: &Link,
) -> Option<Arc<Vm>> {
    let name = params.name.clone();
    let made = Vm::new(id, params, engine, parts).inspect_err(|error| {
        tracing::error!(vm = %name, %error, "a guest was not powered on");
        link.end(&format!(
            "the host cannot make the VM's page table: {error}"
        ));
    });
    made.ok().map(Arc::new)
}

fn log_power_on(member: &Member, tracks_writes: bool) {
    let vm = &member.vm;
    POWER.line(|unsaid| {
        tracing::info!(
            vm = %vm.params.name, id = vm.id.0, pid = member.process.pid(),
            engine = vm.engine.kind().name(), pages = vm.params.pages,
            tracks_writes, unsaid, "VM powered on"
        );
    });
}

impl Attacher for WorkerHandle {
    fn attach(&self, pages: GfnRun, source: Gfn, answer: Sender<u32>) -> bool {
        self.suggest(Job::Attach(AttachRequest { pages, source }, answer))
    }
}

/// Ends the guest's process if it has not ended, waits for the worker, and gives all memory back.
fn power_off(host: &Host, member: &Member, worker: Worker, ended: &Ended) {
    let vm = &member.vm;
    let orderly = matches!(ended, Ended::GuestGone | Ended::Asked(_));
    let error: &dyn Error = ended;
    POWER.line(|unsaid| {
        if orderly {
            tracing::info!(vm = %vm.params.name, why = %ended, unsaid, "VM powers off");
        } else {
            tracing::error!(vm = %vm.params.name, error, unsaid, "VM powers off");
        }
    });
    member.balloon.closing.store(true, Ordering::Relaxed);
    member.balloon.doorbell.ring();
    member.link.end(&chain(ended));
    // The guest must be gone before the tear-down: its frames may be reused only when it cannot see them any more.
    if !member.process.wait(END_GRACE) && !member.process.kill(KILL_GRACE) {
        tracing::error!(vm = %vm.params.name, pid = member.process.pid(), "the guest does not die");
    }
    // Without a guest its command fails, so it cannot wait for one any more.
    worker.join();
    if let Some(recorder) = &host.recorder {
        recorder.leaves(vm.id, &traced::stalls(&member.stalled()));
    }
    vm.tear_down();
    // Only after its memory is back: a client that no longer sees the VM must not see its memory in use either.
    host.members.remove(vm.id);
    let used_pages = host.budget.used().0;
    POWER.line(|unsaid| tracing::info!(vm = %vm.params.name, used_pages, unsaid, "VM is gone"));
}
