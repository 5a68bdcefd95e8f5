//! RAM of a guest without a host: private memory of its process, which the Linux kernel merges, pages out
//! and brings back. Benchmarks compare memvisor with it.

use std::io;
use std::num::NonZeroUsize;

use memvisor_wire::PAGE_SIZE;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, madvise, mmap_anonymous};

use super::linear::Linear;
use super::ram::READ_WRITE;

/// Maps `pages` pages of private anonymous memory for the life of this process. They read as zeroes. If they are
/// `mergeable`, KSM may merge them with equal pages, provided that the kernel has KSM and somebody has started it.
///
/// # Errors
/// What `mmap(2)` says: the guest is larger than the address space, or than what the kernel promises to a process.
pub fn map_bare(pages: u32, mergeable: bool) -> io::Result<Linear> {
    let len = NonZeroUsize::new(pages as usize * PAGE_SIZE).ok_or(Errno::EINVAL)?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: the kernel chooses free address space, so no existing mapping is touched.
    let base = unsafe { mmap_anonymous(None, len, READ_WRITE, flags) }?;
    if mergeable {
        // SAFETY: the range is exactly the mapping made above; the advice changes no byte of it. A
        // kernel without KSM refuses, which leaves the memory as it is.
        let _ = unsafe { madvise(base, len.get(), MmapAdvise::MADV_MERGEABLE) };
    }
    // SAFETY: just mapped, that long, and never unmapped; every access is allowed.
    Ok(unsafe { Linear::at(base.addr().get(), pages) })
}

#[cfg(test)]
mod tests {
    use memvisor_wire::{Gfn, GfnRun};

    use super::*;
    use crate::shim::Memory;

    #[test]
    fn page_keeps_what_is_written_and_its_neighbours_stay_zero() {
        let ram = map_bare(3, true).expect("memory");
        assert_eq!(ram.pages(), 3);
        ram.write(Gfn(1), PAGE_SIZE - 4, &[1, 2, 3, 4]);
        let mut page = [9; PAGE_SIZE];
        ram.read(Gfn(1), 0, &mut page);
        assert_eq!(page[PAGE_SIZE - 5..], [0, 1, 2, 3, 4]);
        for gfn in [Gfn(0), Gfn(2)] {
            ram.read(gfn, 0, &mut page);
            assert_eq!(page, [0; PAGE_SIZE]);
        }
        assert_eq!(ram.attach(GfnRun::single(Gfn(0)), Gfn(1)), 0);
    }

    #[test]
    fn ram_is_mergeable_when_that_is_asked_for_and_not_otherwise() {
        let has_flag = |ram: &Linear| {
            let base = ram.address(Gfn(0));
            let maps = std::fs::read_to_string("/proc/self/smaps").expect("proc");
            let contains_ram = |line: &&str| {
                let range = line
                    .split(' ')
                    .next()
                    .and_then(|range| range.split_once('-'));
                let number = |text| usize::from_str_radix(text, 16).ok();
                range.is_some_and(|(start, end)| {
                    number(start).is_some_and(|start| start <= base)
                        && number(end).is_some_and(|end| base < end)
                })
            };
            let of_ram = maps.lines().skip_while(|line| !contains_ram(line));
            let mut flags = of_ram.filter(|line| line.starts_with("VmFlags:"));
            let flags = flags.next().expect("the mapping is there");
            flags.split_whitespace().any(|flag| flag == "mg")
        };
        let plain = map_bare(2, false).expect("memory");
        let asked = map_bare(2, true).expect("memory");
        assert!(!has_flag(&plain));
        let has_ksm = std::path::Path::new("/sys/kernel/mm/ksm").exists();
        assert_eq!(has_flag(&asked), has_ksm);
    }

    #[test]
    #[should_panic(expected = "leave the page")]
    fn access_beyond_a_page_is_refused() {
        let ram = map_bare(2, false).expect("memory");
        ram.write(Gfn(0), PAGE_SIZE - 1, &[1, 2]);
    }
}
