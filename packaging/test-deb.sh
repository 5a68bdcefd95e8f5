#!/usr/bin/env bash
# Installs a package that packaging/deb.sh has built into a Debian of its own, starts systemd there, and looks whether
# the service starts, serves guests in both engines, is restarted when it hangs, reloads, upgrades and goes.
# It takes root, mmdebstrap and Debian's packages; nothing outside of a scratch directory and a cgroup is touched.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/machine.sh"
deb=$(realpath "${1:?usage: packaging/test-deb.sh PACKAGE.deb}")
scratch=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
root=$scratch/root
cgroups=$scratch/cgroups
group=$cgroups/memvisor-deb.$$
machine=

cleanup() {
    # The first process of its namespaces, with which all others end, and their mounts.
    # SIGKILL, because unshare ignores SIGTERM while it waits.
    if [[ -n $machine ]]; then kill -KILL "$machine" 2>/dev/null && wait "$machine" 2>/dev/null || true; fi
    for _ in {1..50}; do
        if find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; then break; fi
        sleep 0.1
    done
    if mountpoint -q "$cgroups"; then umount "$cgroups"; fi
    rm -rf --one-file-system "$scratch"
}
trap cleanup EXIT

fail() {
    echo "FAILED: $*" >&2
    if [[ -n $machine ]]; then inside journalctl --no-pager -n 60 -u memvisor >&2 || true; fi
    exit 1
}

# Waits at most 60 s until a command succeeds.
eventually() {
    for _ in {1..600}; do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    fail "not within 60 s: $*"
}

inside() { nsenter -t "$(pgrep -P "$machine")" -m -p -u -i -C -r -w "$@"; }
as_user() { inside setpriv --reuid memvisor --regid memvisor --clear-groups env MEMVISOR_RUNTIME_DIR=/run/memvisor "$@"; }
serves() { inside systemctl is-active memvisor && as_user memvisor vm ls; }
main_pid() { inside systemctl show -P MainPID memvisor; }

# The first process in the namespaces, which becomes systemd.
boot() {
    enter_root "$root"
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs tmpfs run
    mount -t tmpfs tmpfs tmp
    exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /sbin/init
}

start_machine() {
    mkdir "$cgroups"
    mount -t cgroup2 cgroup2 "$cgroups"
    mkdir "$group"
    export -f boot enter_root
    export root
    (
        echo "$BASHPID" >"$group/cgroup.procs"
        exec unshare -m -p -i -u -C --fork --kill-child setsid bash -ec boot </dev/null
    ) &
    machine=$!
    eventually serves
}

# A guest that verifies each byte it reads, in the engine that is given.
check_engine() {
    printf '[host]\nmemory = "64M"\nengine = "%s"\nswap-dir = "/var/lib/memvisor"\n' "$1" >"$root/etc/memvisor/host.toml"
    inside systemctl restart memvisor
    serves >/dev/null || fail "$1: started, but does not serve"
    as_user memvisor guest --name a --memory 96M --workload kv,size=80M,threads=2 --duration 4s
    inside journalctl --no-pager -b -u memvisor | grep -E "guests are isolated +yes" || fail "$1: guests are not isolated"
}

check_watchdog() {
    local before
    before=$(main_pid)
    inside sh -c "kill -STOP $before"
    restarted() { [[ $(main_pid) != 0 && $(main_pid) != "$before" ]] && serves; }
    eventually restarted
    inside journalctl --no-pager -b -u memvisor | grep -i "watchdog timeout"
}

check_reload() {
    printf '[settings]\nMem.IdleTax = 50\n' >>"$root/etc/memvisor/host.toml"
    inside systemctl reload memvisor
    as_user memvisor get Mem.IdleTax --json | grep -E '"value": ?50\b' || fail "Mem.IdleTax is not 50"
}

check_upgrade() {
    local before
    before=$(main_pid)
    dpkg-deb -R "$deb" "$scratch/next"
    sed -i 's/^Version: .*/&.1/' "$scratch/next/DEBIAN/control"
    dpkg-deb --root-owner-group -Zgzip -z1 -b "$scratch/next" "$root/srv/next.deb" >/dev/null
    inside dpkg --force-confold -i /srv/next.deb
    serves >/dev/null || fail "does not serve after the upgrade"
    [[ $(main_pid) != "$before" ]] || fail "the old executable runs on"
    as_user memvisor get Mem.IdleTax --json | grep -E '"value": ?50\b' || fail "the configuration file is another"
}

check_removal() {
    inside dpkg -r memvisor
    if inside systemctl is-active memvisor; then fail "runs on after its removal"; fi
    [[ -e $root/etc/memvisor/host.toml ]] || fail "its configuration went with its removal"
    inside dpkg -P memvisor
    local left
    left=$(inside find /etc /usr /var/lib /run -xdev -name '*memvisor*')
    [[ -z $left ]] || fail "left behind: $left"
}

mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv,dbus bookworm "$root"
cp "$deb" "$root/srv/memvisor.deb"
chroot "$root" dpkg -i /srv/memvisor.deb
for file in usr/bin/memvisor usr/share/man/man1/memvisor-host.1.gz usr/share/bash-completion/completions/memvisor; do
    [[ -s $root/$file ]] || fail "no $file"
done
start_machine
check_engine uffd
check_engine mprotect
check_watchdog
check_reload
check_upgrade
check_removal
echo "the package installs, starts, restarts, reloads, upgrades and goes"
