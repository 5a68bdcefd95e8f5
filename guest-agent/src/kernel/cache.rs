//! The page cache: pages of real files, clean and shared by everybody who opens the file.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use memvisor_wire::{Gfn, PAGE_SIZE};

use super::object::{Eviction, Object};
use super::pages::{Owner, PageUse};
use super::{Bounce, Kernel, KernelError, lock, pieces, try_lock};

/// What identifies a file. A file that was changed gets another key, so its pages are read anew; the
/// clock drops the pages of the old key in time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct FileKey {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

/// The cached pages of one file. They outlive every [`CachedFile`], as in a real kernel, so the map
/// holds no descriptor.
pub(super) struct FileMap {
    pages: Box<[Mutex<Option<Gfn>>]>,
}

impl Object for FileMap {
    fn evict(&self, kernel: &Kernel, page: u32, gfn: Gfn) -> Eviction {
        let Some(entry) = self.pages.get(page as usize) else {
            return Eviction::Busy;
        };
        let Some(mut entry) = try_lock(entry) else {
            return Eviction::Busy;
        };
        if *entry != Some(gfn) {
            return Eviction::Busy;
        }
        *entry = None;
        kernel.pages.release(gfn, PageUse::Cache);
        Eviction::Freed {
            wrote: Duration::ZERO,
        }
    }
}

/// An open file, read through the page cache.
pub struct CachedFile {
    kernel: Arc<Kernel>,
    map: Arc<FileMap>,
    object: u32,
    file: File,
    len: u64,
    path: PathBuf,
}

impl fmt::Debug for CachedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedFile")
            .field("path", &self.path)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// Opens a regular file for reading through the page cache. After it is closed, its pages stay
    /// cached until memory is needed.
    ///
    /// # Errors
    /// [`KernelError::File`] when it cannot be opened or is not a regular file.
    pub fn open_file(self: &Arc<Self>, path: &Path) -> Result<CachedFile, KernelError> {
        let (file, key) = identify(path).map_err(|source| KernelError::File {
            path: path.to_owned(),
            source,
        })?;
        let (object, map) = self.file_map(key);
        Ok(CachedFile {
            kernel: Arc::clone(self),
            map,
            object,
            file,
            len: key.len,
            path: path.to_owned(),
        })
    }

    fn file_map(&self, key: FileKey) -> (u32, Arc<FileMap>) {
        let mut files = lock(&self.files);
        let (object, map) = files.entry(key).or_insert_with(|| {
            let pages = key.len.div_ceil(PAGE_SIZE as u64);
            let map = Arc::new(FileMap {
                pages: (0..pages).map(|_| Mutex::default()).collect(),
            });
            (self.objects.add(Arc::clone(&map) as Arc<dyn Object>), map)
        });
        (*object, Arc::clone(map))
    }
}

fn identify(path: &Path) -> io::Result<(File, FileKey)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.len() > u64::from(u32::MAX) * PAGE_SIZE as u64 {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    let key = FileKey {
        device: metadata.dev(),
        inode: metadata.ino(),
        len: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    };
    Ok((file, key))
}

impl CachedFile {
    /// Copies bytes from byte `offset` on. Returns how many: at the end of the file these are fewer than
    /// `into` can hold.
    ///
    /// # Errors
    /// [`KernelError::File`] when the file cannot be read, [`KernelError::OutOfMemory`].
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, KernelError> {
        let left = self.len.saturating_sub(offset);
        let count = usize::try_from(left).map_or(into.len(), |left| left.min(into.len()));
        for piece in pieces(offset, count) {
            self.read_page(piece.page, piece.at, &mut into[piece.range])?;
        }
        Ok(count)
    }

    /// The physical page that caches page `page` of the file at this moment. It can change at any time,
    /// so use it for messages only. Waits for an access to the page to end.
    #[must_use]
    pub fn gfn_of(&self, page: u32) -> Option<Gfn> {
        *lock(self.map.pages.get(page as usize)?)
    }

    fn read_page(&self, page: u32, at: usize, into: &mut [u8]) -> Result<(), KernelError> {
        let mut entry = lock(&self.map.pages[page as usize]);
        let gfn = match *entry {
            Some(gfn) => gfn,
            None => self.fill(&mut entry, page)?,
        };
        self.kernel.pages.mark_referenced(gfn);
        self.kernel.memory.read(gfn, at, into);
        Ok(())
    }

    fn fill(&self, entry: &mut Option<Gfn>, page: u32) -> Result<Gfn, KernelError> {
        // Read before the allocation: a read that fails then has no page to give back.
        let mut bounce = Bounce::zeroed();
        self.read_file(page, &mut bounce)
            .map_err(|source| KernelError::File {
                path: self.path.clone(),
                source,
            })?;
        let owner = Owner {
            object: self.object,
            page,
        };
        let gfn = self.kernel.allocate(owner, PageUse::Cache)?;
        self.kernel.write_page(gfn, &bounce);
        self.kernel.counters.major_faults.add(1);
        *entry = Some(gfn);
        Ok(gfn)
    }

    /// Reads one page of the file. Bytes behind the end of the file stay zero.
    fn read_file(&self, page: u32, bounce: &mut Bounce) -> io::Result<()> {
        let mut done = 0;
        while done < PAGE_SIZE {
            let offset = u64::from(page) * PAGE_SIZE as u64 + done as u64;
            match self.file.read_at(&mut bounce.0[done..], offset) {
                // The end of the file. The rest of its last page reads as zeroes, and so does what was cut off since it
                // was opened.
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
