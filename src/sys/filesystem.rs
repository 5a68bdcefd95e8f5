//! What a directory's filesystem is and how much it has left.

use std::io;
use std::path::Path;

use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FUSE_SUPER_MAGIC, FsType,
    MSDOS_SUPER_MAGIC, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, SMB_SUPER_MAGIC, TMPFS_MAGIC,
    XFS_SUPER_MAGIC, statfs,
};
use nix::sys::statvfs::statvfs;

use crate::units::Bytes;

/// The names of the filesystems that swap files are usually put on.
const NAMES: [(FsType, &str); 10] = [
    (EXT4_SUPER_MAGIC, "ext2/3/4"),
    (XFS_SUPER_MAGIC, "xfs"),
    (BTRFS_SUPER_MAGIC, "btrfs"),
    (F2FS_SUPER_MAGIC, "f2fs"),
    (TMPFS_MAGIC, "tmpfs"),
    (OVERLAYFS_SUPER_MAGIC, "overlayfs"),
    (NFS_SUPER_MAGIC, "nfs"),
    (SMB_SUPER_MAGIC, "smb"),
    (FUSE_SUPER_MAGIC, "fuse"),
    (MSDOS_SUPER_MAGIC, "vfat"),
];

/// The filesystem of a directory, as it was when the kernel was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filesystem {
    /// Its usual name, or its magic number in hexadecimal where it is none of the usual ones.
    pub name: String,
    /// What this user may still write.
    pub available: Bytes,
    /// Whether files there live in memory, so that swapping to them frees none.
    pub in_memory: bool,
}

impl Filesystem {
    /// Asks about the filesystem that holds `dir`.
    ///
    /// # Errors
    /// What `statfs(2)` says.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let magic = statfs(dir)?.filesystem_type();
        let known = NAMES.iter().find(|(candidate, _)| *candidate == magic);
        // Only statvfs(3) says in which unit blocks are counted, where that is not the block size.
        let room = statvfs(dir)?;
        Ok(Self {
            name: known.map_or_else(|| format!("{:#x}", magic.0), |(_, name)| (*name).to_owned()),
            available: Bytes(room.blocks_available().saturating_mul(room.fragment_size())),
            in_memory: magic == TMPFS_MAGIC,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filesystem_of_proc_has_no_usual_name_and_no_room() {
        let proc = Filesystem::of(Path::new("/proc")).unwrap();
        assert_eq!((proc.name.as_str(), proc.available), ("0x9fa0", Bytes(0)));
    }

    #[test]
    fn filesystem_of_a_missing_directory_is_not_found() {
        let error = Filesystem::of(Path::new("/proc/none")).expect_err("it is not there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
