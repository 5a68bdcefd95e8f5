//! The `memvisor` executable.
fn main() {}
