//! The same guests without a host, served by the kernel's own means.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::guard::Undo;
use super::super::peer::cgroup::Cgroup;
use super::super::peer::ksm::{Ksm, Pace};
use super::super::peer::swap_file;
use super::super::peer::zram::{self, Zram};
use super::super::{BenchError, Setup};
use super::limit::{Given, Used};
use super::processes::Processes;
use super::{Part, Ran};
use crate::units::Bytes;

/// How many pages the kernel brings back from swap at once, as a power of two. Zero, which means one page, is the usual
/// setting for zram, where reading ahead saves nothing because every page costs the same.
const PAGE_CLUSTER: (&str, &str) = ("/proc/sys/vm/page-cluster", "0");

/// Why the fleet did not run.
#[derive(Debug)]
pub(super) enum NotRun {
    /// This system lacks something that is needed, or somebody uses it.
    Missing(String),
    /// The cgroup had no memory left for a process, and the kernel killed it.
    TooLittle,
}

/// Runs the fleet in memory without any limit.
pub(super) fn unlimited(setup: &Setup<'_>, part: &Part<'_>, dir: &Path) -> Result<Ran, BenchError> {
    let processes = Processes::start(setup, part, dir, &["--bare".to_owned()])?;
    let reports = processes.finish(setup, part, || Ok(()))?;
    let memory = reports.iter().map(|report| report.peak_bytes).sum();
    Ok(Ran {
        reports,
        memory,
        cpu: Duration::ZERO,
        own: 0,
    })
}

/// Runs the fleet in a cgroup with KSM and the swap that `given` says. Afterwards everything is as it was before. The
/// inner error says why the fleet did not run.
pub(super) fn run(
    setup: &Setup<'_>,
    part: &Part<'_>,
    dir: &Path,
    given: Given,
) -> Result<Result<(Ran, Used), NotRun>, BenchError> {
    let file = dir.join("swap");
    let done = setup
        .guard
        .within(|| prepared(setup, part, dir, given, &file));
    // Ignored, because the file exists only if the fleet was given one.
    let _ = fs::remove_file(&file);
    done.map_err(BenchError::io("put the machine back"))?
}

fn prepared(
    setup: &Setup<'_>,
    part: &Part<'_>,
    dir: &Path,
    given: Given,
    file: &Path,
) -> Result<Result<(Ran, Used), NotRun>, BenchError> {
    let guard = setup.guard;
    let missing = |why| Ok(Err(NotRun::Missing(why)));
    let ksm = match Ksm::open(guard, Pace::Usual)? {
        Ok(ksm) => ksm,
        Err(why) => return missing(format!("ksm: {why}")),
    };
    let zram = match zram::claim(guard).and_then(|()| zram::nobody_swaps()) {
        Err(why) => return missing(format!("zram: {why}")),
        Ok(()) if given.zram == 0.0 => None,
        Ok(()) => match Zram::make(guard, bytes(given.zram))? {
            Ok(zram) => Some(zram),
            Err(why) => return missing(format!("zram: {why}")),
        },
    };
    if given.file > 0.0
        && let Err(why) = swap_file::open(guard, file, bytes(given.file))?
    {
        return missing(why);
    }
    if zram.is_some() {
        set_page_cluster(setup)?;
    }
    // Opened last, so undone first: its processes are gone before swap ends and KSM is restored.
    let cgroup = match Cgroup::open(guard, bytes(given.limit).0)? {
        Ok(cgroup) => cgroup,
        Err(why) => return missing(format!("memory cgroup: {why}")),
    };
    ksm.start()?;
    measured(setup, part, dir, (&ksm, zram.as_ref(), &cgroup))
}

fn measured(
    setup: &Setup<'_>,
    part: &Part<'_>,
    dir: &Path,
    (ksm, zram, cgroup): (&Ksm<'_>, Option<&Zram<'_>>, &Cgroup<'_>),
) -> Result<Result<(Ran, Used), NotRun>, BenchError> {
    let before = ksm.cpu()?;
    let words = ["--bare", "--cgroup", &cgroup.dir().display().to_string()].map(str::to_owned);
    let processes = Processes::start(setup, part, dir, &words)?;
    let (mut most, mut cost) = (0, None);
    let reports = processes.finish(setup, part, || {
        if let Some(zram) = zram {
            let usage = zram.usage()?;
            if usage.stored > most {
                (most, cost) = (usage.stored, Some(usage.taken as f64 / usage.stored as f64));
            }
        }
        Ok(())
    });
    let reports = match reports {
        Err(BenchError::Failed { .. }) if cgroup.killed()? > 0 => {
            return Ok(Err(NotRun::TooLittle));
        }
        reports => reports?,
    };
    let taken = zram.map(Zram::usage).transpose()?;
    let used = Used {
        cgroup: cgroup.peak()? as f64,
        zram: taken.map_or(0.0, |usage| usage.most as f64),
        cost,
    };
    let ran = Ran {
        reports,
        memory: bytes(used.total()).0,
        cpu: ksm.cpu()?.saturating_sub(before),
        own: 0,
    };
    Ok(Ok((ran, used)))
}

fn set_page_cluster(setup: &Setup<'_>) -> Result<(), BenchError> {
    let (path, value) = PAGE_CLUSTER;
    let io = BenchError::io("change how much the kernel reads ahead from swap");
    let text = fs::read_to_string(path).map_err(&io)?;
    let path = PathBuf::from(path);
    let undo = Undo::Write {
        path: path.clone(),
        text,
    };
    setup.guard.undo(undo).map_err(&io)?;
    fs::write(path, value).map_err(&io)
}

/// Whole pages.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes of memory, which are neither negative nor beyond 2^53"
)]
fn bytes(size: f64) -> Bytes {
    Bytes(size as u64).pages().bytes()
}
