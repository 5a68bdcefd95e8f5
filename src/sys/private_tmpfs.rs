//! A tmpfs of this process alone, with one mount to write and one to read.
//!
//! # The problem
//! Guests map the share pool to read it. A read-only descriptor does not stop a process of the same user from
//! opening `/proc/self/fd/N` once more for writing, and changing what all guests read. A memfd that is sealed
//! against writing would stop it, but the seal forbids punching holes as well, and punching is how a frame
//! that nobody uses any more is freed.
//!
//! # The structure
//! Through a read-only mount, nobody can open a file for writing, not even its owner. So the files that guests
//! may only read belong to a tmpfs with two mounts: the daemon makes and writes files through one, and
//! descriptors for guests are opened through the other. Guests have descriptors of single files, never of a
//! mount, and neither mount is part of a namespace: nobody can make the second mount writable, clone it, or bind
//! a file of it elsewhere.
//!
//! Mounting takes privilege. Root has it; an ordinary user has it in a user namespace of its own, which no
//! process with threads can enter. So a child enters it. The child shares this process's table of
//! descriptors, leaves the directories of both mounts open there, and ends. Its namespaces end with it, and
//! the mounts last as long as something in them is open.
//!
//! Where the kernel allows neither ([`readers_cannot_write`] says why), such files are memfds: guests of other
//! users cannot open them again, but guests of the same user can.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::mount::{MsFlags, mount as mount_at};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, UnlinkatFlags, getegid, geteuid, pipe2, unlinkat, write};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// See the module text.
#[derive(Debug)]
pub(super) struct PrivateTmpfs {
    writable: OwnedFd,
    read_only: OwnedFd,
    /// Held while a file has a name, so that names need not differ.
    naming: Mutex<()>,
}

static TMPFS: OnceLock<Result<PrivateTmpfs, Errno>> = OnceLock::new();

/// Whether guests of this user cannot write what they are only given to read. The first call makes the mounts. It
/// must come before this process is closed to others: a closed process can enter no user namespace.
///
/// # Errors
/// Why the kernel lets this process have no mount.
pub fn readers_cannot_write() -> io::Result<()> {
    PrivateTmpfs::get().map(drop)
}

impl PrivateTmpfs {
    /// The tmpfs of this process.
    ///
    /// # Errors
    /// Why there is none; the same at every call.
    pub(super) fn get() -> io::Result<&'static Self> {
        let tmpfs = TMPFS.get_or_init(mount);
        tmpfs.as_ref().map_err(|errno| (*errno).into())
    }

    /// An empty file without a name, and a descriptor of it through which nobody can write it. `name` is what
    /// `/proc/PID/maps` shows.
    ///
    /// # Errors
    /// What `openat(2)` says.
    pub(super) fn create(&self, name: &str) -> io::Result<(File, OwnedFd)> {
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = openat(&self.writable, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let reader = openat(&self.read_only, name, flags, Mode::empty());
        unlinkat(&self.writable, name, UnlinkatFlags::NoRemoveDir)?;
        Ok((file.into(), reader?))
    }
}

