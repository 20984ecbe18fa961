#!/usr/bin/env bash
# Runs in a root whose init is systemd: installs the Debian package and lets its services do what services do. A
# standalone server is started, upgraded, killed, misconfigured and stopped; bookie, broker, autorecovery and
# offloader form a cluster with etcd. Packages, scripts and etcd are in /packages.
set -euo pipefail
cd /packages
fail() {
  echo "FAILED: $*" >&2
  journalctl --no-pager --lines=60 >&2
  exit 1
}
# until_true WHAT COMMAND…: waits for a condition.
until_true() {
  local what="$1" left=300
  shift
  until "$@" >/dev/null 2>&1; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || fail "$what"
    sleep 0.1
  done
}
property() { systemctl show --property "$2" --value "aquifer-$1"; }
active() { [ "$(property "$1" ActiveState)" = active ]; }
ready() { journalctl --no-pager --output=cat "_PID=$(property "$1" MainPID)" | grep -q 'ready in'; }
start() { systemctl start "aquifer-$1" && until_true "aquifer-$1 is not ready" ready "$1"; }
stopped_well() { [ "$(property "$1" Result):$(property "$1" ExecMainStatus)" = success:0 ]; }
stop() { systemctl stop "aquifer-$1" && { stopped_well "$1" || fail "aquifer-$1 did not stop in order"; }; }
# A line of /proc/PID/status of a service.
process() { sed -n "s/^$2:[[:space:]]*//p" "/proc/$(property "$1" MainPID)/status"; }
open_files() { awk '/^Max open files/ { print $5 }' "/proc/$1/limits"; }
confined() {
  [ "$(process "$1" NoNewPrivs):$(process "$1" Seccomp):$(process "$1" CapBnd)" = 1:2:0000000000000000 ] ||
    fail "aquifer-$1 has privileges"
  [ "$(stat -c %U "/proc/$(property "$1" MainPID)")" = aquifer ] || fail "aquifer-$1 does not run as aquifer"
  # No more than this machine allows.
  local files allowed
  files="$(open_files "$(property "$1" MainPID)")" allowed="$(open_files 1)"
  [ "$files" = $((allowed < 1048576 ? allowed : 1048576)) ] || fail "aquifer-$1 may open $files files"
}
read_back() { [ "$(aquifer read "$1")" = "$(printf 'first\nsecond\nthird')" ]; }

dpkg --install ./aquifer_*.deb >/dev/null 2>&1
for role in standalone broker bookie autorecovery offloader; do
  [ "$(systemctl is-enabled "aquifer-$role"):$(property "$role" ActiveState)" = disabled:inactive ] ||
    fail "an installation enables or starts aquifer-$role"
done

start standalone
confined standalone
./exercise.sh aquifer hello
nsenter --target "$(property standalone MainPID)" --mount touch /etc/aquifer/x 2>/dev/null && fail "it can write to /etc"
before="$(property standalone MainPID)"
dpkg --install ./upgrade/aquifer_*.deb >/dev/null 2>&1
[ "$(property standalone MainPID)" != "$before" ] || fail "an upgrade does not restart the service that runs"
active broker && fail "an upgrade starts a service that does not run"
until_true "it is not ready after an upgrade" ready standalone
read_back hello || fail "messages are gone after an upgrade"
echo "services: standalone started, confined, used, upgraded"

before="$(property standalone MainPID)"
kill -KILL "$before"
restarted() { active standalone && [ "$(property standalone MainPID)" != "$before" ] && ready standalone; }
until_true "it is not restarted after it was killed" restarted
read_back hello || fail "messages are gone after a kill"
stop standalone

sed -i 's/^data_dir = .*/data_dir = 7/' /etc/aquifer/standalone.toml
systemctl start aquifer-standalone || true
failed() { [ "$(property standalone ActiveState):$(property standalone ExecMainStatus)" = failed:2 ]; }
until_true "a wrong configuration does not fail" failed
systemctl reset-failed aquifer-standalone
echo "services: standalone restarted after a kill, not after a wrong configuration, stopped"

# A cluster of one bookie. It is started before etcd is there.
printf 'AQUIFER_QUORUM_ENSEMBLE=1\nAQUIFER_QUORUM_WRITE=1\nAQUIFER_QUORUM_ACK=1\n' >/etc/default/aquifer
systemctl start aquifer-bookie
systemd-run --quiet --unit=etcd --property=StateDirectory=etcd ./etcd --data-dir=/var/lib/etcd
until_true "aquifer-bookie is not ready after etcd came" ready bookie
start autorecovery
start broker
printf 'AQUIFER_COLD_STORE=file:///var/lib/aquifer/cold\n' >>/etc/default/aquifer
start offloader
for role in bookie autorecovery broker offloader; do
  confined "$role"
done
./exercise.sh aquifer cluster
for role in broker offloader autorecovery bookie; do
  stop "$role"
done
systemctl stop etcd
echo "services: bookie, broker, autorecovery and offloader confined, used, stopped"

systemctl enable --quiet --now aquifer-autorecovery
dpkg --remove aquifer >/dev/null 2>&1
[ -z "$(grep -lx aquifer /proc/[0-9]*/comm 2>/dev/null || true)" ] || fail "a removal leaves processes"
[ -d /var/lib/aquifer/standalone ] && [ -d /var/lib/aquifer/bookie ] || fail "a removal deleted data"
dpkg --purge aquifer >/dev/null 2>&1
left="$(find /etc /usr /var/lib -xdev -name '*aquifer*' ! -path '/var/lib/systemd/*')"
[ -z "$left" ] || fail "a purge leaves $left"
echo "services: stopped by a removal, data gone by a purge"
