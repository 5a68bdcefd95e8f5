//! What a benchmark changes on the machine is put back, however the benchmark ends.
//!
//! KSM and swap are settings of the whole kernel. A destructor restores them unless the process is
//! killed, a signal handler unless it is killed by SIGKILL. So neither does it: a small process of its own
//! holds one end of a pipe. Whatever is to be changed it is told first, and when the pipe closes, for
//! whatever reason, it undoes all of it, the latest first. There is one way to restore, and every run
//! goes it.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use serde::{Deserialize, Serialize};

use crate::sys::swap_off;

/// How the names of directories begin that a guard may remove.
pub const SCRATCH_PREFIX: &str = "memvisor-bench-";

/// How long to go on trying: the kernel keeps a device for a moment after its last user.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// What undoes a change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Undo {
    /// Write this into a file of the kernel.
    Write {
        /// The file.
        path: PathBuf,
        /// What it held.
        text: String,
    },
    /// Swap onto this device no longer.
    SwapOff(PathBuf),
    /// Remove this zram device.
    RemoveZram(u32),
    /// Remove this directory of a benchmark.
    RemoveDir(PathBuf),
}

/// What a guard is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// Do this in the end.
    Undo(Undo),
    /// Make a zram device, remove it in the end, and say which one it is.
    AddZram,
}

/// The answer to each order: a number, which only [`Order::AddZram`] has a use for, or what is wrong.
type Answer = Result<u32, String>;

/// A guard that runs.
#[derive(Debug)]
pub struct Guard(Mutex<Option<Running>>);

#[derive(Debug)]
struct Running {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Guard {
    /// Starts a guard: `program` with the hidden command that calls [`run`].
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(program: &Path) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg("bench-guard")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C in a terminal is for the benchmark alone.
            .process_group(0)
            .spawn()?;
        let pipe = || io::Error::other("a pipe that was asked for is missing");
        let orders = child.stdin.take().ok_or_else(pipe)?;
        let answers = BufReader::new(child.stdout.take().ok_or_else(pipe)?);
        Ok(Self(Mutex::new(Some(Running {
            child,
            orders,
            answers,
        }))))
    }

    /// Has `undo` done in the end; to be called before what it undoes.
    ///
    /// # Errors
    /// The guard is gone: nothing must be changed.
    pub fn undo(&self, undo: Undo) -> io::Result<()> {
        self.order(&Order::Undo(undo)).map(drop)
    }

    /// Makes a zram device and returns its number.
    ///
    /// # Errors
    /// The kernel has no zram or this user no privilege.
    pub fn add_zram(&self) -> io::Result<u32> {
        self.order(&Order::AddZram)
    }

    fn order(&self, order: &Order) -> io::Result<u32> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone =
            || io::Error::other("the process that would restore the kernel's settings ended");
        let running = running.as_mut().ok_or_else(gone)?;
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        running.orders.write_all(line.as_bytes())?;
        let mut answer = String::new();
        if running.answers.read_line(&mut answer)? == 0 {
            return Err(gone());
        }
        let answer: Answer = serde_json::from_str(&answer)?;
        answer.map_err(io::Error::other)
    }

    /// Restores everything now and waits for it.
    ///
    /// # Errors
    /// What could not be restored; the guard has said it on standard error.
    pub fn finish(&self) -> io::Result<()> {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running {
            mut child, orders, ..
        }) = running
        else {
            return Ok(());
        };
        drop(orders);
        if child.wait()?.success() {
            return Ok(());
        }
        Err(io::Error::other("not everything could be restored"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Nobody is left to be told; the guard itself complains.
        let _ = self.finish();
    }
}

