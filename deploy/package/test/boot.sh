#!/usr/bin/env bash
# Starts systemd as the init of a root directory, in namespaces and a control group of its own, and stays until it is
# killed; everything in it ends with this process.
#
#   boot.sh ROOT CONTROL-GROUP
set -euo pipefail
root="$1" group="$2"

if [ "${3:-}" != inside ]; then
  echo $$ >"$group/cgroup.procs"
  exec unshare --mount --pid --net --uts --ipc --cgroup --fork --kill-child "$0" "$root" "$group" inside
fi

mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ip link set lo up
hostname package-test
cd "$root"
pivot_root . mnt
exec chroot . /bin/sh -c 'umount -l /mnt && container=other exec /lib/systemd/systemd --log-level=warning'
