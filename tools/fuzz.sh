#!/usr/bin/env bash
# Coverage-guided fuzzing on the stable compiler: libFuzzer with LLVM's coverage pass switched on by
# plain code-generation flags.
#
#   tools/fuzz.sh                 every target for 30 s each
#   tools/fuzz.sh batch 600       one target for 600 s
#
# A crash leaves its input in the corpus folder's `crashes/` and fails the command.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tools/env.sh
. tools/env.sh

targets=${1:-$(sed -n 's/^name = "\(.*\)"$/\1/p' fuzz/Cargo.toml | grep -v aquifer-fuzz)}
seconds=${2:-30}
triple=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR="$CARGO_TARGET_DIR/fuzz"
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 \
  -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --quiet --release --manifest-path fuzz/Cargo.toml --target "$triple"

failed=0
run() {
  corpus="$CARGO_TARGET_DIR/corpus/$1"
  mkdir -p "$corpus" "$corpus.crashes"
  seeds="fuzz/seeds/$1"
  [ -d "$seeds" ] || seeds=
  # shellcheck disable=SC2086
  "$CARGO_TARGET_DIR/$triple/release/$1" -max_total_time="$seconds" -rss_limit_mb=2048 \
    -timeout=10 -max_len=65536 -print_final_stats=1 -verbosity=0 \
    -artifact_prefix="$corpus.crashes/" "$corpus" $seeds > "$corpus.log" 2>&1
}
pids=()
names=()
for target in $targets; do
  run "$target" &
  pids+=($!)
  names+=("$target")
done
for i in "${!pids[@]}"; do
  log="$CARGO_TARGET_DIR/corpus/${names[$i]}.log"
  if wait "${pids[$i]}"; then
    executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    echo "fuzz ${names[$i]}: ${executed:-?} inputs in $seconds s, no finding"
  else
    failed=1
    echo "fuzz ${names[$i]}: FOUND SOMETHING" >&2
    tail -n 40 "$log" >&2
  fi
done
exit "$failed"
