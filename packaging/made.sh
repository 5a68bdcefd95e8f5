#!/usr/bin/env bash
# Writes what a package has beside the executable and is made by it, manual pages and completions, into a directory.
#
#     packaging/made.sh EXECUTABLE DIRECTORY
set -euo pipefail
executable=${1:?usage: packaging/made.sh EXECUTABLE DIRECTORY}
made=${2:?usage: packaging/made.sh EXECUTABLE DIRECTORY}
rm -rf "$made"
"$executable" man "$made/man"
"$executable" completions bash >"$made/memvisor.bash"
"$executable" completions zsh >"$made/_memvisor"
"$executable" completions fish >"$made/memvisor.fish"
