//! The cast of the demo: which guest runs what.

use std::fs;
use std::path::{Path, PathBuf};

use super::DemoError;
use crate::launch::content::write_file;
use crate::units::Bytes;

/// The number of files for the guests that read files.
const FILES: u64 = 16;

/// One guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Role {
    /// Its name.
    pub(crate) name: String,
    /// What it runs, as text.
    pub(crate) workload: String,
}

/// The guests of a demo in `dir`, whose files [`write_files`] has written.
///
/// Half of them load images or files, and the images are equal, like VMs of one template: sharing lives on
/// that. Sizes are fractions of a guest, chosen so that the default six guests want more than the host has
/// left after sharing, which brings the balloon, compression and swap into play.
pub(crate) fn roles(guests: u32, guest_memory: Bytes, dir: &Path) -> Vec<Role> {
    let part = |sixteenths: u64| Bytes(guest_memory.pages().0 * sixteenths / 16 * 4096);
    // Copied and not attached, as by a guest that does not know its host. So the host must find what can be shared.
    let image = format!("image:{},attach=no", image_path(dir).display());
    let workloads = [
        ("image", image.clone()),
        ("image", image),
        ("files", format!("files:{}", files_dir(dir).display())),
        ("kv", format!("kv,size={},rate=32M", part(10).0)),
        (
            "toucher",
            format!("toucher,size={},active={},rate=64M", part(12).0, part(2).0),
        ),
        ("idle", format!("idle,size={},content=zero", part(4).0)),
    ];
    (1..=guests)
        .zip(workloads.iter().cycle())
        .map(|(number, (kind, workload))| Role {
            name: format!("{kind}-{number}"),
            workload: workload.clone(),
        })
        .collect()
}

/// Writes the image, of 3/8 of the size of a guest, and the files, together 1/4 of it, unless `may_go_on` fails.
pub(crate) fn write_files(
    guest_memory: Bytes,
    dir: &Path,
    mut may_go_on: impl FnMut() -> Result<(), DemoError>,
) -> Result<(), DemoError> {
    if dir.to_string_lossy().contains(',') {
        // The path of a workload ends at the first comma.
        let source = std::io::Error::other("TMPDIR must not contain a comma");
        return Err(DemoError::io("name files for the guests")(source));
    }
    let pages = guest_memory.pages().0;
    let image = Bytes(pages * 3 / 8 * 4096);
    let mut write = |path: PathBuf, size, seed| {
        write_file::<Stop>(&path, size, seed, || may_go_on().map_err(Stop))
    };
    write(image_path(dir), image, 0)?;
    fs::create_dir(files_dir(dir)).map_err(DemoError::io("make a directory"))?;
    for number in 1..=FILES {
        let path = files_dir(dir).join(format!("file-{number:02}"));
        write(path, Bytes(pages / 4 / FILES * 4096), number)?;
    }
    Ok(())
}

fn image_path(dir: &Path) -> PathBuf {
    dir.join("boot.img")
}

fn files_dir(dir: &Path) -> PathBuf {
    dir.join("files")
}

/// Why writing a file ended early.
struct Stop(DemoError);

impl From<std::io::Error> for Stop {
    fn from(source: std::io::Error) -> Self {
        Self(DemoError::io("write files for the guests")(source))
    }
}

impl From<Stop> for DemoError {
    fn from(stop: Stop) -> Self {
        stop.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_of_six_guests_are_all_kinds_with_two_of_one_image() {
        let roles = roles(6, Bytes::from_mib(256), Path::new("/d"));
        let names: Vec<_> = roles.iter().map(|role| role.name.as_str()).collect();
        let all = [
            "image-1",
            "image-2",
            "files-3",
            "kv-4",
            "toucher-5",
            "idle-6",
        ];
        assert_eq!(names, all);
        assert_eq!(roles[0].workload, "image:/d/boot.img,attach=no");
        assert_eq!(roles[0].workload, roles[1].workload);
        assert_eq!(roles[3].workload, "kv,size=167772160,rate=32M");
    }

    #[test]
    fn files_are_written_in_full_and_an_interruption_is_passed_on() {
        let dir = tempfile::tempdir().expect("tempdir");
        let size = Bytes::from_mib(16);
        write_files(size, dir.path(), || Ok(())).expect("written");
        let length = |path: PathBuf| fs::metadata(path).expect("there").len();
        assert_eq!(length(image_path(dir.path())), 6 << 20);
        assert_eq!(length(files_dir(dir.path()).join("file-16")), 256 << 10);

        let dir = tempfile::tempdir().expect("tempdir");
        let stopped = write_files(size, dir.path(), || Err(DemoError::Interrupted));
        assert!(matches!(stopped, Err(DemoError::Interrupted)));
    }
}
