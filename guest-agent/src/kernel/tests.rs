//! The kernel as a whole: against a model, and with many threads in little RAM.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use memvisor_wire::{Gfn, GfnRun, RunsExt};
use proptest::collection::vec;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use super::ram::VecMemory;
use super::*;

struct Guest {
    memory: Arc<VecMemory>,
    kernel: Arc<Kernel>,
    directory: TempDir,
}

fn guest(ram: u32, swap: u32) -> Guest {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = KernelOptions {
        swap_pages: swap,
        disk_directory: directory.path().to_owned(),
    };
    let memory = Arc::new(VecMemory::new(ram));
    let kernel = Kernel::new(Arc::clone(&memory) as Arc<dyn Memory>, &options);
    Guest {
        memory,
        kernel: kernel.expect("a kernel boots"),
        directory,
    }
}

impl Guest {
    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::File::create(&path)
            .and_then(|mut file| file.write_all(content))
            .expect("a file");
        path
    }

    fn check_books(&self) {
        let stats = self.kernel.stats();
        let used = stats.free + stats.anon + stats.caches + stats.balloon;
        assert_eq!(used + u64::from(pages::KERNEL_PAGES), stats.total);
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

#[derive(Clone, Debug)]
enum Op {
    Map(u32),
    Unmap(usize),
    Write {
        region: usize,
        at: u64,
        len: usize,
        seed: u64,
    },
    Read {
        region: usize,
        at: u64,
        len: usize,
    },
    ReadFile {
        at: u64,
        len: usize,
    },
    WriteDisk {
        at: u64,
        len: usize,
        seed: u64,
    },
    ReadDisk {
        at: u64,
        len: usize,
    },
    FlushDisk,
    Recreate,
    Inflate {
        pages: u32,
        may_reclaim: bool,
    },
    Deflate,
}

fn op() -> impl Strategy<Value = Op> {
    let region = 0..4usize;
    let at = 0..20 * PAGE_SIZE as u64;
    let len = prop_oneof![1..600usize, Just(PAGE_SIZE), 1..3 * PAGE_SIZE];
    let page_at = (0..20u64).prop_map(|page| page * PAGE_SIZE as u64);
    let at = prop_oneof![at, page_at];
    prop_oneof![
        1 => (1..20u32).prop_map(Op::Map),
        1 => region.clone().prop_map(Op::Unmap),
        8 => (region.clone(), at.clone(), len.clone(), any::<u64>())
            .prop_map(|(region, at, len, seed)| Op::Write { region, at, len, seed }),
        8 => (region, at.clone(), len.clone())
            .prop_map(|(region, at, len)| Op::Read { region, at, len }),
        2 => (at.clone(), len.clone()).prop_map(|(at, len)| Op::ReadFile { at, len }),
        6 => (at.clone(), len.clone(), any::<u64>())
            .prop_map(|(at, len, seed)| Op::WriteDisk { at, len, seed }),
        6 => (at, len).prop_map(|(at, len)| Op::ReadDisk { at, len }),
        1 => Just(Op::FlushDisk),
        1 => Just(Op::Recreate),
        2 => (1..24u32, any::<bool>())
            .prop_map(|(pages, may_reclaim)| Op::Inflate { pages, may_reclaim }),
        1 => Just(Op::Deflate),
    ]
}

/// The guest and what it should contain: at most four regions of at most 20 pages, in 24 pages of
/// RAM and on a disk that has room for all regions, a real file, and a file on a disk of 16 pages.
struct Model {
    guest: Guest,
    volume: Volume,
    on_disk: Option<DiskFile>,
    disk_bytes: HashMap<u64, u8>,
    file: CachedFile,
    file_bytes: Vec<u8>,
    regions: Vec<(AnonRegion, HashMap<u64, u8>)>,
    balloon: Vec<GfnRun>,
}

impl Model {
    fn new() -> Self {
        let guest = guest(24, 100);
        let file_bytes = noise(1, 9 * PAGE_SIZE + 77);
        let path = guest.file("cached", &file_bytes);
        let file = guest.kernel.open_file(&path).expect("it is there");
        let volume = guest.kernel.volume(16, Duration::ZERO).expect("a disk");
        Self {
            on_disk: Some(volume.create(20)),
            volume,
            disk_bytes: HashMap::new(),
            guest,
            file,
            file_bytes,
            regions: Vec::new(),
            balloon: Vec::new(),
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Map(pages) if self.regions.len() < 4 => {
                let region = self.guest.kernel.map_anon(pages);
                self.regions.push((region, HashMap::new()));
            }
            Op::Map(_) => {}
            Op::Unmap(region) => {
                if region < self.regions.len() {
                    self.regions.swap_remove(region);
                }
            }
            Op::Write {
                region,
                at,
                len,
                seed,
            } => self.write(region, at, &noise(seed, len)),
            Op::Read { region, at, len } => self.read(region, at, len),
            Op::ReadFile { at, len } => self.read_file(at, len),
            Op::WriteDisk { at, len, seed } => self.write_disk(at, &noise(seed, len)),
            Op::ReadDisk { at, len } => self.read_disk(at, len),
            Op::FlushDisk => {
                let file = self.on_disk.as_ref().expect("there is one");
                file.flush().expect("the disk works");
            }
            Op::Recreate => {
                self.on_disk = None;
                assert_eq!(self.volume.used(), 0);
                self.on_disk = Some(self.volume.create(20));
                self.disk_bytes.clear();
            }
            Op::Inflate { pages, may_reclaim } => {
                let runs = self.guest.kernel.balloon_alloc(pages, may_reclaim);
                assert!(runs.pages() <= u64::from(pages));
                self.balloon.extend(runs);
            }
            Op::Deflate => {
                if let Some(run) = self.balloon.pop() {
                    self.guest.kernel.balloon_free(&[run]).expect("it is ours");
                }
            }
        }
        self.guest.check_books();
    }

    fn write(&mut self, region: usize, at: u64, bytes: &[u8]) {
        let Some((region, model)) = self.regions.get_mut(region) else {
            return;
        };
        let result = region.write(at, bytes);
        if at + bytes.len() as u64 > u64::from(region.pages()) * PAGE_SIZE as u64 {
            assert!(matches!(result, Err(KernelError::OutOfRange { .. })));
            return;
        }
        result.expect("RAM and disk have room");
        model.extend((at..).zip(bytes.iter().copied()));
    }

    fn read(&self, region: usize, at: u64, len: usize) {
        let Some((region, model)) = self.regions.get(region) else {
            return;
        };
        let mut found = vec![0xee; len];
        let result = region.read(at, &mut found);
        if at + len as u64 > u64::from(region.pages()) * PAGE_SIZE as u64 {
            assert!(matches!(result, Err(KernelError::OutOfRange { .. })));
            return;
        }
        result.expect("RAM and disk have room");
        let expected: Vec<u8> = (at..at + len as u64)
            .map(|at| model.get(&at).copied().unwrap_or(0))
            .collect();
        assert_eq!(found, expected, "bytes {at}+{len}");
    }

    /// Writes to the file on the disk up to the first page for which the disk has no room.
    fn write_disk(&mut self, at: u64, bytes: &[u8]) {
        let file = self.on_disk.as_ref().expect("there is one");
        let room = 16usize;
        let page_of = |at: u64| at / PAGE_SIZE as u64;
        let mut pages: BTreeSet<u64> = self.disk_bytes.keys().map(|at| page_of(*at)).collect();
        let result = file.write(at, bytes);
        if page_of(at + bytes.len() as u64 - 1) >= 20 {
            assert!(matches!(result, Err(KernelError::OutOfRange { .. })));
            return;
        }
        let mut is_full = false;
        for (at, byte) in (at..).zip(bytes.iter().copied()) {
            pages.insert(page_of(at));
            is_full |= pages.len() > room;
            if is_full {
                break;
            }
            self.disk_bytes.insert(at, byte);
        }
        assert_eq!(matches!(result, Err(KernelError::DiskFull { .. })), is_full);
        assert_eq!(result.is_ok(), !is_full, "{result:?}");
    }

    fn read_disk(&self, at: u64, len: usize) {
        let file = self.on_disk.as_ref().expect("there is one");
        let mut found = vec![0xee; len];
        let result = file.read(at, &mut found);
        if at + len as u64 > 20 * PAGE_SIZE as u64 {
            assert!(matches!(result, Err(KernelError::OutOfRange { .. })));
            return;
        }
        result.expect("RAM has room");
        let expected: Vec<u8> = (at..at + len as u64)
            .map(|at| self.disk_bytes.get(&at).copied().unwrap_or(0))
            .collect();
        assert_eq!(found, expected, "bytes {at}+{len} on the disk");
    }

    fn read_file(&self, at: u64, len: usize) {
        let mut found = vec![0; len];
        let count = self.file.read(at, &mut found).expect("the file is there");
        let start = self.file_bytes.len().min(at as usize);
        let end = self.file_bytes.len().min(start + len);
        assert_eq!(found[..count], self.file_bytes[start..end]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn kernel_random_operations_match_the_model(ops in vec(op(), 1..200)) {
        let mut model = Model::new();
        for op in &ops {
            model.apply(op);
        }
        for region in 0..model.regions.len() {
            let len = model.regions[region].0.pages() as usize * PAGE_SIZE;
            model.read(region, 0, len);
        }
        model.read_disk(0, 20 * PAGE_SIZE);
        model.regions.clear();
        model.on_disk = None;
        prop_assert_eq!(model.volume.used(), 0);
        model.guest.kernel.balloon_free(&model.balloon).expect("all of it is ours");
        let stats = model.guest.kernel.stats();
        prop_assert_eq!((stats.anon, stats.swap_used, stats.balloon), (0, 0, 0));
    }
}

/// Pages of the region and of the file of each thread.
const PAGES: u64 = 24;

/// One of several threads: writes and reads memory and a file of its own, and reads a file that all read.
fn use_all_memory(
    seed: u64,
    kernel: &Arc<Kernel>,
    (file, content): (&CachedFile, &[u8]),
    volume: &Volume,
) {
    let mut random = StdRng::seed_from_u64(seed);
    let region = kernel.map_anon(PAGES as u32);
    let mut on_disk = volume.create(PAGES as u32);
    let mut versions = [0u64; PAGES as usize];
    let mut deleted = 0;
    for step in 1..1500u64 {
        let page = random.random_range(0..PAGES);
        let at = page * PAGE_SIZE as u64;
        let mut found = vec![0; PAGE_SIZE];
        region.read(at, &mut found).expect("there is room");
        let expected = match versions[page as usize] {
            0 => vec![0; PAGE_SIZE],
            version => noise(version, PAGE_SIZE),
        };
        assert_eq!(found, expected, "seed {seed}, step {step}, page {page}");
        versions[page as usize] = seed * 10_000 + step;
        let bytes = noise(seed * 10_000 + step, PAGE_SIZE);
        region.write(at, &bytes).expect("there is room");
        // The file has the bytes that the region has, until it is deleted.
        on_disk.write(at, &bytes).expect("there is room");
        let page = random.random_range(0..PAGES);
        let at = page * PAGE_SIZE as u64;
        on_disk.read(at, &mut found).expect("the disk works");
        let expected = match versions[page as usize] {
            version if version <= deleted => vec![0; PAGE_SIZE],
            version => noise(version, PAGE_SIZE),
        };
        assert_eq!(found, expected, "seed {seed}, step {step}, page {page}");
        match random.random_range(0..200) {
            0 => {
                on_disk = volume.create(PAGES as u32);
                deleted = seed * 10_000 + step;
            }
            1..20 => on_disk.flush().expect("the disk works"),
            _ => {}
        }
        let place = random.random_range(0..29 * PAGE_SIZE);
        file.read(place as u64, &mut found)
            .expect("the file is there");
        assert_eq!(found, content[place..place + PAGE_SIZE]);
    }
}

#[test]
fn kernel_of_many_threads_in_little_ram_keeps_every_byte() {
    const THREADS: u64 = 4;
    let guest = guest(40, 120);
    let content = noise(7, 30 * PAGE_SIZE);
    let file = guest
        .kernel
        .open_file(&guest.file("cached", &content))
        .expect("it is there");
    // Twice the files, because a new one is there before the old one is deleted.
    let disk = 2 * (THREADS * PAGES) as u32;
    let volume = guest.kernel.volume(disk, Duration::ZERO).expect("a disk");
    std::thread::scope(|scope| {
        for seed in 0..THREADS {
            let (kernel, file, content, volume) = (&guest.kernel, &file, &content, &volume);
            scope.spawn(move || use_all_memory(seed, kernel, (file, content), volume));
        }
        scope.spawn(|| {
            for _ in 0..300 {
                let runs = guest.kernel.balloon_alloc(8, true);
                std::thread::yield_now();
                guest.kernel.balloon_free(&runs).expect("they are ours");
            }
        });
    });
    let stats = guest.kernel.stats();
    assert!(stats.swap_out > 0 && stats.swap_in > 0, "{stats:?}");
    assert!(stats.written_back > 0, "{stats:?}");
    assert_eq!((stats.anon, stats.swap_used, stats.oom), (0, 0, 0));
    assert_eq!(volume.used(), 0);
    guest.check_books();
}

/// Takes `pages` pages from the guest by its balloon.
fn squeeze(guest: &Guest, pages: u32) -> KernelStats {
    let taken = guest.kernel.balloon_alloc(pages, true);
    assert_eq!(taken.pages(), u64::from(pages));
    guest.kernel.stats()
}

#[test]
fn balloon_takes_free_pages_then_clean_and_dirty_cache_then_anonymous_memory() {
    let guest = guest(256, 256);
    let bytes = noise(1, 60 * PAGE_SIZE);
    let region = guest.kernel.map_anon(60);
    region.write(0, &bytes).expect("there is room");
    let volume = guest.kernel.volume(60, Duration::ZERO).expect("a disk");
    let file = volume.create(60);
    file.write(0, &bytes).expect("there is room");
    file.flush().expect("the disk works");
    file.write(0, &bytes[..20 * PAGE_SIZE]).expect("cached");
    let stats = guest.kernel.stats();
    let (low, high) = (4, 8);
    assert_eq!((stats.written_back, stats.caches), (60, 60));
    assert_eq!(stats.available, stats.free - low + 60 - low);

    let free = stats.free - high;
    let stats = squeeze(&guest, free as u32);
    assert_eq!(
        (stats.caches, stats.anon),
        (60, 60),
        "free pages come first"
    );
    let stats = squeeze(&guest, 56);
    assert_eq!((stats.caches, stats.anon), (low, 60), "then page cache");
    assert!(stats.written_back >= 60 + 16, "dirty pages were written");
    assert!(stats.written_back <= 60 + 20, "and clean ones were not");
    assert_eq!((stats.swap_out, stats.available), (0, high - low + low - 2));
    let stats = squeeze(&guest, 30);
    assert!(stats.swap_out >= 26, "then anonymous memory: {stats:?}");

    let mut found = vec![0; 60 * PAGE_SIZE];
    file.read(0, &mut found).expect("on the disk");
    assert!(found == bytes);
    region.read(0, &mut found).expect("in RAM and on the disk");
    assert!(found == bytes);
    let faults = guest.kernel.stats().major_faults;
    assert!(faults >= 56 + 26, "{faults} pages came back from disks");
}

#[test]
fn file_that_is_overwritten_page_by_page_is_not_read_and_one_that_is_deleted_not_written() {
    let guest = guest(64, 0);
    let volume = guest.kernel.volume(10, Duration::ZERO).expect("a disk");
    let file = volume.create(10);
    let all = noise(1, 10 * PAGE_SIZE);
    file.write(0, &all).expect("there is room");
    squeeze(&guest, 52);
    let before = guest.kernel.stats();
    assert!(before.written_back >= 6, "{before:?}");
    file.write(0, &all).expect("there is room");
    assert_eq!(guest.kernel.stats().major_faults, before.major_faults);
    file.write(100, &[7; 50]).expect("there is room");
    let written = guest.kernel.stats().written_back;
    drop(file);
    let after = guest.kernel.stats();
    assert_eq!((after.caches, volume.used()), (0, 0));
    assert_eq!(after.written_back, written, "nobody will read it");
}

#[test]
fn anon_page_reused_from_the_balloon_reads_as_zero() {
    let guest = guest(16, 0);
    let runs = guest.kernel.balloon_alloc(8, false);
    guest.kernel.balloon_free(&runs).expect("they are ours");
    let region = guest.kernel.map_anon(12);
    for page in 0..12u64 {
        region
            .write(page * PAGE_SIZE as u64 + 100, b"x")
            .expect("free pages");
    }
    let mut bytes = vec![0; 12 * PAGE_SIZE];
    region.read(0, &mut bytes).expect("in RAM");
    assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 12);
}

#[test]
fn balloon_without_reclaim_leaves_cache_and_watermark_alone() {
    let guest = guest(128, 0);
    let path = guest.file("cached", &noise(1, 40 * PAGE_SIZE));
    let file = guest.kernel.open_file(&path).expect("it is there");
    file.read(0, &mut vec![0; 40 * PAGE_SIZE])
        .expect("it is readable");

    drop(guest.kernel.balloon_alloc(u32::MAX, false));
    let stats = guest.kernel.stats();
    assert_eq!((stats.free, stats.caches), (4, 40));

    drop(guest.kernel.balloon_alloc(u32::MAX, true));
    let stats = guest.kernel.stats();
    assert_eq!((stats.free, stats.caches, stats.balloon), (4, 0, 120));
    assert_eq!(stats.direct_reclaim, 40);
}

#[test]
fn balloon_with_reclaim_stops_when_the_swap_disk_is_full() {
    let guest = guest(64, 10);
    let region = guest.kernel.map_anon(40);
    region
        .write(0, &noise(3, 40 * PAGE_SIZE))
        .expect("free pages");
    let runs = guest.kernel.balloon_alloc(60, true);
    assert_eq!(runs.pages(), 64 - 4 - 40 - 4 + 10);
    let mut found = vec![0; 40 * PAGE_SIZE];
    region
        .read(0, &mut found[..30 * PAGE_SIZE])
        .expect("a few pages are free");
    assert_eq!(
        found[..30 * PAGE_SIZE],
        noise(3, 40 * PAGE_SIZE)[..30 * PAGE_SIZE]
    );
}

#[test]
fn file_cache_is_shared_by_openers_and_outlives_them() {
    let guest = guest(64, 0);
    let path = guest.file("cached", &noise(1, 3 * PAGE_SIZE + 5));
    let mut bytes = vec![0; 4 * PAGE_SIZE];
    for _ in 0..2 {
        let file = guest.kernel.open_file(&path).expect("it is there");
        assert_eq!(file.read(0, &mut bytes).unwrap(), 3 * PAGE_SIZE + 5);
        assert_eq!(file.read(3 * PAGE_SIZE as u64 + 5, &mut bytes).unwrap(), 0);
        assert_eq!(file.read(u64::MAX, &mut bytes).unwrap(), 0);
    }
    assert_eq!(guest.kernel.stats().major_faults, 4);
}

#[test]
fn file_that_was_changed_is_read_anew() {
    let guest = guest(64, 0);
    let path = guest.file("cached", b"old");
    let mut bytes = [0; 8];
    let old = guest.kernel.open_file(&path).expect("it is there");
    old.read(0, &mut bytes).expect("it is readable");
    guest.file("cached", b"newer");
    let new = guest.kernel.open_file(&path).expect("it is there");
    assert_eq!(new.read(0, &mut bytes).unwrap(), 5);
    assert_eq!(bytes[..5], *b"newer");
}

#[test]
fn file_that_is_missing_or_a_directory_is_refused_by_name() {
    let guest = guest(64, 0);
    for path in [guest.directory.path().to_owned(), "/nowhere".into()] {
        let error = guest.kernel.open_file(&path).expect_err("no file");
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
    }
}

/// Deflates the balloon that it holds, as the agent does, for a host that is short of memory at first.
struct Relief {
    kernel: Arc<Kernel>,
    balloon: Mutex<Vec<GfnRun>>,
    asked: AtomicU32,
    refuses: u32,
}

impl PressureHook for Relief {
    fn relieve(&self, _pages: u32) -> bool {
        if self.asked.fetch_add(1, Ordering::Relaxed) < self.refuses {
            return false;
        }
        let Some(run) = lock(&self.balloon).pop() else {
            return false;
        };
        self.kernel.balloon_free(&[run]).expect("it is ours");
        true
    }
}

impl Relief {
    fn set(kernel: Arc<Kernel>, refuses: u32) -> Arc<Self> {
        let hook = Arc::new(Self {
            balloon: Mutex::new(kernel.balloon_alloc(16, false)),
            kernel,
            asked: AtomicU32::new(0),
            refuses,
        });
        let weak: Weak<Self> = Arc::downgrade(&hook);
        hook.kernel.set_pressure_hook(weak);
        hook
    }
}

#[test]
fn allocation_waits_while_the_host_is_too_short_to_give_relief() {
    let guest = guest(32, 0);
    let hook = Relief::set(Arc::clone(&guest.kernel), 3);
    let region = guest.kernel.map_anon(28);
    region
        .write(0, &noise(1, 28 * PAGE_SIZE))
        .expect("the balloon gives way in the end");
    assert_eq!(hook.asked.load(Ordering::Relaxed), 4);
    assert_eq!(guest.kernel.stats().oom, 0);
}

/// The victim may be in the host's swap file, and then it comes back only to be written to the guest's
/// own disk. This is double paging, and a host must be able to see it.
#[test]
fn swap_out_brings_its_victim_back_before_the_page_is_free() {
    let guest = guest(16, 4);
    let region = guest.kernel.map_anon(1);
    region.write(0, b"victim").expect("free pages");
    let page = region.gfn_of(0).expect("it is in RAM");
    std::thread::scope(|scope| {
        let stalled = guest.memory.stall(page);
        let reclaim = scope.spawn(|| guest.kernel.reclaim_now(1));
        guest.memory.wait_stalled();
        let stats = guest.kernel.stats();
        assert_eq!((stats.swap_out, stats.anon, stats.free), (0, 1, 11));
        drop(stalled);
        assert_eq!(reclaim.join().expect("no panic").freed, 1);
    });
    let stats = guest.kernel.stats();
    assert_eq!((stats.swap_out, stats.anon, stats.free), (1, 0, 12));
    let mut bytes = [0; 6];
    region.read(0, &mut bytes).expect("it is on the disk");
    assert_eq!((bytes, guest.kernel.stats().swap_in), (*b"victim", 1));
}

#[test]
fn allocation_without_memory_asks_for_relief_before_it_fails() {
    let guest = guest(32, 0);
    let kernel = Arc::clone(&guest.kernel);
    let hook = Relief::set(kernel, 0);
    let region = guest.kernel.map_anon(40);
    region
        .write(0, &noise(1, 28 * PAGE_SIZE))
        .expect("the balloon gives way");
    assert_eq!(hook.asked.load(Ordering::Relaxed), 1);
    assert_eq!(guest.kernel.stats().oom, 0);

    let error = region
        .write(28 * PAGE_SIZE as u64, &[1])
        .expect_err("nothing is left");
    assert!(
        matches!(
            error,
            KernelError::OutOfMemory {
                anon: 28,
                balloon: 0,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(guest.kernel.stats().oom, 1);
    drop(region);
    assert_eq!(guest.kernel.stats().free, 28);
}

#[test]
fn kernel_in_too_little_ram_does_not_boot() {
    let options = KernelOptions {
        swap_pages: 0,
        disk_directory: "/nowhere".into(),
    };
    let error = Kernel::new(Arc::new(VecMemory::new(15)), &options).expect_err("too small");
    assert!(error.to_string().contains("15 pages"), "{error}");
}

#[test]
fn reclaim_spares_the_pages_that_were_accessed() {
    let guest = guest(128, 64);
    let region = guest.kernel.map_anon(60);
    region
        .write(0, &noise(5, 60 * PAGE_SIZE))
        .expect("free pages");
    // The first turn of the clock clears the marks of all pages and takes the first 20.
    drop(guest.kernel.balloon_alloc(60, false));
    drop(guest.kernel.balloon_alloc(20, true));
    let hot = 30..50u64;
    for page in hot.clone() {
        region
            .read(page * PAGE_SIZE as u64, &mut [0; 8])
            .expect("in RAM");
    }
    drop(guest.kernel.balloon_alloc(15, true));
    let swapped = |page: u64| region.gfn_of(page as u32).is_none();
    assert_eq!(hot.filter(|page| swapped(*page)).count(), 0);
    assert_eq!((0..60).filter(|page| swapped(*page)).count(), 35);
}

/// The host may take seconds to bring a page back. Meanwhile only threads that want this page wait;
/// other threads read, write, allocate, swap, unmap and serve the balloon.
#[test]
fn kernel_whose_host_is_slow_with_one_page_goes_on_with_all_others() {
    let guest = guest(64, 100);
    let slow = guest.kernel.map_anon(1);
    slow.write(0, b"slow").expect("free pages");
    let file = guest
        .kernel
        .open_file(&guest.file("cached", &noise(1, 8 * PAGE_SIZE)));
    let file = file.expect("it is there");
    let page = slow.gfn_of(0).expect("it is in RAM");
    std::thread::scope(|scope| {
        let stalled = guest.memory.stall(page);
        let reader = scope.spawn(|| {
            let mut bytes = [0; 4];
            slow.read(0, &mut bytes).expect("in RAM");
            bytes
        });
        guest.memory.wait_stalled();

        let region = guest.kernel.map_anon(100);
        region
            .write(0, &noise(2, 100 * PAGE_SIZE))
            .expect("there is room");
        let mut bytes = vec![0; 100 * PAGE_SIZE];
        region.read(0, &mut bytes).expect("there is room");
        assert_eq!(bytes, noise(2, 100 * PAGE_SIZE));
        file.read(0, &mut bytes).expect("the file is there");
        let runs = guest.kernel.balloon_alloc(20, true);
        assert!(runs.pages() > 0);
        guest.kernel.balloon_free(&runs).expect("they are ours");
        drop(region);
        guest.check_books();
        assert!(!reader.is_finished());

        drop(stalled);
        assert_eq!(reader.join().expect("no panic"), *b"slow");
    });
}

/// A page that another thread is using will be free in a moment: failing now would be a false OOM.
#[test]
fn allocation_waits_for_the_only_page_there_is_while_somebody_is_at_it() {
    let guest = guest(16, 0);
    let path = guest.file("cached", b"cached");
    let file = guest.kernel.open_file(&path).expect("it is there");
    let region = guest.kernel.map_anon(12);
    region.write(0, &[1; 11 * PAGE_SIZE]).expect("free pages");
    file.read(0, &mut [0]).expect("one page is free");
    let page = file.gfn_of(0).expect("it is cached");
    std::thread::scope(|scope| {
        let stalled = guest.memory.stall(page);
        let reader = scope.spawn(|| file.read(0, &mut [0]));
        guest.memory.wait_stalled();
        let writer = scope.spawn(|| region.write(11 * PAGE_SIZE as u64, &[1]));
        while guest.kernel.stats().direct_scan < 100 && !writer.is_finished() {
            std::thread::yield_now();
        }
        assert!(!writer.is_finished());
        drop(stalled);
        reader.join().expect("no panic").expect("it is cached");
        writer
            .join()
            .expect("no panic")
            .expect("the cache gives way");
    });
    assert_eq!(guest.kernel.stats().oom, 0);
}

/// Threads that use pages all the time must not keep an allocation waiting for pages that have nowhere
/// to go: the allocation has to ask for relief, or fail.
#[test]
fn allocation_does_not_wait_for_busy_pages_that_the_full_disk_cannot_take() {
    let guest = guest(16, 0);
    let region = guest.kernel.map_anon(13);
    region.write(0, &[1; 12 * PAGE_SIZE]).expect("free pages");
    let page = region.gfn_of(0).expect("it is in RAM");
    std::thread::scope(|scope| {
        let stalled = guest.memory.stall(page);
        let reader = scope.spawn(|| region.read(0, &mut [0]));
        guest.memory.wait_stalled();
        let writer = scope.spawn(|| region.write(12 * PAGE_SIZE as u64, &[1]));
        while guest.kernel.stats().direct_scan < 1000 && !writer.is_finished() {
            std::thread::yield_now();
        }
        assert!(writer.is_finished(), "it waits for the host");
        let result = writer.join().expect("no panic");
        assert!(matches!(result, Err(KernelError::OutOfMemory { .. })));
        drop(stalled);
        reader.join().expect("no panic").expect("it is in RAM");
    });
}

fn page_of(byte: u8) -> [u8; PAGE_SIZE] {
    [byte; PAGE_SIZE]
}

fn read_page(region: &AnonRegion, page: u32) -> [u8; PAGE_SIZE] {
    let mut bytes = [0; PAGE_SIZE];
    let offset = u64::from(page) * PAGE_SIZE as u64;
    region.read(offset, &mut bytes).expect("it is in RAM");
    bytes
}

#[test]
fn stage_attaches_as_much_as_the_host_does_and_frees_the_rest() {
    let guest = guest(1024, 0);
    let region = guest.kernel.map_anon(600);
    let free = guest.kernel.stats().free;
    let stage = guest.kernel.stage().expect("there is room");
    for page in 0..stage.pages() {
        stage.put(page, &page_of(page as u8));
    }
    assert_eq!(stage.attach(&region, 0, 10), Some(0), "it does not");
    guest.memory.attach_at_most(100);
    assert_eq!(stage.attach(&region, 0, stage.pages()), Some(100));
    assert_eq!(stage.attach(&region, 100, 60), Some(60));
    for page in 0..160 {
        assert_eq!(read_page(&region, page), page_of(page as u8 % 100));
    }
    assert_eq!(read_page(&region, 160), page_of(0));
    let run = |page| region.gfn_of(page).expect("it is in RAM").0;
    assert_eq!(run(159) - run(0), 159, "one run of pages");

    // A page that was written is not attached, nor are the pages behind it.
    region.write(205 * PAGE_SIZE as u64, b"x").expect("a page");
    assert_eq!(stage.attach(&region, 205, 4), Some(0));
    assert_eq!(stage.attach(&region, 203, 4), Some(2));
    drop(stage);
    assert_eq!(guest.kernel.stats().free, free - 163);
    guest.check_books();
    drop(region);
    assert_eq!(guest.kernel.stats().free, free);
}

#[test]
fn stage_is_not_had_of_pages_below_the_watermark_and_leaves_them_alone() {
    let small = guest(200, 0);
    assert!(small.kernel.stage().is_none());
    let guest = guest(340, 0);
    guest.memory.attach_at_most(u32::MAX);
    let stage = guest.kernel.stage().expect("just enough");
    let region = guest.kernel.map_anon(100);
    assert_eq!(stage.attach(&region, 0, 80), None, "too few would be free");
    assert_eq!(stage.attach(&region, 0, 60), Some(60));
}

/// A guest that allocates, frees and allocates again while the host takes free pages at its word: it must not get back,
/// one fault each, the pages that were just dropped.
#[test]
fn pages_that_the_host_dropped_are_used_last() {
    let guest = guest(256, 0);
    let kernel = &guest.kernel;
    let (free, end) = kernel.free_pages(Gfn(0), 100, true);
    let dropped = kernel.pin_free(&free);
    assert_eq!((dropped.pages(), end), (100, Some(Gfn(104))));
    kernel.balloon_free(&dropped).expect("they are pinned");
    kernel.note_dropped(&dropped);
    let is_dropped = |gfn: Gfn| dropped.iter().any(|run| run.iter().any(|page| page == gfn));
    let touched = |pages: u32| {
        let region = kernel.map_anon(pages);
        region
            .write(0, &noise(1, pages as usize * PAGE_SIZE))
            .expect("free pages");
        let gfns = (0..pages).map(|page| region.gfn_of(page).expect("in RAM"));
        gfns.filter(|gfn| is_dropped(*gfn)).count()
    };
    // 152 free pages hold memory, and stay the first however often they change hands.
    for _ in 0..3 {
        assert_eq!(touched(150), 0);
    }
    assert_eq!(touched(160), 8);
    // What was used holds memory again.
    let (fresh, _) = kernel.free_pages(Gfn(0), u32::MAX, true);
    let (all, _) = kernel.free_pages(Gfn(0), u32::MAX, false);
    assert_eq!((fresh.pages(), all.pages()), (160, 252));
    guest.check_books();
}

#[test]
fn pages_that_hold_memory_are_left_to_the_guest_up_to_the_high_watermark() {
    let guest = guest(256, 0);
    let kernel = &guest.kernel;
    let (all, _) = kernel.free_pages(Gfn(0), u32::MAX, false);
    let pinned = kernel.pin_free(&all);
    let left = kernel.stats().free;
    assert!(left >= 8 && pinned.pages() == 252 - left, "{left}");
    kernel.balloon_free(&pinned).expect("they are pinned");
    kernel.note_dropped(&pinned);
    // Dropped pages cost the guest nothing that it has not lost already.
    assert_eq!(kernel.pin_free(&all).pages(), pinned.pages());
    assert_eq!(kernel.stats().free, left);
}
