#!/usr/bin/env bash
# `make run`: builds the binary, starts a server, streams a week of earthquakes through it where
# you can watch, and keeps serving until Ctrl-C.
# AQUIFER_DEMO_DIR chooses the data directory.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
. tools/notice.sh

announce_build release
cargo build --release --locked -p aquifer
aquifer="$CARGO_TARGET_DIR/release/aquifer"

data="${AQUIFER_DEMO_DIR:-target/demo}"
log="$data.log"
mkdir -p "$data"
export AQUIFER_URL="http://127.0.0.1:7650"

show() {
  printf '\n$ aquifer %s\n' "$*"
  "$aquifer" "$@"
}

"$aquifer" standalone --data-dir "$data" >"$log" 2>"$data.err" &
server=$!
stop() {
  trap - EXIT INT TERM
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
}
trap stop EXIT
trap 'stop; exit 0' INT TERM

until grep -q 'ready in' "$log"; do
  if ! kill -0 "$server" 2>/dev/null; then
    echo "the server did not start:" >&2
    cat "$log" "$data.err" >&2
    exit 1
  fi
  sleep 0.05
done
cat "$log"

topic=earthquakes
echo
echo "# A week of earthquakes, keyed by seismic network. Every line is acknowledged only when it"
echo "# is durable on disk."
show produce "$topic" --file examples/earthquakes.ndjson --key-pointer /properties/net
echo
echo "# Read the first three back; this leaves nothing behind."
show read "$topic" --from earliest --count 3 | cut -c 1-160
echo
echo "# Consume five on a subscription: it remembers where it stopped, run it again for the next."
show consume "$topic" --subscription demo --from earliest --count 5 | cut -c 1-160
show topic stats "$topic"
cat <<'TEXT'

The server keeps running until Ctrl-C. In another terminal (AQUIFER_URL is not needed):
TEXT
cat <<TEXT
  export PATH="$CARGO_TARGET_DIR/release:\$PATH"
  aquifer consume hello --subscription me --follow
  aquifer produce hello "first message"
  aquifer perf e2e --topic speed --rate 1000 --seconds 5
TEXT
wait "$server"
