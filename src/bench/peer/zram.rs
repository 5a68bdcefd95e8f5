//! zram: the kernel's own swap on a compressed device in memory.
//!
//! A new device is made for the benchmark, so a device of somebody else is never touched. Where the machine
//! swaps already, nothing is compared, because pages of other processes would end up on our device.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::BenchError;
use super::super::clock::timed;
use super::super::content::{Content, Maker};
use super::super::driven::{Touches, nanoseconds};
use super::super::guard::{Guard, Undo};
use crate::sys::{Advice, Memfd, PlainMemory, SwapPriority, swap_on};
use crate::units::{Bytes, PAGE_SIZE, PageBuf};

const CONTROL: &str = "/sys/class/zram-control/hot_add";
/// How long the kernel may take to make the device's node.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// A zram device that the kernel swaps to, until the guard removes it.
#[derive(Debug)]
pub(crate) struct Zram<'a> {
    /// Removes it in the end.
    _guard: &'a Guard,
    device: PathBuf,
}

/// What a device holds, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Usage {
    /// Bytes before compression.
    pub(crate) stored: u64,
    /// The memory that they take.
    pub(crate) taken: u64,
    /// The most memory it took so far.
    pub(crate) most: u64,
}

/// Keeps other benchmarks away from zram; the error says why it cannot be used.
pub(crate) fn claim(guard: &Guard) -> Result<(), String> {
    if !Path::new(CONTROL).exists() {
        return Err("this kernel has none, or its module is not loaded".to_owned());
    }
    if let Err(error) = OpenOptions::new().read(true).open(CONTROL) {
        return Err(format!("its devices are for root: {error}"));
    }
    // Reading that makes a device; opening it does not.
    guard
        .claim(Path::new(CONTROL))
        .map_err(|why| why.to_string())
}

/// An error where the machine swaps already: pages of other processes would end up on our device.
pub(crate) fn nobody_swaps() -> Result<(), String> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    swaps.lines().nth(1).map_or(Ok(()), |other| {
        let name = other.split_whitespace().next().unwrap_or_default();
        Err(format!("this machine swaps already, to {name}"))
    })
}

impl<'a> Zram<'a> {
    /// Makes a device of `size` and swaps to it, if nobody else swaps; the inner error says why that cannot be done.
    pub(crate) fn open(guard: &'a Guard, size: Bytes) -> Result<Result<Self, String>, BenchError> {
        match claim(guard).and_then(|()| nobody_swaps()) {
            Ok(()) => Self::make(guard, size),
            Err(why) => Ok(Err(why)),
        }
    }

    /// The same without asking [`claim`] and [`nobody_swaps`], which the caller has done.
    pub(crate) fn make(guard: &'a Guard, size: Bytes) -> Result<Result<Self, String>, BenchError> {
        let number = match guard.add_zram() {
            Ok(number) => number,
            Err(error) => return Ok(Err(format!("no device can be made: {error}"))),
        };
        let device = PathBuf::from(format!("/dev/zram{number}"));
        guard
            .undo(Undo::SwapOff(device.clone()))
            .map_err(BenchError::io("have swapping ended"))?;
        match prepare(number, &device, size) {
            Ok(()) => Ok(Ok(Self {
                _guard: guard,
                device,
            })),
            Err(error) => Ok(Err(format!("{}: {error}", device.display()))),
        }
    }

    /// What it holds.
    pub(crate) fn usage(&self) -> Result<Usage, BenchError> {
        let name = self.device.file_name().and_then(|name| name.to_str());
        let path = format!("/sys/block/{}/mm_stat", name.unwrap_or_default());
        let text = fs::read_to_string(path).map_err(BenchError::io("read a counter of zram"))?;
        let numbers: Vec<u64> = text.split_whitespace().flat_map(str::parse).collect();
        // The order of the kernel's documentation: stored, compressed, taken, limit, taken at most.
        match numbers[..] {
            [stored, _, taken, _, most, ..] => Ok(Usage {
                stored,
                taken,
                most,
            }),
            _ => Err(BenchError::io("understand a counter of zram")(
                io::Error::other(text),
            )),
        }
    }

