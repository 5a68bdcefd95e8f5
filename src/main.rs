//! The `memvisor` executable.

use std::process::ExitCode;

fn main() -> ExitCode {
    memvisor::cli::main()
}
