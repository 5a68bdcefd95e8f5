//! Sets `cfg(loom)` for this package alone, so that its atomics are loom's. As a flag for all packages, it would
//! change others that know the word (tokio then has no sockets), and would build each of them a second time.

fn main() {
    println!("cargo::rustc-cfg=loom");
    println!("cargo::rerun-if-changed=build.rs");
}