    /// Pages that are swapped out now.
    fn swapped(&self) -> u64 {
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        let name = self.device.to_string_lossy();
        let line = swaps.lines().find(|line| line.starts_with(&*name));
        let kib = line.and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024 / PAGE_SIZE as u64
    }

    /// Pages out private memory, such as ordinary processes have; the pages that left, and the processor time.
    pub(crate) fn page_out(
        &self,
        content: &Content,
        pages: u32,
    ) -> Result<(u64, Duration), BenchError> {
        let io = BenchError::io("page memory out");
        let memory = PlainMemory::private(pages).map_err(&io)?;
        memory.advise(Advice::SmallPages).map_err(&io)?;
        fill(&memory, content)?;
        let before = self.swapped();
        let (done, took) = timed(|| memory.advise(Advice::PageOut));
        done.map_err(&io)?;
        Ok((self.swapped().saturating_sub(before), took.cpu))
    }

    /// Pages out shared memory, such as guests have, and reads some of it in this order.
    pub(crate) fn refill(
        &self,
        content: &Content,
        pages: u32,
        order: &[u32],
    ) -> Result<Touches, BenchError> {
        let io = BenchError::io("page memory out");
        let memfd = Memfd::create("memvisor-bench-zram", pages).map_err(&io)?;
        let memory = PlainMemory::shared(&memfd).map_err(&io)?;
        fill(&memory, content)?;
        let before = self.swapped();
        // Three times: pages that were just written are on lists of the kernel that the first time only empties.
        for _ in 0..3 {
            memory.advise(Advice::PageOut).map_err(&io)?;
        }
        if self.swapped() - before < u64::from(pages) * 9 / 10 {
            let text = "less than nine of ten pages left memory";
            return Err(io(io::Error::other(text)));
        }
        let time = |page: &u32| {
            let start = Instant::now();
            std::hint::black_box(memory.touch(*page));
            nanoseconds(start)
        };
        Ok(order.iter().map(time).collect::<Vec<u64>>().into())
    }
}

fn fill(memory: &PlainMemory, content: &Content) -> Result<(), BenchError> {
    let maker = Maker::new(content.clone(), memory.pages())
        .map_err(|error| BenchError::content(content, error))?;
    let mut page = PageBuf::zeroed();
    for number in 0..memory.pages() {
        maker.make(number.into(), &mut page);
        memory.write(number, &page);
    }
    Ok(())
}

/// Gives the device LZ4, a size and a swap header, and has the kernel swap to it.
fn prepare(number: u32, device: &Path, size: Bytes) -> io::Result<()> {
    let setting = |name: &str| PathBuf::from(format!("/sys/block/zram{number}/{name}"));
    // The algorithm of our cache. This fails on a kernel without it, and zram is then not compared.
    fs::write(setting("comp_algorithm"), "lz4")?;
    fs::write(setting("disksize"), size.0.to_string())?;
    let start = Instant::now();
    while !device.exists() && start.elapsed() < PATIENCE {
        std::thread::sleep(POLL);
    }
    let mut file = OpenOptions::new().write(true).open(device)?;
    file.write_all(&header(size)?.0)?;
    file.sync_all()?;
    drop(file);
    swap_on(device, SwapPriority::First)
}

/// The first page of a swap device, as mkswap(8) writes it.
pub(super) fn header(size: Bytes) -> io::Result<PageBuf> {
    const MAGIC: &[u8; 10] = b"SWAPSPACE2";
    const VERSION_AT: usize = 1024;
    let last = u32::try_from(size.pages().0.saturating_sub(1)).map_err(io::Error::other)?;
    let mut page = PageBuf::zeroed();
    page.0[VERSION_AT..VERSION_AT + 4].copy_from_slice(&1u32.to_ne_bytes());
    page.0[VERSION_AT + 4..VERSION_AT + 8].copy_from_slice(&last.to_ne_bytes());
    page.0[PAGE_SIZE - MAGIC.len()..].copy_from_slice(MAGIC);
    Ok(page)
}
