#!/usr/bin/env bash
# The whole check: formatting, lints, unit, integration and tidy tests, documentation.
# Every step prints its name; the first one that fails ends it with a non-zero exit code.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
. tools/notice.sh

step() {
  local started=$SECONDS name="$1"
  shift
  echo "== $name: $*" >&2
  "$@"
  echo "== $name: passed in $((SECONDS - started)) s" >&2
}

announce_build debug
step format cargo fmt --all --check
step lints cargo clippy --workspace --all-targets --locked -- -D warnings
step tests cargo test --workspace --locked
step fuzzing tools/fuzz.sh
export RUSTDOCFLAGS="-D warnings"
step documentation cargo doc --workspace --no-deps --locked
echo "== all checks passed in $SECONDS s" >&2
