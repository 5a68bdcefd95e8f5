#!/usr/bin/env bash
# Builds the Debian package and prints its path. It takes cargo-deb: `cargo install cargo-deb`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build --release --bin memvisor >&2
# What the package has beside the executable is made by it.
made=target/packaging
rm -rf "$made"
target/release/memvisor man "$made/man"
target/release/memvisor completions bash >"$made/memvisor.bash"
target/release/memvisor completions zsh >"$made/_memvisor"
target/release/memvisor completions fish >"$made/memvisor.fish"
cargo deb --no-build --locked --output "$made/" "$@"
