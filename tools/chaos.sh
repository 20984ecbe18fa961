#!/usr/bin/env bash
# Real processes under faults, in a release build: half an hour, and ten minutes without etcd in the
# middle, beside a thousand topics with confirming consumers, unless arguments say otherwise. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
. tools/notice.sh
announce_build release
cargo build --release --locked -p aquifer -p aquifer-tests --bin aquifer --bin chaos
if [ $# -eq 0 ]; then
  set -- --seconds 1800 --outage-seconds 600 --rate 1500 --crowd 1000
fi
exec "$CARGO_TARGET_DIR/release/chaos" "$@"
