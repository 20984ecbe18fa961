#!/bin/bash
# Offload against a real S3 server, versitygw, with a real process: publish, offload, check the
# objects, read everything back after a restart, delete. Needs a built `aquifer` and
#   go install github.com/versity/versitygw/cmd/versitygw@latest
# Usage: tools/cold-s3.sh [AQUIFER [VERSITYGW]]
set -euo pipefail

aquifer=${1:-target/release/aquifer}
versitygw=${2:-${GOPATH:-$HOME/go}/bin/versitygw}
port=${PORT:-17070}
dir=$(mktemp -d)
endpoint=http://127.0.0.1:$port
export AWS_ACCESS_KEY_ID=trial AWS_SECRET_ACCESS_KEY=trial-secret
export AQUIFER_URL=http://127.0.0.1:17650
pids=()
finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$dir"
}
trap finish EXIT

mkdir -p "$dir/s3/bucket"
"$versitygw" --port "127.0.0.1:$port" --access "$AWS_ACCESS_KEY_ID" --secret "$AWS_SECRET_ACCESS_KEY" \
  --keep-alive --quiet posix "$dir/s3" &
pids+=($!)

serve() {
  AQUIFER_COLD_ENDPOINT=$endpoint AQUIFER_COLD_ALLOW_HTTP=true AQUIFER_COLD_LAG_MS=0 \
    AQUIFER_BROKER_HOUSEKEEPING_MS=500 \
    "$aquifer" standalone --data-dir "$dir/data" --cold-store s3://bucket/trial \
    --grpc-addr 127.0.0.1:17650 --http-addr 127.0.0.1:17680 --bookie-addr 127.0.0.1:17651 \
    >"$dir/server.log" 2>&1 &
  server=$!
  pids+=("$server")
  for _ in $(seq 100); do
    grep -q "ready in" "$dir/server.log" && return
    sleep 0.1
  done
  cat "$dir/server.log"
  exit 1
}

store=(--endpoint "$endpoint" --allow-http)
serve
"$aquifer" namespace create public/trial --policy rollover.size=24MiB
seq 1 "${LINES_COUNT:-1500000}" | awk '{print $1 ",a line of the trial with some text in it to make it longer," $1 * 7919}' >"$dir/lines"
"$aquifer" produce public/trial/topic --file "$dir/lines"
"$aquifer" topic offload public/trial/topic --wait
"$aquifer" object list s3://bucket/trial "${store[@]}"
"$aquifer" --output json object list s3://bucket/trial "${store[@]}" | sed 's/.*"url":"\([^"]*\)".*/\1/' |
  while read -r url; do "$aquifer" object verify "$url" "${store[@]}"; done
for _ in $(seq 100); do
  left=$("$aquifer" --output json topic stats public/trial/topic | grep -o '"local":true' | wc -l)
  [ "$left" -le 1 ] && break
  sleep 0.2
done
"$aquifer" topic stats public/trial/topic
kill "$server" && wait "$server" || true
serve
time "$aquifer" read public/trial/topic >"$dir/read"
cmp "$dir/lines" "$dir/read"
"$aquifer" topic delete public/trial/topic
for _ in $(seq 100); do
  left=$("$aquifer" --output json object list s3://bucket/trial "${store[@]}" | wc -l)
  [ "$left" -eq 0 ] && break
  sleep 0.2
done
[ "$left" -eq 0 ]
echo "offload against $endpoint: everything was read back, and everything is gone"
