//! A guest that does what it is told: fills memory, touches it in a given order, says how long each
//! access took, and verifies it.
//!
//! It is a process of its own with the real shim, so its faults are served like those of every guest. It has no
//! toy kernel, because a benchmark has to know which page it touches. Orders and answers are lines of JSON on
//! its standard input and output; it ends when either is closed.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use memvisor_guest_agent::shim::{Memory, PowerOnError, Ram, SessionEnd, power_on};
use memvisor_wire::memory::Hello;
use serde::{Deserialize, Serialize};

use super::BenchError;
use super::clock::percentiles;
use super::content::{Content, Maker};
use super::jumps::jump;
use crate::units::{Gfn, PageBuf};

/// What a driven guest is told.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Write all pages from the first on.
    Fill(Content),
    /// Read a word of each of these pages, in this order.
    Read(Vec<u32>),
    /// Write a word of each of these pages, in this order. The word stays the same.
    Rewrite(Vec<u32>),
    /// Read words of random pages, so many, each of which says where the next one is: nothing is known ahead. Or write
    /// words of random pages, so many, which stay the same.
    Jump {
        /// How many words.
        words: u32,
        /// Whether they are written.
        write: bool,
    },
    /// Compare all pages with what was filled in.
    Verify,
}

/// What a driven guest has done.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// It is powered on, and waits for orders.
    Ready,
    /// It has written its pages, in this many nanoseconds.
    Filled(u64),
    /// It has touched pages.
    Touched(Touches),
    /// It has jumped about, in this many nanoseconds.
    Jumped(u64),
    /// It has compared its pages with what was written.
    Verified {
        /// Wrong pages.
        wrong: u64,
    },
}

/// How long single accesses took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Touches {
    /// The median, in nanoseconds.
    pub p50_ns: u64,
    /// The 99th percentile.
    pub p99_ns: u64,
    /// How many accesses there were.
    pub pages: u64,
    /// All accesses together.
    pub total_ns: u64,
}

impl From<Vec<u64>> for Touches {
    fn from(times: Vec<u64>) -> Self {
        let (pages, total_ns) = (times.len() as u64, times.iter().sum());
        let (p50_ns, p99_ns) = percentiles(times);
        Self {
            p50_ns,
            p99_ns,
            pages,
            total_ns,
        }
    }
}

/// How a driven guest is started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DrivenOptions {
    /// Its name.
    pub name: String,
    /// Its memory, in pages.
    pub pages: u32,
    /// The host's socket.
    pub memory_socket: PathBuf,
    /// Whether it serves some of its faults itself.
    pub inline: bool,
}

/// Runs a driven guest until its orders end. `host_gone` is called when the session ends, and must end the process.
///
/// # Errors
/// The driven guest cannot be powered on, files cannot be read, or the pipes fail.
pub fn run(
    options: &DrivenOptions,
    host_gone: impl FnOnce(SessionEnd) + Send + 'static,
) -> Result<(), BenchError> {
    let hello = Hello {
        name: options.name.clone(),
        pages: options.pages,
        uffd: true,
        reservation: 0,
        limit: options.pages,
        shares: 1000,
        balloon_max: u32::MAX,
        sharing: true,
        salt: None,
        workload: "benchmark".to_owned(),
        inline: options.inline,
        resource_pool: String::new(),
    };
    let guest = power_on(&options.memory_socket, hello, |_| Ok(()))?;
    let ram = guest.ram;
    std::thread::Builder::new()
        .name("memory".to_owned())
        .spawn(move || host_gone(guest.serve()))
        .map_err(BenchError::io("start a thread"))?;
    let mut executor = Executor {
        ram,
        makers: HashMap::new(),
        filled: None,
    };
    let talk = BenchError::io("talk to the benchmark");
    let mut out = io::stdout().lock();
    let mut done = Done::Ready;
    let mut orders = io::stdin().lock().lines();
    loop {
        let mut line = serde_json::to_string(&done).unwrap_or_default();
        line.push('\n');
        if out
            .write_all(line.as_bytes())
            .and_then(|()| out.flush())
            .is_err()
        {
            return Ok(());
        }
        let Some(line) = orders.next() else {
            return Ok(());
        };
        let order = line.and_then(|line| Ok(serde_json::from_str(&line)?));
        match order {
            Ok(order) => done = executor.obey(&order)?,
            Err(error) => return Err(talk(error)),
        }
    }
}

struct Executor {
    ram: Ram,
    /// Kept from round to round, so that files are read only once.
    makers: HashMap<String, Maker>,
    filled: Option<Maker>,
}

impl Executor {
    fn obey(&mut self, order: &Order) -> Result<Done, BenchError> {
        Ok(match order {
            Order::Fill(content) => {
                let maker = self.maker(content)?;
                let start = Instant::now();
                let mut page = PageBuf::zeroed();
                for number in 0..self.ram.pages() {
                    maker.make(number.into(), &mut page);
                    self.ram.write(Gfn(number), 0, &page.0);
                }
                self.filled = Some(maker);
                Done::Filled(nanoseconds(start))
            }
            Order::Read(pages) => {
                let times = pages.iter().map(|page| {
                    let start = Instant::now();
                    self.ram.read(Gfn(*page), 0, &mut [0; 8]);
                    nanoseconds(start)
                });
                Done::Touched(times.collect::<Vec<u64>>().into())
            }
            Order::Rewrite(pages) => Done::Touched(self.rewrite(pages).into()),
            Order::Jump { words, write } => Done::Jumped(jump(&self.ram, *words, *write)),
            Order::Verify => Done::Verified {
                wrong: self.wrong(),
            },
        })
    }