/// The files by which a user namespace gets its users, and what is to be written to each.
type Maps = [(&'static CStr, String); 3];

/// What the child says at its end: an errno or 0, and two descriptors.
type Outcome = [i32; 3];

fn mount() -> Result<PrivateTmpfs, Errno> {
    let (from, to) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let (uid, gid) = (geteuid(), getegid());
    let maps = [
        (c"/proc/self/setgroups", "deny".to_owned()),
        (c"/proc/self/uid_map", format!("{uid} {uid} 1")),
        (c"/proc/self/gid_map", format!("{gid} {gid} 1")),
    ];
    // No signal at its end: only `await_child` waits for this child.
    let (flags, none) = (libc::CLONE_FILES as libc::c_ulong, 0 as libc::c_ulong);
    // SAFETY: without CLONE_VM and a stack this is fork(2), but for the shared table of descriptors. Other
    // threads may hold locks of the allocator and of the standard library at this moment, so the child only
    // makes system calls on memory that is ready, and ends by `_exit`.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    match i32::try_from(child) {
        Ok(0) => in_child(to.as_fd(), &maps),
        Ok(pid) if pid > 0 => await_child(Pid::from_raw(pid), from.into()),
        _ => Err(Errno::last()),
    }
}

fn await_child(child: Pid, mut from: File) -> Result<PrivateTmpfs, Errno> {
    while waitpid(child, Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
    let mut bytes = [0; size_of::<Outcome>()];
    // A child that was killed has said nothing.
    from.read_exact(&mut bytes).map_err(|_| Errno::ECHILD)?;
    let [errno, writable, read_only] = decode(bytes);
    if errno != 0 {
        return Err(Errno::from_raw(errno));
    }
    Ok(PrivateTmpfs {
        writable: own(writable),
        read_only: own(read_only),
        naming: Mutex::default(),
    })
}

fn decode(bytes: [u8; size_of::<Outcome>()]) -> Outcome {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|at| i32::from_ne_bytes(words[at]))
}

fn own(fd: i32) -> OwnedFd {
    // SAFETY: the child opened it in the table that it shared with this process, gave up ownership, and is
    // gone: it is open, and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The child: nothing here allocates, locks or panics.
fn in_child(to: BorrowedFd<'_>, maps: &Maps) -> ! {
    let outcome = match make_mounts(maps) {
        Ok((writable, read_only)) => [0, writable.into_raw_fd(), read_only.into_raw_fd()],
        Err(errno) => [errno as i32, -1, -1],
    };
    let mut bytes = [0; size_of::<Outcome>()];
    for (into, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(outcome) {
        *into = word.to_ne_bytes();
    }
    // An empty pipe has room for it. If the write fails all the same, the parent takes that for no mount.
    let _ = write(to, &bytes);
    // SAFETY: ends this process at once, without the handlers that belong to the parent.
    unsafe { libc::_exit(0) }
}

fn make_mounts(maps: &Maps) -> Result<(OwnedFd, OwnedFd), Errno> {
    // Root needs no user namespace, and may be denied one.
    if unshare(CloneFlags::CLONE_NEWNS).is_err() {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
        for (path, text) in maps {
            let file = open(*path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            write(file, text.as_bytes())?;
        }
    }
    mount_twice()
}

fn mount_twice() -> Result<(OwnedFd, OwnedFd), Errno> {
    // Otherwise the mount would appear in other namespaces too.
    let (alone, none) = (MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&CStr>);
    mount_at(none, c"/", none, alone, none)?;
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(raw)?;
    // No limits: the budget is the limit, and without others the kernel need not count.
    for (key, value) in [(c"size", c"0"), (c"nr_inodes", c"0"), (c"mode", c"0700")] {
        fsconfig_set_string(&context, key, value).map_err(raw)?;
    }
    // No huge pages, because pages are punched one by one. A kernel that does not know the option has none.
    let _ = fsconfig_set_string(&context, c"huge", c"never");
    fsconfig_create(&context).map_err(raw)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let writable = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(raw)?;
    // Before Linux 6.15 only a mount that is attached somewhere can be cloned.
    let this = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&writable, c"", AT_FDCWD, c"/", this).map_err(raw)?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let read_only = open_tree(&writable, c"", clone).map_err(raw)?;
    make_read_only(read_only.as_fd())?;
    // Descriptors of directories, because those of the mounts would keep the second mount in a namespace.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = |mount: OwnedFd| openat(mount, c".", flags, Mode::empty());
    Ok((directory(writable)?, directory(read_only)?))
}

fn make_read_only(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the descriptor is open, the path is an empty string, and the kernel reads exactly the given size of
    // `attributes`, which is all of it and lives to the end of the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(done).map(drop)
}

const fn raw(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    /// Root may always mount.
    fn tmpfs() -> Option<&'static PrivateTmpfs> {
        let tmpfs = PrivateTmpfs::get();
        assert!(tmpfs.is_ok() || !geteuid().is_root(), "{tmpfs:?}");
        tmpfs.ok()
    }

    #[test]
    fn file_is_written_by_its_maker_alone_whoever_opens_it_again() {
        let Some(tmpfs) = tmpfs() else { return };
        let (file, reader) = tmpfs.create("tmpfs-test").expect("a file");
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let to_write = File::options().write(true).open(&path);
        let error = to_write.expect_err("the mount is read-only");
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        file.write_all_at(b"frame", 0).expect("a page");
        let mut bytes = [0; 5];
        let seen = File::open(&path).and_then(|again| again.read_exact_at(&mut bytes, 0));
        assert_eq!((seen.is_ok(), &bytes), (true, b"frame"));
        assert_eq!(file.metadata().expect("fstat").nlink(), 0, "it has no name");
    }

    #[test]
    fn files_may_have_the_same_name() {
        let Some(tmpfs) = tmpfs() else { return };
        let files = [(); 2].map(|()| tmpfs.create("tmpfs-twin").expect("a file").0);
        let inode = |file: &File| file.metadata().expect("fstat").ino();
        assert_ne!(inode(&files[0]), inode(&files[1]));
    }
}
