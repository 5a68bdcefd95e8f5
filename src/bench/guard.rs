//! What a benchmark changes on the machine is put back, however the benchmark ends.
//!
//! KSM and swap are settings of the whole kernel. A destructor would restore them unless the process is
//! killed, and a signal handler unless it is killed by SIGKILL. So neither of them restores anything. Instead a
//! small process of its own holds one end of a pipe. It is told of each change before the change is made. When
//! the pipe closes, for whatever reason, it undoes all changes, the latest first. There is only one way to
//! restore, and every run takes it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::SigSet;
use serde::{Deserialize, Serialize};

use super::peer::cgroup;
use crate::sys::swap_off;

/// The prefix of the names of directories that a guard may remove.
pub const SCRATCH_PREFIX: &str = "memvisor-bench-";

/// How long to go on trying to undo a change: the kernel keeps a device for a moment after its last user.
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
    /// Stop swapping to this device.
    SwapOff(PathBuf),
    /// Remove this zram device.
    RemoveZram(u32),
    /// Remove this directory of a benchmark.
    RemoveDir(PathBuf),
    /// Kill what is left in this cgroup of a benchmark, and remove it.
    RemoveCgroup(PathBuf),
}

/// What a guard is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// Do this in the end.
    Undo(Undo),
    /// Make a zram device, remove it in the end, and say which one it is.
    AddZram,
    /// Keep other benchmarks away from what this file stands for, until all is restored.
    Claim(PathBuf),
    /// Say how many tasks there are now.
    Mark,
    /// Undo now what was changed after this mark.
    Restore(u32),
}

/// The answer to each order: a number, which has a meaning only for [`Order::AddZram`] and [`Order::Mark`], or what
/// went wrong.
type Answer = Result<u32, String>;

/// What a guard has to do in the end.
enum Task {
    Undo(Undo),
    /// Give up the lock, by dropping it.
    Release(#[expect(dead_code, reason = "it is held")] Flock<File>),
}

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

    /// Has `undo` done in the end. Must be called before the change that it undoes.
    ///
    /// # Errors
    /// The guard is gone, so nothing may be changed.
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

    /// Keeps other benchmarks away from what this file stands for, until all is restored. Of two benchmarks
    /// that overlap, the second would restore what the first had set.
    ///
    /// # Errors
    /// Another benchmark has it, or it cannot be opened.
    pub fn claim(&self, path: &Path) -> io::Result<()> {
        self.order(&Order::Claim(path.to_owned())).map(drop)
    }

    /// Runs `work`, which may change the machine, and then undoes all changes that it told the guard of, whether it
    /// succeeded or not.
    ///
    /// # Errors
    /// Something could not be undone. A failure of `work` is in its result.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let mark = self.order(&Order::Mark)?;
        let done = work();
        self.order(&Order::Restore(mark))?;
        Ok(done)
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
        // Ignored, because nobody is left to be told. The guard itself has complained.
        let _ = self.finish();
    }
}

/// The guard's process: obeys `orders` until they end, and then undoes everything, the latest first. Passes what
/// could not be undone to `complain`; whether everything was undone.
pub fn run(orders: impl BufRead, mut answers: impl Write, mut complain: impl FnMut(&str)) -> bool {
    // Signals that end a terminal's processes must not end the one that cleans up behind them.
    let _ = SigSet::all().thread_block();
    let mut tasks: Vec<Task> = Vec::new();
    for line in orders.lines() {
        // A line that cannot be read ends the orders, and what was changed so far is put back.
        let Ok(line) = line else { break };
        let answer: Answer = match serde_json::from_str(&line) {
            Ok(order) => obey(order, &mut tasks, &mut complain),
            Err(error) => Err(error.to_string()),
        };
        let mut text = serde_json::to_string(&answer).unwrap_or_default();
        text.push('\n');
        // Answered only when it is done: the benchmark makes its change after that.
        if answers
            .write_all(text.as_bytes())
            .and_then(|()| answers.flush())
            .is_err()
        {
            break;
        }
    }
    restore(&mut tasks, 0, &mut complain)
}

