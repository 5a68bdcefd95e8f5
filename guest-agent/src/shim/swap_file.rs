//! The guest's swap file, read by the thread that faulted, which does not go to sleep for it.
//!
//! A disk reads a page in some 30 us. A thread that sleeps so long is woken by the interrupt of the disk, and on the
//! processor to which this interrupt came: the threads of all guests that page queue there while other processors idle,
//! and each waits longer for its processor than for the disk.
//!
//! So the thread hands the read to the kernel (`io_submit` of Linux AIO), and looks for the completion in the ring of the
//! [`Context`], which is in its own memory. Between two looks it yields its processor to whoever has work. Only for a read
//! that takes longer than [`PATIENCE`] it sleeps. `pread` does where the kernel gives no context, which a sandbox may
//! forbid, or where all contexts are in use.
//!
//! All of this runs in a signal handler: system calls, atomics, and memory that is there from power-on on.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use memvisor_wire::PAGE_SIZE;

use super::inline::{AlignedPage, SwapSlots};

/// How many threads can read at once without sleeping. A guest that has more threads keeps the processors busy by them.
const CONTEXTS: usize = 4;
/// How long a thread looks for its completion before it sleeps: a few times what a fast disk takes.
const PATIENCE: Duration = Duration::from_micros(150);

/// The swap file, which is opened to be read past the page cache where its filesystem can do that.
#[derive(Debug)]
pub(super) struct SwapFile {
    /// Dropped first: with a context go the reads that are under way.
    contexts: Vec<Context>,
    file: File,
}

impl SwapFile {
    pub(super) fn new(file: File) -> Self {
        let contexts = (0..CONTEXTS).map_while(|_| Context::new().ok()).collect();
        Self { contexts, file }
    }
}

impl SwapSlots for SwapFile {
    fn read(&self, slot: u32, into: &mut AlignedPage) -> Option<()> {
        let offset = u64::from(slot) * PAGE_SIZE as u64;
        let free = self.contexts.iter().find_map(Context::take);
        let read = match free {
            Some(taken) => taken.0.read(&self.file, offset, into, PATIENCE),
            None => self.file.read_at(&mut into.0, offset),
        };
        // A short read is a file that was cut: the page has moved on, and the daemon knows where to.
        (read.ok()? == PAGE_SIZE).then_some(())
    }
}

/// A queue of asynchronous I/O in which one read is under way at most.
#[derive(Debug)]
struct Context {
    /// The kernel's name for the context, which is also the address of its ring.
    id: usize,
    is_taken: AtomicBool,
}

/// A context that belongs to one thread for the time of a read.
struct Taken<'a>(&'a Context);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        // Release: the next thread sees the head where this one has left it.
        self.0.is_taken.store(false, Ordering::Release);
    }
}

/// The header of a ring: words of 32 bits. Completions follow it.
type Header = [AtomicU32; 8];
/// How many completions the ring has room for.
const LEN: usize = 1;
/// The next completion to be taken; ours to move.
const HEAD: usize = 2;
/// Behind the last completion; the kernel moves it.
const TAIL: usize = 3;
/// [`MAGIC`] if the ring looks as we know it.
const MAGIC_AT: usize = 4;
/// Flags of features that a reader must know; there are none.
const INCOMPATIBLE: usize = 6;
/// The length of the header in bytes.
const HEADER_LEN: usize = 7;
const MAGIC: u32 = 0xa10a_10a1;

/// A completion: `struct io_event` of the kernel's interface.
#[repr(C)]
#[derive(Clone, Copy)]
struct Completion {
    data: u64,
    request: u64,
    /// The bytes that were read, or an error number with its sign reversed.
    result: i64,
    more: i64,
}

/// A request: `struct iocb` of the kernel's interface. The two words after `data` swap their places on big-endian
/// processors; both are zero.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key: u32,
    flags: u32,
    /// [`PREAD`].
    operation: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    more_flags: u32,
    event: u32,
}

/// `IOCB_CMD_PREAD`.
const PREAD: u16 = 0;

