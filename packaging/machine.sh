# shellcheck shell=bash
# For scripts that try something out in a Debian of its own: a directory becomes the root of a machine made of namespaces.

# Makes a directory the root of this process and gives it what a machine has: /proc, /sys and /dev. A chroot would not
# do, for in one the kernel refuses user namespaces. It takes `unshare -m -p --fork`, as root.
enter_root() {
    mount --make-rprivate /
    mount --bind "$1" "$1"
    cd "$1" || return
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount -t tmpfs -o mode=0755 tmpfs dev
    local node
    for node in null zero full random urandom tty; do
        touch "dev/$node"
        mount --bind "/dev/$node" "dev/$node"
    done
    ln -s /proc/self/fd dev/fd
    mkdir dev/shm dev/pts .old
    mount -t tmpfs -o mode=1777 tmpfs dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    pivot_root . .old
    umount -l /.old
    rmdir /.old
}
