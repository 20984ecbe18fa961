# Sourced: says before a build what will take long.

# announce_build PROFILE: RocksDB is the one dependency that takes minutes.
announce_build() {
  if ls "$CARGO_TARGET_DIR/$1"/build/librocksdb-sys-*/out/librocksdb.a >/dev/null 2>&1; then
    echo "building the $1 profile; RocksDB is compiled already" >&2
  else
    echo "building the $1 profile. RocksDB (C++) compiles first: about 10 minutes on 2 cores the" >&2
    echo "first time on a machine, about 1 minute when ccache has it; everything else takes about" >&2
    echo "5 minutes the first time. Later builds take seconds." >&2
  fi
}
