#!/bin/sh
# Puts what the binary needs beside itself into a directory, out of Debian's packages: the dynamic loader,
# C and C++ libraries, certificates of public authorities, and one user. There is
# no shell and no program. The control files of the packages say to scanners what is there.
#
#   rootfs.sh DIRECTORY
set -eu

root="$1"
packages="$(mktemp -d)"
trap 'rm -rf "$packages"' EXIT
# apt drops its privileges for a download, and must be able to write there.
chmod 777 "$packages"
(cd "$packages" && apt-get download -qq libc6 libgcc-s1 libstdc++6 ca-certificates >/dev/null)

mkdir -p "$root/etc/ssl/certs" "$root/var/lib/dpkg/status.d" "$root/tmp" "$root/usr/bin"
for package in "$packages"/*.deb; do
  files="$packages/files"
  mkdir "$files"
  dpkg-deb -x "$package" "$files"
  name="$(dpkg-deb -f "$package" Package)"
  dpkg-deb -f "$package" >"$root/var/lib/dpkg/status.d/$name"
  case "$name" in
    ca-certificates)
      find "$files/usr/share/ca-certificates" -name '*.crt' | LC_ALL=C sort | xargs cat \
        >"$root/etc/ssl/certs/ca-certificates.crt"
      ;;
    *)
      # Some packages have their libraries in /lib, others in /usr/lib; here all are in /lib.
      (cd "$files" && find . -name 'ld-linux*.so*' -o -name 'libc.so.6' -o -name 'libm.so.6' \
        -o -name 'libgcc_s.so.1' -o -name 'libstdc++.so.6*' -o -name 'libresolv.so.2' \
        -o -name 'libnss_dns.so.2' -o -name 'libnss_files.so.2' | grep -v 'gdb\|python') |
        while read -r file; do
          target="$root/$(echo "$file" | sed 's#^\./usr/#./#')"
          mkdir -p "$(dirname "$target")"
          cp -P "$files/$file" "$target"
        done
      ;;
  esac
  rm -rf "$files"
done
echo 'aquifer:x:65532:65532:aquifer:/data:/nologin' >"$root/etc/passwd"
echo 'aquifer:x:65532:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
chown -R 0:0 "$root"
chmod 1777 "$root/tmp"
