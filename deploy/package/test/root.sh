#!/usr/bin/env bash
# Runs in a root of its own without an init: installs the Debian package, uses what it brings, removes and purges
# it; then the same with the tarball below /usr/local. Packages and scripts are in /packages.
set -euo pipefail
cd /packages
fail() { echo "FAILED: $*" >&2 && exit 1; }
serve() { ./serve.sh /tmp/server "$@"; }

dpkg --install ./aquifer_*.deb >/dev/null
[ "$(stat -c %U:%G:%a /var/lib/aquifer)" = aquifer:aquifer:750 ] || fail "the directory of data is $(stat -c %U:%a /var/lib/aquifer)"
[ -z "$(dpkg --verify aquifer)" ] || fail "files differ from the package: $(dpkg --verify aquifer)"
[ "$(stat -c %U /usr/bin/aquifer)" = root ] || fail "the binary does not belong to root"
server=(setpriv --reuid aquifer --regid aquifer --init-groups aquifer standalone --config /etc/aquifer/standalone.toml)
serve "${server[@]}" -- ./exercise.sh aquifer hello
[ -d /var/lib/aquifer/standalone ] || fail "data is not in /var/lib/aquifer/standalone"

echo '# changed by an operator' >>/etc/aquifer/standalone.toml
dpkg --remove aquifer >/dev/null
[ ! -e /usr/bin/aquifer ] || fail "the binary is there after a removal"
[ -d /var/lib/aquifer/standalone ] || fail "a removal deleted data"
dpkg --install ./aquifer_*.deb >/dev/null
grep -q 'changed by' /etc/aquifer/standalone.toml || fail "an installation replaced a changed configuration"
read_back() { [ "$(aquifer read hello)" = "$(printf 'first\nsecond\nthird')" ]; }
export -f read_back
serve "${server[@]}" -- bash -c read_back || fail "messages are gone after removal and installation"

# Data of another place and the user stay.
touch /opt/kept && chown aquifer /opt/kept
dpkg --purge aquifer >/dev/null
left="$(find / -xdev -path /packages -prune -o -path /proc -prune -o -path /sys -prune -o -name '*aquifer*' -print)"
[ -z "$left" ] || fail "a purge leaves $left"
[ "$(stat -c %U /opt/kept)" = aquifer ] || fail "a purge removed the user"
echo "deb: installed, used, removed with its data kept, purged"

tar --directory /usr/local --strip-components=1 --extract --file aquifer-*.tar.gz
cp /usr/local/etc/aquifer/standalone.toml /tmp/standalone.toml
install -d -o aquifer /tmp/data
serve setpriv --reuid aquifer --regid aquifer --init-groups /usr/local/bin/aquifer standalone \
  --config /tmp/standalone.toml --data-dir /tmp/data -- ./exercise.sh /usr/local/bin/aquifer hello
echo "tarball: unpacked and used"