fn obey(order: Order, tasks: &mut Vec<Task>, complain: &mut impl FnMut(&str)) -> Answer {
    let done = match order {
        Order::Undo(undo) => {
            tasks.push(Task::Undo(undo));
            Ok(0)
        }
        Order::AddZram => {
            add_zram().inspect(|number| tasks.push(Task::Undo(Undo::RemoveZram(*number))))
        }
        Order::Claim(path) => claim(&path).map(|claim| {
            tasks.push(Task::Release(claim));
            0
        }),
        Order::Mark => u32::try_from(tasks.len()).map_err(io::Error::other),
        Order::Restore(mark) => match restore(tasks, mark as usize, complain) {
            true => Ok(0),
            false => Err(io::Error::other("not everything could be restored")),
        },
    };
    done.map_err(|error| error.to_string())
}

/// Does all tasks but the first `kept`, the latest first; whether all could be done.
fn restore(tasks: &mut Vec<Task>, kept: usize, complain: &mut impl FnMut(&str)) -> bool {
    let mut all = true;
    while tasks.len() > kept {
        // A claim is dropped here by `pop`, when everything that came after it is undone.
        if let Some(Task::Undo(undo)) = tasks.pop()
            && let Err(error) = patiently(|| revert(&undo))
        {
            complain(&format!("cannot restore {undo:?}: {error}"));
            // And on: one that fails must not keep the others from being put back.
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

/// Claims by a file lock, which the kernel drops with the process, however the process ends.
fn claim(path: &Path) -> io::Result<Flock<File>> {
    let taken = Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock);
    taken.map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => io::Error::other("another benchmark uses it"),
        errno => errno.into(),
    })
}

fn add_zram() -> io::Result<u32> {
    // Reading this file makes a device; the text is its number.
    let text = fs::read_to_string("/sys/class/zram-control/hot_add")?;
    text.trim().parse().map_err(io::Error::other)
}

fn revert(undo: &Undo) -> io::Result<()> {
    match undo {
        Undo::Write { path, text } => fs::write(path, text),
        // EINVAL: swapping to it never began, or has ended already.
        Undo::SwapOff(device) => match swap_off(device) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            done => done,
        },
        Undo::RemoveZram(number) => {
            // A device that holds something cannot be removed.
            fs::write(format!("/sys/block/zram{number}/reset"), "1")?;
            fs::write("/sys/class/zram-control/hot_remove", number.to_string())
        }
        Undo::RemoveDir(path) => remove_dir(path),
        Undo::RemoveCgroup(path) => cgroup::remove(path),
    }
}

/// Refuses directories that no benchmark has made.
pub(super) fn check_name(path: &Path) -> io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str());
    if name.is_some_and(|name| name.starts_with(SCRATCH_PREFIX)) {
        return Ok(());
    }
    let why = format!("`{}` is no directory of a benchmark", path.display());
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

fn remove_dir(path: &Path) -> io::Result<()> {
    // Once more here: an order that went wrong must not remove another directory.
    check_name(path)?;
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
    fn what_came_after_a_mark_is_put_back_at_once_and_the_rest_in_the_end() {
        let place = tempfile::tempdir().expect("tempdir");
        let file = |name: &str| place.path().join(name);
        let undo = |name: &str| {
            fs::write(file(name), "changed").expect("a file");
            let (path, text) = (file(name), "as it was".to_owned());
            Order::Undo(Undo::Write { path, text })
        };
        let orders = lines(&[undo("early"), Order::Mark, undo("late"), Order::Restore(1)]);
        let read = |name: &str| fs::read_to_string(file(name)).expect("there");
        // Answers to orders are written one by one: the last one shows what was done by then.
        struct Answers<F>(F);
        impl<F: FnMut()> io::Write for Answers<F> {
            fn write(&mut self, text: &[u8]) -> io::Result<usize> {
                self.0();
                Ok(text.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut seen = Vec::new();
        let answers = Answers(|| seen.push((read("early"), read("late"))));
        assert!(run(&orders[..], answers, |text| panic!("{text}")));
        let (changed, back) = ("changed".to_owned(), "as it was".to_owned());
        assert_eq!(seen[2], (changed.clone(), changed.clone()));
        assert_eq!(seen[3], (changed, back.clone()));
        assert_eq!((read("early"), read("late")), (back.clone(), back));
    }

    #[test]
    fn what_is_claimed_is_refused_to_others() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let held = claim(file.path()).expect("free");
        let orders = lines(&[Order::Claim(file.path().to_owned())]);
        let mut answers = Vec::new();
        assert!(run(&orders[..], &mut answers, |text| panic!("{text}")));
        let answer: Answer = serde_json::from_slice(&answers).expect("an answer");
        assert_eq!(answer, Err("another benchmark uses it".to_owned()));
        drop(held);
        claim(file.path()).expect("free again");
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