impl Context {
    fn new() -> io::Result<Self> {
        let mut id = 0_usize;
        // SAFETY: io_setup(2) writes an `aio_context_t`, which is an unsigned long, through its second argument, and `id`
        // has this size and is zero, as the call asks for.
        let failed = unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut id) };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
        let is_taken = AtomicBool::new(false);
        let context = Self { id, is_taken };
        let word = |at: usize| context.header()[at].load(Ordering::Relaxed);
        if (word(MAGIC_AT), word(INCOMPATIBLE)) != (MAGIC, 0) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(context)
    }

    fn take(&self) -> Option<Taken<'_>> {
        // Acquire: pairs with the release of `Taken`.
        let was_taken = self.is_taken.swap(true, Ordering::Acquire);
        (!was_taken).then(|| Taken(self))
    }

    fn header(&self) -> &Header {
        let header = ptr::with_exposed_provenance::<Header>(self.id);
        // SAFETY: the kernel has mapped a ring, which is longer than its header, at this address, aligned to a page, and
        // keeps it there until io_destroy(2), which only `drop` calls. Both sides write it as atomic words.
        unsafe { &*header }
    }

    /// Reads a page; how many bytes came. To be called by who has taken the context.
    fn read(
        &self,
        file: &File,
        offset: u64,
        into: &mut AlignedPage,
        patience: Duration,
    ) -> io::Result<usize> {
        let mut request = Request {
            operation: PREAD,
            file: file.as_raw_fd().cast_unsigned(),
            buffer: into.0.as_mut_ptr().expose_provenance() as u64,
            len: PAGE_SIZE as u64,
            offset: offset.cast_signed(),
            ..Request::default()
        };
        let requests = [&raw mut request];
        // SAFETY: io_submit(2) reads one pointer to a request, which lives until the call returns. The buffer that it
        // names is `into`, which is ours until the completion has come, and for that both ways below wait.
        let submitted =
            unsafe { libc::syscall(libc::SYS_io_submit, self.id, 1, requests.as_ptr()) };
        if submitted != 1 {
            return file.read_at(&mut into.0, offset);
        }
        let result = self.look(patience).unwrap_or_else(|| self.sleep());
        let error = |_| io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EIO));
        usize::try_from(result).map_err(error)
    }

    /// Looks for the completion, and takes it if it comes in time: its result.
    fn look(&self, patience: Duration) -> Option<i64> {
        let header = self.header();
        let head = header[HEAD].load(Ordering::Relaxed);
        let began = Instant::now();
        // Acquire: the kernel writes the completion before the tail that is behind it.
        while header[TAIL].load(Ordering::Acquire) == head {
            if began.elapsed() >= patience {
                return None;
            }
            // SAFETY: sched_yield(2) has no arguments and touches no memory.
            unsafe { libc::sched_yield() };
        }
        let first = self.id + header[HEADER_LEN].load(Ordering::Relaxed) as usize;
        let at = first + head as usize * size_of::<Completion>();
        let completion = ptr::with_exposed_provenance::<Completion>(at);
        // SAFETY: the ring has `LEN` completions behind its header, `head` is below `LEN`, as the kernel and the line below
        // keep it, and the kernel writes this completion no more before the head has moved on.
        let Completion { result, .. } = unsafe { completion.read_volatile() };
        // Release: the completion is read before the kernel may write another one in its place.
        let next = (head + 1) % header[LEN].load(Ordering::Relaxed);
        header[HEAD].store(next, Ordering::Release);
        Some(result)
    }

    /// Sleeps until the completion comes, and takes it: its result.
    fn sleep(&self) -> i64 {
        let mut completion = MaybeUninit::<Completion>::uninit();
        let to = completion.as_mut_ptr();
        let no_limit = ptr::null::<libc::timespec>();
        // A signal ends the sleep early. Nothing else does, and nothing may: the kernel still writes the page.
        loop {
            // SAFETY: io_getevents(2) writes one completion through `to`, and takes null for no time limit.
            let taken =
                unsafe { libc::syscall(libc::SYS_io_getevents, self.id, 1, 1, to, no_limit) };
            if taken == 1 {
                // SAFETY: the kernel has written it.
                return unsafe { completion.assume_init() }.result;
            }
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nobody refers to its ring any more. The call waits for reads under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread;

    use super::*;

    const SLOTS: u32 = 64;

    fn content(slot: u32) -> [u8; PAGE_SIZE] {
        std::array::from_fn(|at| (slot as usize * 31 + at / 7) as u8)
    }

    fn written(slots: u32) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        for slot in 0..slots {
            file.write_all(&content(slot)).expect("a disk with room");
        }
        file
    }

    fn page() -> AlignedPage {
        AlignedPage([0xaa; PAGE_SIZE])
    }

    #[test]
    fn more_threads_than_contexts_all_read_what_is_in_their_slots() {
        let file = SwapFile::new(written(SLOTS));
        thread::scope(|scope| {
            for number in 0..2 * CONTEXTS as u32 {
                let file = &file;
                scope.spawn(move || {
                    for round in 0..500 {
                        let slot = (round * 7 + number * 13) % SLOTS;
                        let mut page = page();
                        file.read(slot, &mut page).expect("a slot of the file");
                        assert!(page.0 == content(slot), "slot {slot}");
                    }
                });
            }
        });
        let free = file.contexts.iter().filter_map(Context::take);
        assert_eq!(free.count(), file.contexts.len(), "one is still taken");
    }

    #[test]
    fn completions_are_taken_by_looking_and_by_sleeping_in_any_order() {
        let Ok(context) = Context::new() else {
            eprintln!("SKIPPED: the kernel gives no context for asynchronous I/O");
            return;
        };
        let file = written(SLOTS);
        // More reads than a ring has room for.
        for round in 0..2000 {
            let (slot, mut page) = (round % SLOTS, page());
            let offset = u64::from(slot) * PAGE_SIZE as u64;
            let looks = if round % 3 == 0 { 0 } else { u64::MAX };
            let patience = Duration::from_micros(looks);
            let read = context.read(&file, offset, &mut page, patience);
            assert_eq!(read.expect("a slot of the file"), PAGE_SIZE);
            assert!(page.0 == content(slot), "slot {slot}");
        }
    }

    #[test]
    fn read_that_fails_or_is_short_says_so() {
        let file = written(2);
        file.set_len(PAGE_SIZE as u64 + 100).expect("cut");
        let file = SwapFile::new(file);
        let mut page = page();
        assert!(file.read(0, &mut page).is_some());
        assert!(file.read(1, &mut page).is_none(), "a short one");
        assert!(file.read(2, &mut page).is_none(), "behind the end");
        let write_only = File::options().write(true).open("/dev/null");
        let write_only = SwapFile::new(write_only.expect("a file"));
        assert!(write_only.read(0, &mut page).is_none());
    }
}
