#!/usr/bin/env bash
# Makes alerts fire and resolve on a real cluster: `aquifer dev --tls` on this machine under traffic, watched by
# Prometheus with the rules of deploy/alerts. One fault after the other: a bookie killed, a broker killed, a disk
# below its mark, a backlog, certificates that are near their end or damaged, etcd paused. Each alert that a fault
# names must fire, and resolve when the fault is mended. Takes about five minutes, and needs etcd.
#
#   deploy/observe/test.sh PROGRAM [FAULT…]
#
# The times of the rules are divided by 30, so that what takes half an hour takes a minute; the expressions
# are the same otherwise, but for what faults.py lists in SCALED.
set -euo pipefail
cd "$(dirname "$0")/.."
. ./tools.sh
aquifer="$(realpath "${1:?$(sed -n 's/^#   \(deploy.*\)/usage: \1/p' "observe/$(basename "$0")")}")"
shift
need_python
need_promtool
exec "$python" observe/faults.py "$aquifer" "$@"
