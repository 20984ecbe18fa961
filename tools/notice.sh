# Sourced: says before a build what will take long, and gives a release build the commit that it is of.

# announce_build PROFILE: RocksDB is the one dependency that takes minutes.
announce_build() {
  # Not for debug builds, which would be linked again after every commit.
  if [ "$1" = release ] && [ -z "${AQUIFER_COMMIT:-}" ]; then
    AQUIFER_COMMIT="$(git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown)"
    export AQUIFER_COMMIT
  fi
  if ls "$CARGO_TARGET_DIR/$1"/build/librocksdb-sys-*/out/librocksdb.a >/dev/null 2>&1; then
    echo "building the $1 profile; RocksDB is compiled already" >&2
  else
    echo "building the $1 profile. RocksDB (C++) compiles first: about 10 minutes on 2 cores the" >&2
    echo "first time on a machine, about 1 minute when ccache has it; everything else takes about" >&2
    echo "5 minutes the first time. Later builds take seconds." >&2
  fi
}
