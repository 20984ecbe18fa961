#!/usr/bin/env bash
# Makes packages out of a binary that is there: for Debian, for Python, a tarball, what they are made of (SBOM), and
# SHA256SUMS of all. Crates and their licences are those of Cargo.lock. Two runs over the same binary and commit give the same bytes.
#
#   deploy/package/build.sh [--fast] BINARY [DIRECTORY]
#
# The directory is dist unless one is given; packages in it are replaced. --fast compresses little, for tests.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
top="$(cd "$here/../.." && pwd)"

export AQUIFER_PACKAGE_LEVEL=6
compressor=(-Zxz --threads-max=1)
if [ "${1:-}" = --fast ]; then
  export AQUIFER_PACKAGE_LEVEL=1
  compressor=(-Zgzip -z1)
  shift
fi
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n 's/^#   \(deploy.*\)/usage: \1/p' "$0" >&2
  exit 2
fi
binary="$(realpath "$1")"
mkdir -p "${2:-dist}"
dist="$(realpath "${2:-dist}")"
for tool in readelf strip dpkg-deb python3 cargo; do
  command -v "$tool" >/dev/null 2>&1 || { echo "missing: $tool" >&2; exit 1; }
done

# The time of the commit, so that another build of it has the same bytes.
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
  SOURCE_DATE_EPOCH="$(git -C "$top" log -1 --format=%ct 2>/dev/null || echo 315532800)"
fi
export SOURCE_DATE_EPOCH TZ=UTC LC_ALL=C.UTF-8
umask 022

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

install -m 755 "$binary" "$work/aquifer"
if readelf -S "$work/aquifer" 2>/dev/null | grep -q '\.debug_info'; then
  strip "$work/aquifer"
fi
binary="$work/aquifer"
version="$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$top/Cargo.toml")"
if [ "$("$binary" -V)" != "aquifer $version" ]; then
  echo "the binary is $("$binary" -V), and the sources are $version" >&2
  exit 1
fi
needs="$(python3 "$here/binary.py" "$binary")"
eval "$needs"
name="aquifer-$version-linux-$machine"

# Files below a prefix, the same in every package but that for Python.
share="$work/prefix/share"
mkdir -p "$share/bash-completion/completions" "$share/zsh/vendor-completions" "$share/fish/vendor_completions.d" \
  "$share/doc/aquifer" "$work/prefix/bin"
install -m 755 "$binary" "$work/prefix/bin/aquifer"
"$binary" completion bash >"$share/bash-completion/completions/aquifer"
"$binary" completion zsh >"$share/zsh/vendor-completions/_aquifer"
"$binary" completion fish >"$share/fish/vendor_completions.d/aquifer.fish"
python3 "$here/manual.py" "$binary" "$share/man/man1"
gzip -9n "$share"/man/man1/*.1
python3 "$here/sbom.py" "$binary" >"$work/sbom"
python3 "$here/notices.py" >"$work/third-party"
install -m 644 "$work/sbom" "$share/doc/aquifer/sbom.cdx.json"
gzip -9nc "$work/third-party" >"$share/doc/aquifer/third-party.gz"

rm -f "$dist"/aquifer[-_]*.{deb,whl,tar.gz,cdx.json} "$dist/SHA256SUMS"
install -m 644 "$work/sbom" "$dist/$name.cdx.json"

debian() {
  local root="$work/deb"
  mkdir -p "$root/DEBIAN" "$root/usr/lib/systemd/system" "$root/etc/aquifer" "$root/etc/default"
  cp -r "$work/prefix/." "$root/usr/"
  install -m 644 "$here"/systemd/*.service "$root/usr/lib/systemd/system/"
  install -m 644 "$here"/etc/*.toml "$root/etc/aquifer/"
  install -m 644 "$here/etc/default" "$root/etc/default/aquifer"
  install -m 755 "$here"/debian/{postinst,prerm,postrm} "$root/DEBIAN/"
  install -m 644 "$here/debian/copyright" "$root/usr/share/doc/aquifer/copyright"
  # 1.2.3-rc.4 comes before 1.2.3 there too.
  local deb_version="${version/-/\~}"
  printf 'aquifer (%s) stable; urgency=medium\n\n  * Release %s.\n\n -- Aquifer developers <developers@aquifer.invalid>  %s\n' \
    "$deb_version" "$version" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$root/usr/share/doc/aquifer/changelog.gz"
  (cd "$root" && find etc -type f | LC_ALL=C sort | sed 's#^#/#') >"$root/DEBIAN/conffiles"
  (cd "$root" && find usr -type f | LC_ALL=C sort | xargs md5sum) >"$root/DEBIAN/md5sums"
  sed -e "s/@VERSION@/$deb_version/" -e "s/@ARCHITECTURE@/$deb_architecture/" -e "s/@DEPENDS@/$deb_depends/" \
    -e "s/@SIZE@/$(cd "$root" && find usr etc -type f -printf '%s\n' | awk '{ sum += int(($1 + 1023) / 1024) } END { print sum }')/" \
    "$here/debian/control" >"$root/DEBIAN/control"
  dpkg-deb --root-owner-group "${compressor[@]}" --build "$root" "$dist/aquifer_${deb_version}_$deb_architecture.deb" >/dev/null
}

tarball() {
  local root="$work/$name"
  mkdir -p "$root/lib/systemd/system" "$root/etc/aquifer"
  cp -r "$work/prefix/." "$root/"
  # Where zsh looks without a distribution.
  mv "$root/share/zsh/vendor-completions" "$root/share/zsh/site-functions"
  install -m 644 "$here"/etc/*.toml "$root/etc/aquifer/"
  install -m 644 "$top/LICENSE" "$root/share/doc/aquifer/"
  install -m 644 "$here"/systemd/*.service "$root/lib/systemd/system/"
  # It is meant for /usr/local, where systemd looks for units as well.
  sed -i -e 's#/usr/bin/#/usr/local/bin/#' -e 's#/etc/aquifer/#/usr/local/etc/aquifer/#' "$root"/lib/systemd/system/*.service
  tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --format=gnu -cf - "$name" |
    gzip -n "-$AQUIFER_PACKAGE_LEVEL" >"$dist/$name.tar.gz"
}

debian
tarball
python3 "$here/wheel.py" "$binary" "$version" "$wheel_platform" "$work/sbom" "$work/third-party" "$dist"
(cd "$dist" && sha256sum aquifer[-_]*.{deb,whl,tar.gz,cdx.json} >SHA256SUMS && cat SHA256SUMS)
