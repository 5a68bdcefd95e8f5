#!/usr/bin/env bash
# Runs an image that packaging/Containerfile has built, without any privilege: a host in one container and guests in others,
# with the profile of system calls that podman has and with packaging/seccomp.json; and looks at the engine, at every
# byte that the guests read, at metrics and health.
#
#     packaging/test-image.sh [IMAGE]
#
# It takes podman. Where its registry cannot be reached the image can be built on another base, such as one that
# `debootstrap` and `podman import` make: `podman build --build-arg BASE=...`.
set -euo pipefail
image=${1:-memvisor}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=memvisor-test-$$
containers=("$name" "$name-a" "$name-b")

cleanup() {
    local container
    for container in "${containers[@]}"; do
        if podman container exists "$container"; then podman rm --force --volumes "$container" >/dev/null; fi
    done
    if podman volume exists "$name"; then podman volume rm "$name" >/dev/null; fi
}
trap cleanup EXIT

fail() {
    echo "FAILED: $*" >&2
    podman logs "$name" >&2 || true
    exit 1
}

# Starts a container of the image as the comment in the Containerfile says. podman's own health checks take systemd, so
# here they are asked for by hand; podman's limits are more than some machines allow.
start() {
    local container=$1
    shift
    podman run --detach --name "$container" --volume "$name:/run/memvisor" --network none --no-healthcheck \
        --cap-drop all --security-opt no-new-privileges --read-only \
        --ulimit nofile=4096:4096 --ulimit nproc=4096:4096 "$@" >/dev/null
}

# Waits at most 30 s until a command succeeds.
eventually() {
    for _ in {1..300}; do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    fail "not within 30 s: $*"
}

inside() { podman exec "$name" "$@"; }
# As the image's own health check does.
# shellcheck disable=SC2016 # The inner shell expands it.
page() { inside bash -c 'exec 3<>/dev/tcp/127.0.0.1/9464 && printf "GET %s HTTP/1.0\r\n\r\n" "$1" >&3 && cat <&3' - "$1"; }
is_healthy() { page /healthz | grep -q '^ok$'; }

# An engine, and what podman is told for it.
check() {
    local engine=$1 guest
    shift
    start "$name" "$@" "$image"
    eventually is_healthy
    podman logs "$name" 2>&1 | grep -E "^engine +$engine" || fail "the engine is not $engine"
    podman logs "$name" 2>&1 | grep -E '^guests are isolated'
    page /metrics | grep -q "memvisor_host_info{.*engine=\"$engine\"" || fail "no metrics of $engine"
    # Together they want more than the budget.
    for guest in a b; do
        start "$name-$guest" "$@" "$image" guest --name "$guest" --memory 512M \
            --workload kv,size=400M,rate=32M,threads=2 --duration 8s
    done
    for guest in a b; do
        [[ $(podman wait "$name-$guest") == 0 ]] || fail "$guest: $(podman logs "$name-$guest" 2>&1)"
        podman logs "$name-$guest" 2>&1 | grep -E '[1-9][0-9]* pages verified, 0 corrupt' || fail "$guest has not verified"
    done
    podman stop "$name" >/dev/null
    [[ $(podman inspect "$name" --format '{{.State.ExitCode}}') == 0 ]] || fail "the host did not end well"
    cleanup
}

check mprotect
check uffd --security-opt seccomp=packaging/seccomp.json
echo "the image runs in both engines without any privilege"
