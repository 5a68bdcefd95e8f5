//! A guest's process, held by a pidfd so that its number cannot be taken over by another.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use memvisor_wire::{SeqPacket, wait_readable};
use nix::sys::socket::{UnixCredentials, getsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::units::Bytes;

/// The process at the other end of a socket.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    credentials: UnixCredentials,
    /// Opened before the guest is welcomed: from then on its process is closed to others of its user.
    files: io::Result<ProcFiles>,
}

/// What the kernel tells of a process to its owner.
#[derive(Debug)]
struct ProcFiles {
    clear_refs: File,
    smaps_rollup: File,
    pagemap: File,
    status: File,
    task: File,
}

/// More than the text of `smaps_rollup`, some 25 lines of less than 40 bytes, or of `status`, some 60.
const TEXT: usize = 4096;

impl Process {
    /// The peer of `socket`.
    ///
    /// # Errors
    /// What `getsockopt(2)` or `pidfd_open(2)` says: the process is gone already.
    pub fn peer(socket: &SeqPacket) -> io::Result<Self> {
        let credentials = socket.peer()?;
        // By the socket where the kernel can, since 6.5: by its number, another process may have taken its place.
        let pidfd = getsockopt(socket, sockopt::PeerPidfd).or_else(|_| {
            let pid = Pid::from_raw(credentials.pid()).ok_or(io::ErrorKind::NotFound)?;
            pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)
        })?;
        let process = Self {
            pidfd,
            // Opened now: the guest closes itself to others before it runs.
            files: ProcFiles::open(credentials.pid()),
            credentials,
        };
        // Its files were opened by its number, which cannot have been reused if it still lives.
        if process.wait(Duration::ZERO) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(process)
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.credentials.pid()
    }

    /// Clears the accessed bits of all its mapped pages.
    ///
    /// # Errors
    /// What the kernel says: the process is gone, belongs to another user, or `/proc` is not there.
    pub fn clear_accessed(&self) -> io::Result<()> {
        self.files()?.clear_refs.write_at(b"1", 0).map(drop)
    }

    /// How much of what it has mapped was accessed since [`clear_accessed`](Self::clear_accessed). The
    /// kernel walks its page tables for that.
    ///
    /// # Errors
    /// As there; `InvalidData` when the kernel does not tell.
    pub fn accessed(&self) -> io::Result<Bytes> {
        let rollup = read(&self.files()?.smaps_rollup)?;
        size(&rollup, "Referenced:").ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// What it takes beside files that it maps, such as its RAM: heap, stacks, and the page tables of all its mappings.
    ///
    /// # Errors
    /// As for [`accessed`](Self::accessed).
    pub fn memory(&self) -> io::Result<Bytes> {
        memory(&self.files()?.status)
    }

    /// How many threads it has.
    ///
    /// # Errors
    /// As for [`clear_accessed`](Self::clear_accessed).
    pub fn threads(&self) -> io::Result<u32> {
        // `task` has a directory, and so a link, for each thread, beside the two links of every directory.
        let links = self.files()?.task.metadata()?.nlink();
        Ok(u32::try_from(links.saturating_sub(2)).unwrap_or(u32::MAX))
    }

    fn files(&self) -> io::Result<&ProcFiles> {
        let opened = self.files.as_ref();
        opened.map_err(|error| io::Error::new(error.kind(), error.to_string()))
    }

    /// Its page map.
    ///
    /// # Errors
    /// As for [`clear_accessed`](Self::clear_accessed).
    pub(super) fn pagemap(&self) -> io::Result<File> {
        self.files()?.pagemap.try_clone()
    }

    /// Ends it by SIGKILL and waits at most `timeout` until it is gone; returns whether it is. It may be
    /// gone already.
    #[must_use]
    pub fn kill(&self, timeout: Duration) -> bool {
        // Ignored: the wait shows whether it worked.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.wait(timeout)
    }

    /// Waits at most `timeout` until it has ended; returns whether it has.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        wait_readable([self.pidfd.as_fd()], Some(timeout)).is_ok_and(|[gone]| gone)
    }
}

impl ProcFiles {
    fn open(pid: i32) -> io::Result<Self> {
        let path = |name| format!("/proc/{pid}/{name}");
        Ok(Self {
            clear_refs: File::options().write(true).open(path("clear_refs"))?,
            smaps_rollup: File::open(path("smaps_rollup"))?,
            pagemap: File::open(path("pagemap"))?,
            status: File::open(path("status"))?,
            task: File::open(path("task"))?,
        })
    }
}

/// What this process takes, as [`Process::memory`].
///
/// # Errors
/// As there.
pub fn own_memory() -> io::Result<Bytes> {
    memory(&File::open("/proc/self/status")?)
}

fn memory(status: &File) -> io::Result<Bytes> {
    let text = read(status)?;
    let parts = ["RssAnon:", "VmPTE:"].map(|name| size(&text, name));
    let [Some(own), Some(tables)] = parts else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    Ok(Bytes(own.0.saturating_add(tables.0)))
}

fn read(file: &File) -> io::Result<String> {
    let mut text = [0; TEXT];
    let len = file.read_at(&mut text, 0)?;
    Ok(String::from_utf8_lossy(&text[..len]).into_owned())
}

/// The size in the line of this name of a text of `/proc`.
fn size(text: &str, name: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kib.saturating_mul(1024)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_read_from_its_line_or_not_at_all() {
        let referenced = |text| size(text, "Referenced:");
        let rollup =
            "55d0-7ffe ---p 00000000 00:00 0  [rollup]\nRss:  900 kB\nReferenced:  764 kB\n";
        assert_eq!(referenced(rollup), Some(Bytes(764 << 10)));
        assert_eq!(referenced("Rss: 900 kB\n"), None);
        assert_eq!(referenced("Referenced: many kB\n"), None);
    }

    #[test]
    fn memory_of_this_process_grows_with_what_it_touches_and_not_with_files() {
        let before = own_memory().expect("a process may read its own");
        let memory = vec![1_u8; 32 << 20];
        let after = own_memory().expect("a process may read its own");
        // Other tests may give memory back meanwhile.
        assert!(after.0 >= before.0 + (16 << 20), "{before} then {after}");
        drop(memory);
    }

    #[test]
    fn threads_of_this_process_are_one_more_with_each() {
        let (socket, _other) = SeqPacket::pair().expect("a pair of sockets");
        let this = Process::peer(&socket).expect("this process");
        let (wait, end) = std::sync::mpsc::channel::<()>();
        let more = std::thread::spawn(move || end.recv());
        // Other tests have threads too.
        assert!(this.threads().expect("/proc is there") >= 2);
        drop(wait);
        let _ = more.join();
    }

    #[test]
    fn accessed_of_this_process_counts_what_it_touches_again() {
        let (socket, _other) = SeqPacket::pair().expect("a pair of sockets");
        let this = Process::peer(&socket).expect("this process");
        let memory = vec![1_u8; 32 << 20];
        this.clear_accessed().expect("a process may clear its own");
        let before = this.accessed().expect("a process may read its own");
        let sum: u64 = memory
            .iter()
            .step_by(4096)
            .map(|byte| u64::from(*byte))
            .sum();
        let after = this.accessed().expect("a process may read its own");
        assert_eq!(sum, 32 << 8);
        assert!(after.0 >= before.0 + (24 << 20), "{before} then {after}");
    }
}
