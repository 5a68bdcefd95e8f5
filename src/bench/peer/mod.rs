//! What memvisor is compared with.

pub(crate) mod cgroup;
pub(crate) mod ksm;
pub(crate) mod lz4;
pub(crate) mod signal;
pub(crate) mod swap_file;
pub(crate) mod uffd;
pub(crate) mod zram;

use self::ksm::Ksm;
use self::zram::Zram;
use super::report::Report;
use super::{BenchError, Setup, Vs};
use crate::units::Bytes;

/// The peers that were asked for and can be used here.
#[derive(Debug)]
pub(crate) struct Peers<'a> {
    /// The kernel's merging.
    pub(crate) ksm: Option<Ksm<'a>>,
    /// The kernel's compressed swap.
    pub(crate) zram: Option<Zram<'a>>,
}

impl<'a> Peers<'a> {
    /// Prepares the peers that were asked for. A remark says why one cannot be used here.
    pub(crate) fn open(setup: &'a Setup<'a>, report: &Report) -> Result<Self, BenchError> {
        let missing = |why: String| report.remark(format!("not compared with {why}"));
        let mut ksm = None;
        if setup.wants(Vs::Ksm) {
            match Ksm::open(setup.guard, ksm::Pace::Unthrottled)? {
                Ok(ready) => ksm = Some(ready),
                Err(why) => missing(format!("ksm: {why}")),
            }
        }
        let mut zram = None;
        if setup.wants(Vs::Zram) {
            // Twice the memory, so that there is room even for pages that do not compress.
            let size = Bytes(setup.options.size.0.max(1 << 20) * 2);
            match Zram::open(setup.guard, size)? {
                Ok(ready) => zram = Some(ready),
                Err(why) => missing(format!("zram: {why}")),
            }
        }
        if setup.wants(Vs::Lz4) && !lz4::BUILT_IN {
            let how = "build memvisor with the feature `c-lz4`, which takes a C compiler";
            missing(format!("lz4: it is not built in; {how}"));
        }
        Ok(Self { ksm, zram })
    }
}
