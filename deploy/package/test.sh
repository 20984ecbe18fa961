#!/usr/bin/env bash
# Makes the packages of a binary, twice, and installs, uses and removes each: the Debian package in a root of its own
# (Debian's essential packages, kept in the user's cache), with systemd as its init unless --quick; the wheel in
# a fresh environment; the tarball below /usr/local. Nothing of the machine changes, and networks are apart.
#
#   [BINARY=PROGRAM] deploy/package/test.sh [--quick]
#
# Without a binary it takes that of `make build`. It ends with 75 when the machine cannot do it: without root,
# namespaces, or a registry of Debian's packages.
set -euo pipefail
cd "$(dirname "$0")"
. ../../tools/env.sh
. ../tools.sh

quick=no
case "${1:-}" in
  '') ;;
  --quick) quick=yes ;;
  *) sed -n 's/^#   \(.*deploy.*\)/usage: \1/p' "$0" >&2 && exit 2 ;;
esac
binary="$(realpath "${BINARY:-$CARGO_TARGET_DIR/release/aquifer}")"
[ -x "$binary" ] || { echo "there is no $binary: make build, or BINARY=PROGRAM" >&2; exit 2; }

cannot() {
  echo "packages: not checked, because $1" >&2
  exit 75
}
[ "$(id -u)" = 0 ] || cannot "a root of its own needs root"
unshare --mount --pid --net --fork true 2>/dev/null || cannot "there are no namespaces here"
command -v dpkg-deb >/dev/null 2>&1 || cannot "dpkg-deb is missing"
need_debian_root

work="$(mktemp -d)"
init=
stop() {
  trap - EXIT INT TERM
  if [ -n "$init" ]; then
    kill -KILL "$init" 2>/dev/null || true
    wait "$init" 2>/dev/null || true
  fi
  # Control groups are empty a moment after the last process has ended.
  if [ -n "${group:-}" ]; then
    for _ in $(seq 50); do
      find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
      [ -d "$group" ] || break
      sleep 0.1
    done
  fi
  rm -rf --one-file-system "$work"
}
trap stop EXIT
trap 'exit 1' INT TERM
step() { echo "== packages, $SECONDS s: $*"; }

step "two builds of the packages"
fast=(--fast)
[ "$quick" = yes ] || fast=()
export SOURCE_DATE_EPOCH=1700000000
mkdir "$work/packages"
./build.sh "${fast[@]}" "$binary" "$work/packages" >/dev/null
(umask 077 && cd / && "$OLDPWD/build.sh" "${fast[@]}" "$binary" "$work/again" >/dev/null)
diff "$work/packages/SHA256SUMS" "$work/again/SHA256SUMS" || { echo "FAILED: two builds differ" >&2 && exit 1; }
(cd "$work/packages" && sha256sum --quiet --check SHA256SUMS)
python3 check_config.py "$binary" etc
python3 check_files.py "$binary" "$work/packages"

# A root with the packages and scripts of the test in /packages.
new_root() {
  mkdir -p "$1"
  tar -C "$1" -xf "$debian_root"
  mkdir -p "$1/packages" "$1/mnt"
  echo "127.0.0.1 localhost" >"$1/etc/hosts"
  cp -r "$work/packages/." test/. "$1/packages/"
}

step "the Debian package and the tarball, without an init"
new_root "$work/plain"
# shellcheck disable=SC2016
unshare --mount --pid --net --fork --kill-child sh -c '
  ip link set lo up && mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" &&
    exec chroot "$1" env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 /packages/root.sh' sh "$work/plain"
if command -v systemd-analyze >/dev/null 2>&1; then
  dpkg-deb --extract "$work"/packages/aquifer_*.deb "$work/plain"
  systemd-analyze verify --man=no --root="$work/plain" "$work"/plain/usr/lib/systemd/system/aquifer-*.service
  for unit in systemd/*.service; do
    systemd-analyze security --offline=true --threshold=20 --no-pager "$unit" >"$work/security" ||
      { cat "$work/security" >&2 && exit 1; }
  done
  echo "units: verified"
else
  echo "units: not verified, because systemd-analyze is missing" >&2
fi
rm -rf "$work/plain"

step "the wheel"
test/wheel.sh "$work/packages" "$work/wheel"

# What only an init can show.
services() {
  local cgroups
  cgroups="$(findmnt --noheadings --output TARGET --types cgroup2 | head -n 1)"
  if [ -z "$cgroups" ] || ! mkdir "$cgroups/aquifer-package-test" 2>/dev/null; then
    echo "services: not checked, because systemd needs control groups of version 2" >&2
    return
  fi
  group="$cgroups/aquifer-package-test"
  step "the services, with systemd"
  new_root "$work/system"
  # The next version is the same with another number.
  dpkg-deb --raw-extract "$work"/packages/aquifer_*.deb "$work/next"
  sed -i 's/^Version: .*/&+next/' "$work/next/DEBIAN/control"
  mkdir "$work/system/packages/upgrade"
  dpkg-deb --root-owner-group -Zgzip -z1 --build "$work/next" "$work/system/packages/upgrade/aquifer_next.deb" >/dev/null
  install -m 755 "$(command -v etcd)" "$work/system/packages/etcd"
  test/boot.sh "$work/system" "$group" >"$work/boot" 2>&1 </dev/null &
  init=$!
  local inside state=
  for _ in $(seq 100); do
    inside="$(pgrep --parent "$init" || true)"
    [ -z "$inside" ] || state="$(enter "$inside" systemctl is-system-running 2>/dev/null || true)"
    [ "$state" = running ] && break
    sleep 0.2
  done
  [ "$state" = running ] || { cat "$work/boot" >&2 && echo "FAILED: systemd does not run: $state" >&2 && exit 1; }
  enter "$inside" /packages/services.sh
}
enter() {
  local inside="$1"
  shift
  nsenter --target "$inside" --mount --pid --net --uts --ipc --cgroup --root --wd \
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"
}
[ "$quick" = yes ] || services
echo "packages: all checks passed in $SECONDS s"
