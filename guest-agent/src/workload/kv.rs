//! `kv`: a store of small values, read and written with Zipf popularity by several threads.
//!
//! Several values share a page, and each has a version of its own. This finds both a page that comes
//! back whole but out of date, and a page that comes back torn. A version and its bytes change together
//! under a lock that many pages share; nobody holds two of these locks at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memvisor_wire::PAGE_SIZE;
use rand::RngExt;
use rand::rngs::StdRng;

use super::build::{Builder, StartError};
use super::content::Content;
use super::kind::{Allowed, CONTENT, Kind, PAUSE, Parameter, RATE, SIZE, THREADS, WRITE, ZIPF};
use super::pageset::Share;
use super::spec::parse;
use super::zipf::Popularity;
use super::{Failure, Mismatch, Work, Worker, Workers};
use crate::kernel::{AnonRegion, Kernel};

/// The most values one store can have. [`Popularity`] chooses among fewer than 2^32, and each costs a version.
const MAX_KEYS: u64 = 1 << 31;

pub(super) const KIND: Kind = Kind {
    usage: "kv",
    does: "reads and writes small values with Zipf popularity",
    parameters: &[
        SIZE,
        THREADS,
        WRITE.or("20"),
        ZIPF,
        VALUE,
        RATE,
        PAUSE,
        CONTENT,
    ],
    build,
    ..Kind::PLAIN
};

const VALUE: Parameter = Parameter {
    name: "value",
    default: Some("400"),
    allowed: Allowed::Range(8, PAGE_SIZE as u32),
    effect: "bytes of a value",
};

fn build(builder: &mut Builder<'_>) -> Result<Workers, StartError> {
    let (pages, spec) = (builder.pages, builder.spec);
    let value = spec.get(&VALUE, parse);
    let keys = u64::from(pages) * (PAGE_SIZE / value) as u64;
    if keys > MAX_KEYS {
        return Err(StartError::Size {
            spec: spec.to_string(),
            why: format!("makes {keys} values; allowed: up to {MAX_KEYS}; make value= larger"),
        });
    }
    let store = Arc::new(Store::map(builder.kernel, pages, value, builder.content()));
    let popularity = Popularity::new(keys, spec.get(&ZIPF, parse));
    Ok(builder.each(|share, random| Client {
        store: Arc::clone(&store),
        share,
        popularity,
        write: spec.get(&WRITE, parse),
        random,
    }))
}

/// Locks of a store: so many that two threads seldom need the same one.
const LOCKS: usize = 256;

/// What all threads of one `kv` share.
#[derive(Debug)]
struct Store {
    region: AnonRegion,
    versions: Box<[AtomicU32]>,
    locks: Box<[Mutex<()>]>,
    content: Content,
    value: usize,
}

impl Store {
    fn map(kernel: &Arc<Kernel>, pages: u32, value: usize, content: Content) -> Self {
        let keys = pages as usize * (PAGE_SIZE / value);
        Self {
            region: kernel.map_anon(pages),
            versions: (0..keys).map(|_| AtomicU32::new(0)).collect(),
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            content,
            value,
        }
    }

    const fn keys_a_page(&self) -> u64 {
        (PAGE_SIZE / self.value) as u64
    }

    fn lock(&self, page: u64) -> MutexGuard<'_, ()> {
        let lock = &self.locks[page as usize % LOCKS];
        lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn version(&self, key: u64) -> u32 {
        self.versions[key as usize].load(Ordering::Relaxed)
    }

    /// The page of a key, and the byte in that page at which its value begins.
    const fn place(&self, key: u64) -> (u64, usize) {
        let page = key / self.keys_a_page();
        (page, (key % self.keys_a_page()) as usize * self.value)
    }

    fn put(&self, key: u64) -> Result<Work, Failure> {
        let (page, _) = self.place(key);
        let _lock = self.lock(page);
        self.put_locked(key)
    }

    fn put_locked(&self, key: u64) -> Result<Work, Failure> {
        let (page, at) = self.place(key);
        let next = self.version(key).wrapping_add(1);
        let mut buffer = [0; PAGE_SIZE];
        let bytes = &mut buffer[..self.value];
        self.content.fill(page, key, next, bytes);
        self.region
            .write(page * PAGE_SIZE as u64 + at as u64, bytes)?;
        // After the bytes: if the kernel had no page for them, the old version still holds. Relaxed, under the page's
        // lock.
        self.versions[key as usize].store(next, Ordering::Relaxed);
        Ok(Work::written(self.value))
    }

    fn get(&self, key: u64) -> Result<Work, Failure> {
        let (page, at) = self.place(key);
        let (mut found, mut expected) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        let (found, expected) = (&mut found[..self.value], &mut expected[..self.value]);
        let version = {
            let _lock = self.lock(page);
            self.region
                .read(page * PAGE_SIZE as u64 + at as u64, found)?;
            self.version(key)
        };
        self.content.fill(page, key, version, expected);
        self.judge(expected, found, at, page, version)
    }

    /// Writes those values of a page that have never been written. A call that failed half-way can be repeated.
    fn load_page(&self, page: u64) -> Result<Work, Failure> {
        let _lock = self.lock(page);
        let first = page * self.keys_a_page();
        (first..first + self.keys_a_page())
            // Other threads may be done with loading, and what they wrote meanwhile must not be loaded over.
            .filter(|key| self.version(*key) == 0)
            .try_fold(
                Work::default(),
                |done, key| Ok(done + self.put_locked(key)?),
            )
    }

    /// Verifies a whole page: its values and the unused rest.
    fn verify_page(&self, page: u64) -> Result<Work, Failure> {
        let (mut found, mut expected) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        let first = page * self.keys_a_page();
        let _lock = self.lock(page);
        self.region.read(page * PAGE_SIZE as u64, &mut found)?;
        for (key, bytes) in (first..).zip(expected.chunks_exact_mut(self.value)) {
            self.content.fill(page, key, self.version(key), bytes);
        }
        let wrong = (0..self.keys_a_page()).find(|number| {
            let at = *number as usize * self.value;
            expected[at..at + self.value] != found[at..at + self.value]
        });
        let version = wrong.map_or(0, |number| self.version(first + number));
        self.judge(&expected, &found, 0, page, version)
    }

    fn judge(
        &self,
        expected: &[u8],
        found: &[u8],
        at: usize,
        page: u64,
        version: u32,
    ) -> Result<Work, Failure> {
        match Mismatch::of(expected, found, at) {
            None => Ok(Work::verified(found.len())),
            Some(mismatch) => {
                let gfn = self.region.gfn_of(page as u32);
                Err(mismatch.on(page, gfn, version).into())
            }
        }
    }
}

/// One thread that uses a store.
#[derive(Debug)]
struct Client {
    store: Arc<Store>,
    share: Share,
    popularity: Popularity,
    write: u8,
    random: StdRng,
}

impl Worker for Client {
    fn to_load(&self) -> u32 {
        self.share.count(self.store.region.pages())
    }

    fn load(&mut self, number: u32) -> Result<Work, Failure> {
        self.store.load_page(self.share.page(number).into())
    }

    fn step(&mut self) -> Result<Option<Work>, Failure> {
        let key = self.popularity.choose(&mut self.random);
        let done = match self.random.random_range(0..100) < self.write {
            true => self.store.put(key),
            false => self.store.get(key),
        };
        done.map(Some)
    }

    fn verify(&mut self, number: u32) -> Result<Work, Failure> {
        self.store.verify_page(self.share.page(number).into())
    }
}
