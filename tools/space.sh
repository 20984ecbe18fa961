# Sourced: the disk space that a whole check needs.

# GiB available where the directory $1 is, or where its nearest existing parent is.
available_gib() {
  local directory="$1"
  while [ ! -d "$directory" ]; do
    directory="$(dirname "$directory")"
  done
  echo $(($(df --output=avail --block-size=1M "$directory" | tail -n 1) / 1024))
}

# Checks that run out of space in the middle fail with errors about something else. Every build of
# changed code leaves its incremental state behind and Cargo never removes it, so when space is short
# that goes first. A cold build takes about 16 GiB; the tests need about 2 GiB beside what is built.
make_space() {
  local available incremental
  available="$(available_gib "$CARGO_TARGET_DIR")"
  if [ "$available" -lt 20 ]; then
    for incremental in "$CARGO_TARGET_DIR"/*/incremental; do
      [ -d "$incremental" ] || continue
      echo "$available GiB available: removing $incremental, which builds create again" >&2
      rm -rf "$incremental"
    done
    available="$(available_gib "$CARGO_TARGET_DIR")"
  fi
  if [ "$available" -lt 4 ] || [ "$(available_gib "${TMPDIR:-/tmp}")" -lt 2 ]; then
    echo "not enough disk space: ${CARGO_TARGET_DIR} needs 4 GiB available and ${TMPDIR:-/tmp} 2 GiB;" >&2
    echo "remove $CARGO_TARGET_DIR to start afresh, or set CARGO_TARGET_DIR and TMPDIR to a larger disk" >&2
    return 1
  fi
}