/// The guard's process: takes orders from `orders` until it ends, and then undoes everything, the latest
/// first. What could not be undone is told `complain`; whether all was.
pub fn run(orders: impl BufRead, mut answers: impl Write, mut complain: impl FnMut(&str)) -> bool {
    // Signals that end a terminal's processes must not end the one that cleans up behind them.
    let _ = SigSet::all().thread_block();
    let mut undos: Vec<Undo> = Vec::new();
    for line in orders.lines() {
        let Ok(line) = line else { break };
        let answer: Answer = match serde_json::from_str(&line) {
            Ok(Order::Undo(undo)) => {
                undos.push(undo);
                Ok(0)
            }
            Ok(Order::AddZram) => add_zram()
                .inspect(|number| undos.push(Undo::RemoveZram(*number)))
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let mut text = serde_json::to_string(&answer).unwrap_or_default();
        text.push('\n');
        if answers
            .write_all(text.as_bytes())
            .and_then(|()| answers.flush())
            .is_err()
        {
            break;
        }
    }
    let mut all = true;
    for undo in undos.iter().rev() {
        if let Err(error) = patiently(|| revert(undo)) {
            complain(&format!("cannot restore {undo:?}: {error}"));
            all = false;
        }
    }
    all
}

fn patiently(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error) if is_busy(&error) && start.elapsed() < PATIENCE => {
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ResourceBusy | io::ErrorKind::Interrupted | io::ErrorKind::DirectoryNotEmpty
    )
}

fn add_zram() -> io::Result<u32> {
    let text = fs::read_to_string("/sys/class/zram-control/hot_add")?;
    text.trim().parse().map_err(io::Error::other)
}

fn revert(undo: &Undo) -> io::Result<()> {
    match undo {
        Undo::Write { path, text } => fs::write(path, text),
        // It never came to swapping, or that has ended already.
        Undo::SwapOff(device) => match swap_off(device) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            done => done,
        },
        Undo::RemoveZram(number) => {
            fs::write(format!("/sys/block/zram{number}/reset"), "1")?;
            fs::write("/sys/class/zram-control/hot_remove", number.to_string())
        }
        Undo::RemoveDir(path) => remove_dir(path),
    }
}

fn remove_dir(path: &Path) -> io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str());
    if !name.is_some_and(|name| name.starts_with(SCRATCH_PREFIX)) {
        let why = format!("`{}` is no directory of a benchmark", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(orders: &[Order]) -> Vec<u8> {
        let line = |order| serde_json::to_string(order).expect("plain data") + "\n";
        orders.iter().map(line).collect::<String>().into_bytes()
    }

    #[test]
    fn what_was_changed_is_put_back_the_latest_first() {
        let place = tempfile::tempdir().expect("tempdir");
        let setting = place.path().join("setting");
        let scratch = place.path().join(format!("{SCRATCH_PREFIX}x"));
        fs::create_dir(&scratch).expect("a directory");
        fs::write(scratch.join("file"), "x").expect("a file");
        fs::write(&setting, "changed").expect("a file");
        let write = |text: &str| {
            Order::Undo(Undo::Write {
                path: setting.clone(),
                text: text.to_owned(),
            })
        };
        let orders = lines(&[
            write("first"),
            write("second"),
            Order::Undo(Undo::RemoveDir(scratch.clone())),
        ]);
        let mut answers = Vec::new();
        assert!(run(&orders[..], &mut answers, |text| panic!("{text}")));
        assert_eq!(fs::read_to_string(&setting).expect("there"), "first");
        assert!(!scratch.exists());
        assert_eq!(String::from_utf8_lossy(&answers).lines().count(), 3);
    }

    #[test]
    fn what_cannot_be_undone_is_told_and_the_rest_is_done() {
        let place = tempfile::tempdir().expect("tempdir");
        let setting = place.path().join("setting");
        let orders = lines(&[
            Order::Undo(Undo::Write {
                path: setting.clone(),
                text: "back".to_owned(),
            }),
            Order::Undo(Undo::RemoveDir(place.path().to_owned())),
        ]);
        let mut told = Vec::new();
        assert!(!run(&orders[..], io::sink(), |text| told.push(text.to_owned())));
        assert!(told[0].contains("no directory of a benchmark"), "{told:?}");
        assert_eq!(fs::read_to_string(&setting).expect("there"), "back");
    }

    #[test]
    fn order_that_is_none_is_answered_by_what_is_wrong() {
        let mut answers = Vec::new();
        assert!(run(&b"nonsense\n"[..], &mut answers, |text| panic!(
            "{text}"
        )));
        let answer: Answer = serde_json::from_slice(&answers).expect("an answer");
        assert!(answer.is_err());
    }
}
