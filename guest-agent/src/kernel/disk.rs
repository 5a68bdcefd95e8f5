//! The guest's own virtual disks: files that only this process knows. One is for swap, others hold files.
//!
//! A disk is as fast as the file behind it, which bypasses the page cache of the machine where it can. A disk
//! can be made slower than that, so that what a guest gains by its page cache does not depend on the machine.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use memvisor_wire::PAGE_SIZE;

use super::{Bounce, KernelError, lock};

/// A page-sized place on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot(u32);

impl Slot {
    const fn offset(self) -> u64 {
        self.0 as u64 * PAGE_SIZE as u64
    }
}

#[derive(Debug)]
struct Slots {
    in_use: Box<[bool]>,
    returned: Vec<Slot>,
    fresh: u32,
}

/// A disk and which of its slots are in use.
#[derive(Debug)]
pub(super) struct Disk {
    name: &'static str,
    /// The least time that a page takes to be read or written.
    latency: Duration,
    file: Option<File>,
    slots: Mutex<Slots>,
    used: AtomicU32,
}

impl Disk {
    /// A disk of `pages` slots in an unlinked file in `directory`; without a file for 0 pages. Messages call it
    /// `name`. To read or write a page takes `latency` at least.
    ///
    /// # Errors
    /// [`KernelError::DiskCreate`].
    pub(super) fn create(
        name: &'static str,
        directory: &Path,
        pages: u32,
        latency: Duration,
    ) -> Result<Self, KernelError> {
        let file = match pages {
            0 => None,
            _ => Some(
                unlinked_file(directory).map_err(|source| KernelError::DiskCreate {
                    disk: name,
                    directory: directory.to_owned(),
                    source,
                })?,
            ),
        };
        Ok(Self {
            name,
            latency,
            file,
            slots: Mutex::new(Slots {
                in_use: vec![false; pages as usize].into(),
                returned: Vec::new(),
                fresh: 0,
            }),
            used: AtomicU32::new(0),
        })
    }

    /// How many slots there are.
    pub(super) fn pages(&self) -> u32 {
        lock(&self.slots).in_use.len() as u32
    }

    /// How many slots hold a page.
    pub(super) fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Writes a page to a free slot; `None` when the disk is full.
    ///
    /// # Errors
    /// What `pwrite(2)` says; the slot is free again then.
    pub(super) fn write(&self, page: &Bounce) -> io::Result<Option<Slot>> {
        let Some(slot) = self.take() else {
            return Ok(None);
        };
        match self.write_to(slot, page) {
            Ok(()) => Ok(Some(slot)),
            Err(error) => {
                self.free(slot);
                Err(error)
            }
        }
    }

    /// Writes a page to a slot that is in use.
    ///
    /// # Errors
    /// What `pwrite(2)` says.
    pub(super) fn write_to(&self, slot: Slot, page: &Bounce) -> io::Result<()> {
        self.no_sooner(|| self.file()?.write_all_at(&page.0, slot.offset()))
    }

    /// Reads the page in `slot`, which stays in use.
    ///
    /// # Errors
    /// [`KernelError::DiskRead`].
    pub(super) fn read(&self, slot: Slot, page: &mut Bounce) -> Result<(), KernelError> {
        self.no_sooner(|| self.file()?.read_exact_at(&mut page.0, slot.offset()))
            .map_err(|source| KernelError::DiskRead {
                disk: self.name,
                slot: slot.0,
                source,
            })
    }

    /// What messages call the disk.
    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    /// Moves a page, and waits until the disk's latency has passed.
    fn no_sooner<T>(&self, move_page: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let moved = move_page();
        let left = self.latency.saturating_sub(began.elapsed());
        if !left.is_zero() {
            std::thread::sleep(left);
        }
        moved
    }

