//! The host of a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memvisor_wire::signals::Signals;

use super::super::{Setup, pools};
use super::{Run, Stopped};
use crate::control::{Client, ClientError};
use crate::launch::{Child, HostStart, Scratch, await_child, end_all, in_words};
use crate::settings::EngineChoice;

/// How long it may take until it answers, and to end once its guests have ended.
const HOST: Duration = Duration::from_secs(10);

/// The process, and its control API.
#[derive(Debug)]
pub(super) struct Host {
    child: Child,
    pub(super) client: Client,
}

impl Host {
    /// Starts it and waits until it answers.
    pub(super) fn start(run: &Run<'_>, scratch: &Scratch) -> Result<Self, Stopped> {
        let setup = run.setup;
        let configuration = configuration(setup, scratch.path())?;
        let swap_dir = setup.start.swap_dir.as_deref();
        let start = HostStart {
            memory: setup.memory,
            engine: setup.start.engine.unwrap_or(EngineChoice::Auto),
            profile: setup.start.profile.unwrap_or_default(),
            policy: setup.start.policy,
            settings: &setup.settings,
            http: setup.start.http,
            runtime_dir: scratch.runtime_dir().path(),
            swap_dir: swap_dir.unwrap_or(scratch.path()),
            swap_cache: setup.start.swap_cache.as_deref(),
            scratch: Some(scratch.path()),
            configuration: configuration.as_deref(),
        };
        let child = Child::start("host", run.program, start.args(), run.dir);
        let mut host = Self {
            child: child.map_err(Stopped::system("start a host"))?,
            client: Client::new(scratch.runtime_dir().control_socket())?,
        };
        let limit = Instant::now() + HOST;
        loop {
            match host.client.status() {
                // Its socket is not there yet.
                Err(ClientError::NotRunning { .. }) => {}
                answer => return answer.map(|_| host).map_err(Stopped::from),
            }
            host.check()?;
            if Instant::now() > limit {
                return Err(host.overtime("answer"));
            }
            run.wait(Instant::now() + Duration::from_millis(20))?;
        }
    }

    /// Fails if it has ended.
    pub(super) fn check(&mut self) -> Result<(), Stopped> {
        let ended = self.child.ended();
        match ended.map_err(Stopped::system("wait for the host"))? {
            None => Ok(()),
            Some(status) => Err(Stopped::Died {
                name: "the host".to_owned(),
                how: in_words(status),
                log: self.child.log_tail(),
            }),
        }
    }

    fn overtime(&self, what: &'static str) -> Stopped {
        Stopped::Overtime {
            name: "the host".to_owned(),
            what,
            limit: HOST,
            log: self.child.log_tail(),
        }
    }

    /// Ends it. An error if it does not end well.
    pub(super) fn end(&mut self, signals: &Signals) -> Result<(), Stopped> {
        let limit = Instant::now() + HOST;
        end_all(std::slice::from_mut(&mut self.child), || {
            await_child(signals, limit)
        });
        match self.child.ended() {
            Ok(Some(status)) if status.success() => Ok(()),
            _ => self.check(),
        }
    }
}

/// Writes what of the host is said in a configuration file, if anything is.
fn configuration(setup: &Setup, dir: &Path) -> Result<Option<PathBuf>, Stopped> {
    if setup.pools.is_empty() {
        return Ok(None);
    }
    let file = dir.join("host.toml");
    let written = fs::write(&file, pools::configuration(&setup.pools));
    written.map_err(Stopped::system("write a configuration file for the host"))?;
    Ok(Some(file))
}
