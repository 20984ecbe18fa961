#!/usr/bin/env bash
# Makes the image out of a binary that is there, with buildah, as root: no daemon, no other image, and two
# runs over the same binary and packages have the same digest.
#
#   deploy/docker/build.sh BINARY OUTPUT [SBOM]
#
# OUTPUT is what buildah pushes to: docker-archive:FILE:NAME:TAG, oci:DIRECTORY:TAG, or docker://REPOSITORY:TAG.
# SBOM is a file for what the image is made of (CycloneDX), crates and packages of Debian; that needs cargo.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
  sed -n 's/^#   \(deploy.*\)/usage: \1/p' "$0" >&2
  exit 2
fi
binary="$1" output="$2" sbom="${3:-}"
command -v buildah >/dev/null 2>&1 || { echo "missing: buildah (apt-get install --no-install-recommends buildah)" >&2; exit 1; }

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir "$work/context"
install -m 755 "$binary" "$work/context/aquifer"
if readelf -S "$work/context/aquifer" 2>/dev/null | grep -q '\.debug_info'; then
  strip "$work/context/aquifer"
fi
sh deploy/docker/rootfs.sh "$work/context/rootfs"
if [ -n "$sbom" ]; then
  SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}" \
    python3 deploy/package/sbom.py "$work/context/aquifer" --rootfs "$work/context/rootfs" >"$sbom"
fi

image() {
  buildah --storage-driver vfs --root "$work/root" --runroot "$work/run" "$@"
}
# The version of the workspace, and the commit: never the time.
version="$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)"
revision="$(git rev-parse HEAD 2>/dev/null || echo unknown)"
image build --quiet --isolation chroot --timestamp 0 --identity-label=false --format oci --file deploy/docker/Dockerfile \
  --build-arg BINARY=prebuilt --build-arg ROOTFS=prepared \
  --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
  --tag "localhost/aquifer:$version" "$work/context" >/dev/null
image push --quiet --digestfile "$work/digest" "localhost/aquifer:$version" "$output"
cat "$work/digest" && echo
