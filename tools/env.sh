# Sourced by the Makefile, .ci/run and the other scripts: how this project is built.
# What is already set stays as it is.

# One target directory outside the checkout: clones and worktrees share what is compiled.
if [ -z "${CARGO_TARGET_DIR:-}" ]; then
  CARGO_TARGET_DIR="${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/aquifer/target"
fi
export CARGO_TARGET_DIR

# Cargo gives the same crate of two checkouts the same name there, and tells old from new by time
# alone. So when another checkout built last, our own crates (not the dependencies) start afresh.
aquifer_checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
if [ "$(cat "$CARGO_TARGET_DIR/.checkout" 2>/dev/null)" != "$aquifer_checkout" ]; then
  rm -rf "$CARGO_TARGET_DIR"/*/.fingerprint/aquifer*
  mkdir -p "$CARGO_TARGET_DIR"
  printf '%s\n' "$aquifer_checkout" >"$CARGO_TARGET_DIR/.checkout"
fi
unset aquifer_checkout

# RocksDB's C++ compiles once a machine, not once a profile or target directory; aquifer-cxx says what else.
if command -v ccache >/dev/null 2>&1; then
  export CC="${CC:-ccache gcc}"
fi
PATH="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P):$PATH"
# A name without its place: another checkout is no reason to compile RocksDB again.
export PATH CXX="${CXX:-aquifer-cxx}"

# The bindings of RocksDB need libclang; the newest one that is installed will do.
if [ -z "${LIBCLANG_PATH:-}" ]; then
  for directory in $(ls -d /usr/lib/llvm-*/lib 2>/dev/null | sort -rV); do
    # Not libclang-cpp, which is another library and may stand there alone.
    if ls "$directory"/libclang.so* "$directory"/libclang-[0-9]*.so* 2>/dev/null | grep -q .; then
      LIBCLANG_PATH="$directory"
      break
    fi
  done
fi
if [ -n "${LIBCLANG_PATH:-}" ]; then
  export LIBCLANG_PATH
fi

# rustup's default place, for shells that did not read its profile.
if ! command -v cargo >/dev/null 2>&1 && [ -x "${CARGO_HOME:-${HOME:-}/.cargo}/bin/cargo" ]; then
  PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  export PATH
fi
