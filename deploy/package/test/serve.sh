#!/usr/bin/env bash
# Runs a server for as long as a command takes: starts it, waits until it serves, gives the command its address as
# AQUIFER_URL, and stops it in order.
#
#   serve.sh LOG SERVER… -- COMMAND…
set -euo pipefail
log="$1" server=()
shift
while [ "$1" != -- ]; do
  server+=("$1")
  shift
done
shift
: >"$log"
"${server[@]}" --output json >"$log" 2>"$log.err" &
pid=$!
for _ in $(seq 300); do
  grep -q '"ready_ms"' "$log" && break
  kill -0 "$pid" 2>/dev/null || break
  sleep 0.1
done
if ! grep -q '"ready_ms"' "$log"; then
  echo "the server does not start:" >&2
  cat "$log" "$log.err" >&2
  kill -KILL "$pid" 2>/dev/null || true
  exit 1
fi
AQUIFER_URL="$(sed -n 's/.*"url":"\([^"]*\)".*/\1/p' "$log")"
export AQUIFER_URL
status=0
"$@" || status=$?
kill -TERM "$pid"
wait "$pid" || { echo "the server ended with $?:" >&2 && cat "$log.err" >&2 && exit 1; }
exit "$status"
