#!/usr/bin/env bash
# Runs the README's two commands, the demo and the tests, in a Debian that has been given a shell and git and nothing
# else: once as root, and in another such Debian as an ordinary user who has no sudo.
#
#     packaging/test-bare.sh [SUITE [ARGUMENT...]]
#
# SUITE is trixie unless it is said. ARGUMENTs are added to the command of the tests, such as `--test cli` for a part of
# them; all of them, built twice, take an hour. It takes root, mmdebstrap and the network of this machine. Nothing
# outside of a scratch directory is touched.
set -euo pipefail
suite=${1:-trixie}
shift $(($# ? 1 : 0))
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
# No command may take longer, in seconds.
limit=3600
trap 'rm -rf --one-file-system "$scratch"' EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# The code block of the README that follows the given mark.
readme_block() {
    awk -v mark="<!-- ci: $1 -->" '
        $0 == mark { found = 1; next }
        found && /^```/ { if (inside) exit; inside = 1; next }
        inside' README.md
}

# A new machine with the project in it.
new_machine() {
    root=$scratch/$1
    cp -a "$scratch/base" "$root"
    useradd --root "$root" --create-home --home-dir /srv/ada --shell /bin/sh ada
    git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- |
        tar --extract --directory "$root/srv" --one-top-level=memvisor
    chroot "$root" chown -R "$1:" /srv/memvisor
}

# Runs a command line on the new machine as somebody, in the project's directory.
as() {
    local user=$1 home
    home=$(chroot "$root" getent passwd "$user" | cut -d : -f 6)
    # shellcheck disable=SC2016 # The inner shell expands it.
    timeout --foreground --kill-after=10 "$limit" unshare -m -p -i -u --fork --kill-child bash -ec '
        . packaging/machine.sh
        enter_root "$1"
        cd /srv/memvisor
        exec setpriv --reuid "$2" --regid "$2" --init-groups env -i \
            HOME="$3" USER="$2" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c "$4" 2>&1' \
        -- "$root" "$user" "$home" "$2" </dev/null
}

# The README's two commands, which have to end well. The first one sets the machine up; the second finds all it needs.
readme_commands() {
    echo "== as $1: $demo"
    as "$1" "$demo" | tee "$scratch/demo"
    grep -qE '^[1-9][0-9]* pages verified, 0 corrupt$' "$scratch/demo" || fail "the demo has not verified its pages"
    grep -q '^setup: installing Rust' "$scratch/demo" || fail "Rust was there before: this machine was not bare"
    echo "== as $1: $tests"
    as "$1" "$tests" | tee "$scratch/tests"
    if grep '^setup: ' "$scratch/tests"; then fail "the first command has not set all up"; fi
}

demo=$(readme_block demo)
tests=$(readme_block test)
[[ -n $demo && -n $tests ]] || fail "the README has no code blocks marked \`ci: demo\` and \`ci: test\`"
tests+=" $*"
mmdebstrap --quiet --variant=minbase --include=git "$suite" "$scratch/base"
for command in cc cargo rustup curl sudo; do
    if chroot "$scratch/base" sh -c "command -v $command"; then fail "a bare Debian has no $command"; fi
done
# The network of this machine, and whom it trusts besides, such as a proxy.
cp --remove-destination /etc/resolv.conf "$scratch/base/etc/"
mkdir -p "$scratch/base/usr/local/share/ca-certificates"
cp /usr/local/share/ca-certificates/*.crt "$scratch/base/usr/local/share/ca-certificates/" 2>/dev/null || true

new_machine root
readme_commands root
rm -rf --one-file-system "$root"

new_machine ada
echo "== as ada, before root has installed what only root may: $demo"
if as ada "$demo" | tee "$scratch/refused"; then fail "ada could do without root"; fi
line=$(sed -n 's/^ \+\(apt-get .*\)/\1/p' "$scratch/refused")
[[ -n $line ]] || fail "ada is not told what root has to do"
echo "== as root: $line"
as root "$line" >"$scratch/installed" || fail "$(cat "$scratch/installed")"
readme_commands ada
echo "the README's two commands set up a bare Debian $suite, as root and as an ordinary user"
