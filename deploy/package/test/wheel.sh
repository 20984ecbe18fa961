#!/usr/bin/env bash
# Installs the wheel into an environment of its own, uses what it brings, and removes it.
#
#   wheel.sh DIRECTORY-OF-PACKAGES SCRATCH
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
packages="$1" scratch="$2"
python3 -m venv "$scratch/venv"
pip=("$scratch/venv/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install --no-index --no-deps "$packages"/aquifer_server-*.whl
"${pip[@]}" check >/dev/null
aquifer="$scratch/venv/bin/aquifer"
"$here/serve.sh" "$scratch/server" "$aquifer" standalone --data-dir "$scratch/data" --grpc-addr 127.0.0.1:0 \
  --http-addr 127.0.0.1:0 --bookie-addr 127.0.0.1:0 -- "$here/exercise.sh" "$aquifer" hello
"${pip[@]}" uninstall --yes aquifer-server
left="$(find "$scratch/venv" -iname '*aquifer*')"
[ -z "$left" ] || { echo "FAILED: the removal of the wheel leaves $left" >&2 && exit 1; }
echo "wheel: installed, used, removed"
