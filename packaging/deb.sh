#!/usr/bin/env bash
# Builds the Debian package and prints its path. It takes cargo-deb: `cargo install cargo-deb`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build --release --bin memvisor >&2
made=target/packaging
packaging/made.sh target/release/memvisor "$made"
cargo deb --no-build --locked --output "$made/" "$@"