    fn maker(&mut self, content: &Content) -> Result<Maker, BenchError> {
        let key = content.source.to_string();
        let known = match self.makers.get(&key) {
            Some(known) if known.content().common_percent == content.common_percent => {
                known.clone()
            }
            _ => Maker::new(content.clone(), self.ram.pages())
                .map_err(|source| BenchError::content(content, source))?,
        };
        self.makers.insert(key, known.clone());
        Ok(known.with_seed(content.seed))
    }

    /// Writes what the pages hold already, so that they can still be verified; how long each write took.
    fn rewrite(&self, pages: &[u32]) -> Vec<u64> {
        let mut content = PageBuf::zeroed();
        let mut times = Vec::with_capacity(pages.len());
        for page in pages {
            if let Some(maker) = &self.filled {
                // Made before the clock starts, because only the access is to be timed.
                maker.make((*page).into(), &mut content);
            }
            let start = Instant::now();
            self.ram.write(Gfn(*page), 0, &content.0[..8]);
            times.push(nanoseconds(start));
        }
        times
    }

    fn wrong(&self) -> u64 {
        let Some(maker) = &self.filled else { return 0 };
        let (mut expected, mut found) = (PageBuf::zeroed(), PageBuf::zeroed());
        let is_wrong = |number: &u32| {
            maker.make((*number).into(), &mut expected);
            self.ram.read(Gfn(*number), 0, &mut found.0);
            expected != found
        };
        (0..self.ram.pages()).filter(is_wrong).count() as u64
    }
}

pub(super) fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// A driven guest's process, as the benchmark has it; it ends when this is dropped.
#[derive(Debug)]
pub struct DrivenGuest {
    name: String,
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl DrivenGuest {
    /// Starts a driven guest and waits until it is powered on.
    ///
    /// # Errors
    /// The driven guest does not come up; the reason is on standard error.
    pub fn start(program: &Path, options: &DrivenOptions) -> Result<Self, BenchError> {
        let io = BenchError::io("start a guest");
        let child = Command::new(program)
            .arg("bench-guest")
            .args(["--name", &options.name])
            .args(["--pages", &options.pages.to_string()])
            .arg("--socket")
            .arg(&options.memory_socket)
            .args(options.inline.then_some("--inline"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C in a terminal is for the benchmark alone, which ends its guests itself.
            .process_group(0)
            .spawn();
        let mut child = child.map_err(io)?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let gone = || BenchError::io("start a guest")(io::ErrorKind::BrokenPipe.into());
        let mut driven = Self {
            name: options.name.clone(),
            child,
            orders,
            answers: BufReader::new(answers.ok_or_else(gone)?),
        };
        match driven.answer()? {
            Done::Ready => Ok(driven),
            other => Err(driven.confused(other)),
        }
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it something and waits until that is done.
    ///
    /// # Errors
    /// The driven guest has ended.
    pub fn tell(&mut self, order: &Order) -> Result<Done, BenchError> {
        let mut line = serde_json::to_string(order).unwrap_or_default();
        line.push('\n');
        let sent = self
            .orders
            .as_mut()
            .map(|orders| orders.write_all(line.as_bytes()));
        match sent {
            Some(Ok(())) => self.answer(),
            _ => Err(BenchError::GuestEnded(self.name.clone())),
        }
    }

    fn answer(&mut self) -> Result<Done, BenchError> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(len) if len > 0 => serde_json::from_str(&line)
                .map_err(|error| BenchError::io("understand a guest")(error.into())),
            _ => Err(BenchError::GuestEnded(self.name.clone())),
        }
    }

    fn confused(&self, got: Done) -> BenchError {
        let text = format!("guest `{}` said {got:?}", self.name);
        BenchError::io("understand a guest")(io::Error::other(text))
    }

    /// Has it write all its memory.
    ///
    /// # Errors
    /// The driven guest has ended.
    pub fn fill(&mut self, content: &Content) -> Result<(), BenchError> {
        match self.tell(&Order::Fill(content.clone()))? {
            Done::Filled(_) => Ok(()),
            other => Err(self.confused(other)),
        }
    }

    /// Has it read or write pages one by one.
    ///
    /// # Errors
    /// The driven guest has ended.
    pub fn touch(&mut self, order: &Order) -> Result<Touches, BenchError> {
        match self.tell(order)? {
            Done::Touched(touches) => Ok(touches),
            other => Err(self.confused(other)),
        }
    }

    /// Has it jump about in its memory; how many nanoseconds a word took.
    ///
    /// # Errors
    /// The driven guest has ended.
    pub fn jump(&mut self, words: u32, write: bool) -> Result<f64, BenchError> {
        match self.tell(&Order::Jump { words, write })? {
            #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
            Done::Jumped(all) => Ok(all as f64 / f64::from(words)),
            other => Err(self.confused(other)),
        }
    }

    /// Has it compare all its memory with what it wrote.
    ///
    /// # Errors
    /// A page is wrong, or the driven guest has ended.
    pub fn verify(&mut self) -> Result<(), BenchError> {
        match self.tell(&Order::Verify)? {
            Done::Verified { wrong: 0 } => Ok(()),
            Done::Verified { wrong } => Err(BenchError::Corrupt {
                name: self.name.clone(),
                pages: wrong,
            }),
            other => Err(self.confused(other)),
        }
    }
}

impl Drop for DrivenGuest {
    fn drop(&mut self) {
        self.orders = None;
        // Killed, because it may wait for a page of a host that is ending, and would not see that its orders ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl From<PowerOnError> for BenchError {
    fn from(error: PowerOnError) -> Self {
        Self::PowerOn(error)
    }
}
