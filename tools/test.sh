#!/usr/bin/env bash
# The whole check: formatting, lints, documentation, 30 s of each fuzz target, all tests, what is in deploy/
# without the chart, and packages.
# Every step prints its name; the first one that fails ends it with a non-zero exit code.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
. tools/notice.sh
. tools/space.sh

step() {
  local started=$SECONDS name="$1"
  shift
  echo "== $name: $*" >&2
  "$@"
  echo "== $name: passed in $((SECONDS - started)) s" >&2
}

# A machine that cannot install the tools of deploy/ says so and goes on; whatever they find is a failure.
or_skipped() {
  local status=0
  "$@" || status=$?
  [ "$status" -eq 75 ] || return "$status"
  echo "== $1: SKIPPED, see above" >&2
}

announce_build debug
make_space
step format cargo fmt --all --check
step lints cargo clippy --workspace --all-targets --locked -- -D warnings
step documentation env RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --locked
step fuzz tools/fuzz.sh
# The tests drive the binary of this very build; without its name each would build one with features of its own.
step build cargo test --workspace --locked --no-run
# A failure ends with its reason, not with a backtrace: what is kept of a long output is its end.
step tests env RUST_BACKTRACE=0 AQUIFER_BIN="$CARGO_TARGET_DIR/debug/aquifer" cargo test --workspace --locked
# The chart itself needs helm, which takes minutes to build: `make chart`.
step deploy or_skipped deploy/check.sh --quick --aquifer "$CARGO_TARGET_DIR/debug/aquifer"
# With an init as well: `make package-test`.
BINARY="$CARGO_TARGET_DIR/debug/aquifer" step packages or_skipped deploy/package/test.sh --quick
echo "== all checks passed in $SECONDS s" >&2
