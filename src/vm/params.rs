//! What a VM is powered on with and keeps for life, checked. Its settings, which may change, are kept elsewhere.

use memvisor_wire::claims::words;
use memvisor_wire::memory::Hello;
use memvisor_wire::vm_name::{NameError, check_vm_name};
use thiserror::Error;

use crate::units::{Bytes, PAGE_SIZE, Pages};

/// The largest guest, a TiB. Its RAM must fit into the guest's address space and into the daemon's, which maps
/// the RAM of all guests.
pub const MAX_PAGES: u32 = 1 << 28;

/// What one VM is for as long as it lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmParams {
    /// Unique on its host.
    pub name: String,
    /// Configured size.
    pub pages: u32,
    /// What it runs, for display.
    pub workload: String,
    /// Whether it serves some of its faults itself.
    pub inline: bool,
    /// Whether some of its swapped pages may be in a host cache.
    pub cached: bool,
}

/// Why a VM is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParamsError {
    /// The name cannot be that of a VM.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The VM has no memory, or more than memvisor can map.
    #[error("{0} of memory are not allowed: a guest has from 4.0 KiB to {max}", max = Bytes(u64::from(MAX_PAGES) * PAGE_SIZE as u64))]
    Size(Bytes),
}

impl VmParams {
    /// Checks what a shim asks for. Whether its pages may be in a host cache is for the host to say.
    ///
    /// # Errors
    /// [`ParamsError`] names the value and what is allowed.
    pub fn check(hello: &Hello) -> Result<Self, ParamsError> {
        let size = pages(hello.pages);
        if hello.pages == 0 || hello.pages > MAX_PAGES {
            return Err(ParamsError::Size(size));
        }
        check_vm_name(&hello.name)?;
        Ok(Self {
            name: hello.name.clone(),
            pages: hello.pages,
            workload: hello.workload.clone(),
            inline: hello.inline,
            cached: false,
        })
    }

    /// The daemon's own memory for this VM, which is charged to the budget: for each page 8 bytes of page table and
    /// 8 for the digest of a swap slot, 20 for a slot of the host cache if there is one, 64 KiB of history, and the claim
    /// table.
    #[must_use]
    pub const fn metadata(&self) -> Pages {
        let claims = if self.inline {
            words(self.pages) * 4
        } else {
            0
        };
        let each = if self.cached { 36 } else { 16 };
        Bytes((self.pages as u64) * each + claims + (64 << 10) + PAGE_SIZE as u64 - 1).pages()
    }
}

fn pages(count: u32) -> Bytes {
    Pages(u64::from(count)).bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            name: "vm-1.a".to_owned(),
            pages: 100,
            uffd: true,
            reservation: 10,
            limit: 50,
            shares: 1000,
            balloon_max: u32::MAX,
            sharing: true,
            salt: None,
            workload: String::new(),
            inline: false,
            resource_pool: String::new(),
        }
    }

    #[test]
    fn good_parameters_pass() {
        assert_eq!(
            VmParams::check(&hello()).map(|params| params.pages),
            Ok(100)
        );
    }

    #[test]
    fn bad_parameters_are_refused_and_named() {
        let bad = |change: fn(&mut Hello)| {
            let mut hello = hello();
            change(&mut hello);
            VmParams::check(&hello).expect_err("bad").to_string()
        };
        assert!(bad(|h| h.name = "../x".to_owned()).contains("`../x`"));
        assert!(bad(|h| h.name = String::new()).contains("``"));
        assert!(bad(|h| h.name = "a\nb".to_owned()).contains("`a\\nb`"));
        assert!(bad(|h| h.pages = 0).contains("0 B of memory"));
        assert!(bad(|h| h.pages = u32::MAX).contains("16384.00 GiB of memory"));
    }
}
