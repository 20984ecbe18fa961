#!/usr/bin/env bash
# Restarts every process of a running cluster, one after the other, so that clients notice no more than
# a short pause. Between two of them it waits until the cluster has everything back that the first one
# took away, and it stops at the first sign that something is wrong.
#
#   deploy/rolling-restart.sh --metadata etcd://HOST:PORT --cluster NAME INVENTORY
#
# INVENTORY is a file with a line for each process, in the order in which they are to be restarted:
# bookies, then brokers, then members of etcd is a good one. Words are separated by blanks:
#
#   ROLE     NAME   HTTP             COMMAND
#   bookie   b1     10.0.0.7:7681    ssh 10.0.0.7 systemctl restart aquifer-bookie
#   broker   x1     10.0.0.9:7680    ssh 10.0.0.9 systemctl restart aquifer-broker
#   etcd     e1     10.0.0.3:2379    ssh 10.0.0.3 systemctl restart etcd
#
# ROLE is bookie, broker or etcd; HTTP is where the process answers /metrics and health checks; COMMAND
# makes it end (SIGTERM, so that it hands over) and start again, and may return before that is done.
# Blank lines and lines that begin with # are skipped.
set -euo pipefail

usage() {
  sed -n 's/^#   \(deploy.*\)/usage: \1/p' "$0" >&2
  echo "       --aquifer PROGRAM   the aquifer binary (default: aquifer)" >&2
  echo "       --timeout SECONDS   how long one process and the cluster may take (default: 300)" >&2
  exit 2
}

aquifer=aquifer timeout=300 metadata='' cluster='' inventory=''
while [ $# -gt 0 ]; do
  case "$1" in
    --metadata) metadata="${2:?$(usage)}" && shift 2 ;;
    --cluster) cluster="${2:?$(usage)}" && shift 2 ;;
    --aquifer) aquifer="${2:?$(usage)}" && shift 2 ;;
    --timeout) timeout="${2:?$(usage)}" && shift 2 ;;
    -*) usage ;;
    *) [ -z "$inventory" ] || usage
       inventory="$1" && shift ;;
  esac
done
[ -n "$metadata" ] && [ -n "$cluster" ] && [ -r "$inventory" ] || usage
command -v curl >/dev/null 2>&1 || { echo "this needs curl" >&2; exit 1; }

say() { echo "$(date +%H:%M:%S) $*"; }

# When the process behind an address started; etcd says it under the usual name.
started() { # HTTP
  curl -fsS --max-time 5 "http://$1/metrics" 2>/dev/null |
    sed -n -E 's/^(aquifer_process_start_time_ms|process_start_time_seconds)(\{[^}]*\})? //p' | head -n 1
}

is_ready() { # ROLE HTTP
  case "$1" in
    etcd) curl -fsS --max-time 5 "http://$2/health" 2>/dev/null | grep -q '"health" *: *"true"' ;;
    *) curl -fsS --max-time 5 "http://$2/readyz" >/dev/null 2>&1 ;;
  esac
}

# What `cluster check` and the commands beside it are told.
at=(--metadata "$metadata" --cluster "$cluster")

writable_bookies() {
  "$aquifer" bookie list "${at[@]}" --output json 2>/dev/null | grep -c '"state":"writable"' || true
}

# Waits until every bookie takes entries and answers, none is in limbo, no ledger waits for a copy, brokers
# are there and etcd has a leader.
wait_until_whole() { # WHEN
  local found
  found="$("$aquifer" cluster check "${at[@]}" --bookies "$bookies" --brokers "$brokers" --wait "${timeout}s" 2>&1)" && return
  say "stopped: the cluster is not whole $1, within $timeout s" >&2
  echo "$found" >&2
  exit 1
}

wait_for() { # WHAT COMMAND…
  local what="$1" began=$SECONDS
  shift
  until "$@"; do
    if [ $((SECONDS - began)) -ge "$timeout" ]; then
      say "stopped: $what, not within $timeout s" >&2
      exit 1
    fi
    sleep 0.2
  done
}

is_another() { # ROLE HTTP BEFORE
  local now
  now="$(started "$2")" || true
  [ -n "$now" ] && [ "$now" != "$3" ] && is_ready "$1" "$2"
}

bookies=0 brokers=0
wait_until_whole "before anything is restarted"
# As many must be there again after each restart.
bookies="$(writable_bookies)"
brokers="$(grep -cE '^[[:space:]]*broker[[:space:]]' "$inventory" || true)"
say "$bookies bookies are writable"

count=0
while read -r role name http command || [ -n "$role" ]; do
  case "$role" in
    '' | \#*) continue ;;
    bookie | broker | etcd) ;;
    *) echo "$inventory: $role is no role" >&2; exit 2 ;;
  esac
  [ -n "$command" ] || { echo "$inventory: $name has no command" >&2; exit 2; }
  before="$(started "$http")" || true
  [ -n "$before" ] || { say "stopped: $name does not answer at $http" >&2; exit 1; }
  began=$SECONDS
  # What the command reads is not the inventory.
  bash -c "$command" </dev/null
  wait_for "$name serves again" is_another "$role" "$http" "$before"
  wait_until_whole "after the restart of $name"
  say "$role $name restarted in $((SECONDS - began)) s"
  count=$((count + 1))
done <"$inventory"
say "$count processes restarted"