    /// Frees a slot.
    ///
    /// # Panics
    /// When the slot is free already.
    pub(super) fn free(&self, slot: Slot) {
        let mut slots = lock(&self.slots);
        let in_use = &mut slots.in_use[slot.0 as usize];
        assert!(
            *in_use,
            "slot {} of the {} is freed twice",
            slot.0, self.name
        );
        *in_use = false;
        slots.returned.push(slot);
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes a free slot; `None` when the disk is full.
    pub(super) fn take(&self) -> Option<Slot> {
        let mut slots = lock(&self.slots);
        // Slots that were used before come first, so that the file takes no more of the disk than it must.
        let slot = match slots.returned.pop() {
            Some(slot) => slot,
            None if (slots.fresh as usize) < slots.in_use.len() => {
                slots.fresh += 1;
                Slot(slots.fresh - 1)
            }
            None => return None,
        };
        slots.in_use[slot.0 as usize] = true;
        self.used.fetch_add(1, Ordering::Relaxed);
        Some(slot)
    }

    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or(ErrorKind::NotFound.into())
    }
}

/// Creates a file without a name, so that no crash leaves it behind. On the few file systems that have no
/// nameless files, it creates a file with a name and removes the name at once.
///
/// The file bypasses the host's page cache if the file system can do that. Otherwise the pages that the
/// guest writes to its disks would stay in host memory, where nobody accounts for them.
fn unlinked_file(directory: &Path) -> io::Result<File> {
    let open = |flags: i32| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
            .custom_flags(libc::O_TMPFILE | flags)
            .open(directory)
    };
    let opened = match open(libc::O_DIRECT) {
        // The filesystem knows no direct I/O. The page cache of the machine then holds what was written, which
        // only costs memory.
        Err(error) if error.kind() == ErrorKind::InvalidInput => open(0),
        other => other,
    };
    // EISDIR comes from kernels that ignore O_TMPFILE and so try to open the directory for writing.
    match opened.as_ref().map_err(io::Error::raw_os_error) {
        Err(Some(libc::EOPNOTSUPP | libc::EISDIR)) => named_file(directory),
        _ => opened,
    }
}

fn named_file(directory: &Path) -> io::Result<File> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("memvisor-guest-disk-{}-{number}", std::process::id());
    let path = directory.join(name);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(&path)?;
    // At once, so that nothing is left of it, however this process ends.
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swap_disk(directory: &Path, pages: u32) -> Result<Disk, KernelError> {
        Disk::create("swap disk", directory, pages, Duration::ZERO)
    }

    #[test]
    fn pages_come_back_and_the_full_disk_says_so() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let disk = swap_disk(directory.path(), 3).expect("a disk");
        let page = |byte| Bounce([byte; PAGE_SIZE]);
        let slots: Vec<_> = (1..=3)
            .map(|byte| disk.write(&page(byte)).unwrap().expect("room"))
            .collect();
        assert_eq!(disk.write(&page(9)).unwrap(), None);
        disk.free(slots[1]);
        assert_eq!(disk.used(), 2);
        assert_eq!(disk.write(&page(4)).unwrap(), Some(slots[1]));
        for (slot, byte) in slots.into_iter().zip([1, 4, 3]) {
            let mut found = Bounce::zeroed();
            disk.read(slot, &mut found).expect("written before");
            assert_eq!(found.0, [byte; PAGE_SIZE]);
        }
        let left = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 0, "the file has no name");
    }

    #[test]
    fn disk_of_no_pages_needs_no_directory() {
        let disk = swap_disk(Path::new("/nowhere"), 0).expect("no file is made");
        assert_eq!(disk.write(&Bounce::zeroed()).unwrap(), None);
        let error = swap_disk(Path::new("/nowhere"), 1).expect_err("no directory");
        assert!(error.to_string().contains("/nowhere"), "{error}");
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn slot_freed_twice_panics() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let disk = swap_disk(directory.path(), 3).expect("a disk");
        let slot = disk.write(&Bounce::zeroed()).unwrap().expect("room");
        disk.free(slot);
        disk.free(slot);
    }

    #[test]
    fn page_takes_the_latency_of_its_disk_at_least() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let latency = Duration::from_millis(3);
        let disk = Disk::create("disk", directory.path(), 1, latency).expect("a disk");
        let began = Instant::now();
        let slot = disk.write(&Bounce::zeroed()).unwrap().expect("room");
        disk.read(slot, &mut Bounce::zeroed()).expect("written");
        assert!(began.elapsed() >= 2 * latency);
    }
}
