//! The daemon as a balloon session sees it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use memvisor_wire::balloon::{PageStatus, Start, StatusRun};
use memvisor_wire::{Doorbell, SeqPacket};

use super::daemon::Host;
use super::member::Member;
use crate::balloon::{
    BalloonCounters, BalloonHost, BalloonVm, GuestStats, Refusal, SessionError, Tap, serve,
};
use crate::page::Home;
use crate::policy::FreeState;
use crate::reclaim::Job;
use crate::throttle::Throttle;
use crate::units::{Gfn, GfnRun, Pages, VmId};

/// ESX's agents ask for their target once a second.
const POLL: Duration = Duration::from_secs(1);

/// An agent can connect, break the rules and connect again as fast as it likes.
static SESSIONS: Throttle = Throttle::new(50, Duration::from_secs(1));

/// Serves one connection of an agent to its end.
pub(super) fn run(host: &Arc<Host>, socket: SeqPacket) {
    match serve(&socket, &**host, POLL) {
        Ok(end) => tracing::debug!(?end, "balloon session ended"),
        // Only debug: the agent asks again twice a minute for as long as it runs.
        Err(SessionError::Refused(Refusal::Disabled(vm))) => {
            tracing::debug!(%vm, "balloon agent turned away: ballooning is disabled");
        }
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            SESSIONS
                .line(|unsaid| tracing::info!(error, unsaid, "balloon session ended by the host"));
        }
    }
    drop(socket);
}

impl BalloonHost for Host {
    fn connect(&self, start: &Start) -> Result<Box<dyn BalloonVm + '_>, Refusal> {
        let member = self
            .members
            .by_token(start.token)
            .ok_or(Refusal::UnknownToken)?;
        let vm = member.vm.id;
        let actual = u64::from(member.vm.table.pages());
        if member.balloon.max() == Pages(0) {
            return Err(Refusal::Disabled(vm));
        }
        if start.total_pages > actual {
            return Err(Refusal::TooLarge {
                vm,
                claimed: start.total_pages,
                actual,
            });
        }
        // Acquire pairs with the Release of the previous agent: its session has ended.
        if member.balloon.connected.swap(true, Ordering::Acquire) {
            return Err(Refusal::Taken(vm));
        }
        let (vm, agent) = (&member.vm.params.name, &start.name);
        SESSIONS.line(|unsaid| tracing::info!(%vm, agent, unsaid, "balloon agent connected"));
        Ok(Box::new(Balloon { host: self, member }))
    }

    fn tap(&self) -> Option<Box<dyn Tap>> {
        let recording = self.balloon_recorder.as_ref()?.begin()?;
        Some(Box::new(recording))
    }
}

/// The balloon of one VM, held by one session.
#[derive(Debug)]
struct Balloon<'a> {
    host: &'a Host,
    member: Arc<Member>,
}

impl Drop for Balloon<'_> {
    fn drop(&mut self) {
        // Release pairs with the Acquire of the next agent.
        self.member
            .balloon
            .connected
            .store(false, Ordering::Release);
    }
}

/// The answer when no worker is left to ask, because the VM is ending.
fn all_busy(runs: &[GfnRun]) -> Vec<StatusRun> {
    runs.iter()
        // BUSY, because the agent may keep these pages and ask again: a VM that is ending has refused nothing.
        .map(|run| StatusRun {
            run: *run,
            status: PageStatus::Busy,
        })
        .collect()
}

impl BalloonVm for Balloon<'_> {
    fn id(&self) -> VmId {
        self.member.vm.id
    }

    fn total_pages(&self) -> u64 {
        u64::from(self.member.vm.table.pages())
    }

    fn balloon_max(&self) -> u64 {
        self.member.balloon.max().0
    }

    fn target(&self) -> u64 {
        let orders = &self.member.vm.orders;
        // Relief is applied here because the latest plan may be older. A target set by hand is not relieved.
        let target = self.member.balloon_target();
        let relief = self
            .member
            .balloon
            .relief()
            .filter(|_| orders.manual().is_none());
        relief.map_or(target, |most| target.min(most)).0
    }

    fn locked(&self) -> u64 {
        self.member.ballooned().0
    }

    fn holds(&self, gfn: Gfn) -> bool {
        self.member.vm.table.entry(gfn).home() == Home::Ballooned
    }

    fn lock(&self, runs: &[GfnRun]) -> Vec<StatusRun> {
        let answer = self
            .member
            .worker
            .ask(|answer| Job::Inflate(runs.to_vec(), answer));
        answer.unwrap_or_else(|| all_busy(runs))
    }

    fn unlock(&self, runs: &[GfnRun]) -> Vec<StatusRun> {
        let answer = self
            .member
            .worker
            .ask(|answer| Job::Deflate(runs.to_vec(), answer));
        answer.unwrap_or_else(|| all_busy(runs))
    }

    fn release_all(&self) {
        // No answer means that the VM is ending, and then its pages are released anyway.
        let _ = self.member.worker.ask(Job::ReleaseAll);
    }

    fn take_reset(&self) -> bool {
        let pops = self.member.vm.stats.pops.get();
        self.member.balloon.told_pops.swap(pops, Ordering::Relaxed) != pops
    }

    fn is_closing(&self) -> bool {
        self.member.balloon.closing.load(Ordering::Relaxed)
    }

    fn report(&self, stats: &GuestStats) {
        let ballooned = self.member.ballooned();
        self.member.balloon.set_stats(stats, ballooned);
    }

    fn relief(&self, pages: u64) {
        // A host that is in hard or low has nothing to give: then the guest has to page by itself.
        if self.host.governor.state() <= FreeState::Soft {
            let ballooned = self.member.ballooned();
            self.member.balloon.relieve(ballooned, Pages(pages));
        }
    }

    fn doorbell(&self) -> &Doorbell {
        &self.member.balloon.doorbell
    }

    fn is_limited(&self) -> bool {
        !self.member.balloon.unlimited.load(Ordering::Relaxed)
    }

    fn counters(&self) -> &BalloonCounters {
        &self.member.balloon.counters
    }
}
