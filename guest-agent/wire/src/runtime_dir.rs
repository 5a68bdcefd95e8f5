//! Where host and guests of a user find each other.

use std::env;
use std::path::PathBuf;

use nix::unistd::geteuid;

/// The directory of the host's sockets: the `chosen` one, or that of a host of this user which was not told another.
#[must_use]
pub fn runtime_dir(chosen: Option<PathBuf>) -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    chosen
        .or_else(|| set("MEMVISOR_RUNTIME_DIR").map(PathBuf::from))
        .or_else(|| set("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("memvisor")))
        .unwrap_or_else(|| PathBuf::from(format!("/tmp/memvisor-{}", geteuid())))
}
