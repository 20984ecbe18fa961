#!/usr/bin/env bash
# Measures the performance contract on this machine: every row beside its target and the disk
# calibration of the same run, as a table on stderr and as JSON in target/bench.json.
# Arguments go to the suite in tests/bench (for example --quick, or --only publish).
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
. tools/notice.sh

announce_build release
cargo build --release --locked -p aquifer -p aquifer-tests --bin aquifer --bin bench
mkdir -p target
"$CARGO_TARGET_DIR/release/bench" --dir target "$@" >target/bench.json
echo "wrote target/bench.json" >&2
