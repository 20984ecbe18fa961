#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks, on Debian and its relatives.
# Without root and without sudo it installs nothing and says exactly what to install.
set -euo pipefail

packages=()

# How to become root: as we are, by sudo without a question, by sudo with one, or not at all.
become_root=no
run=()
if [ "$(id -u)" = 0 ]; then
  become_root=yes
elif command -v sudo >/dev/null 2>&1; then
  if sudo -n true 2>/dev/null; then
    become_root=yes run=(sudo -n)
  elif [ -t 0 ]; then
    become_root=yes run=(sudo)
  fi
fi

need_command() { # COMMAND PACKAGE
  command -v "$1" >/dev/null 2>&1 || packages+=("$2")
}

need_command gcc gcc
need_command g++ g++
need_command make make
need_command ccache ccache
need_command zstd zstd

# libclang is only looked for where tools/env.sh will look for it.
libclang_major() {
  local library
  for library in $(ls -d /usr/lib/llvm-*/lib 2>/dev/null | sort -rV); do
    if ls "$library"/libclang.so* "$library"/libclang-[0-9]*.so* 2>/dev/null | grep -q .; then
      library="${library#/usr/lib/llvm-}"
      printf '%s\n' "${library%/lib}"
      return
    fi
  done
}

installable() {
  [ -n "$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p' | grep -v '(none)')" ]
}

need_libclang() {
  if [ -n "${LIBCLANG_PATH:-}" ]; then
    return
  fi
  local major
  major="$(libclang_major)"
  if [ -n "$major" ]; then
    # Without the compiler's own headers the bindings fail on stdbool.h.
    [ -e "/usr/lib/llvm-$major/lib/clang" ] && ls /usr/lib/llvm-"$major"/lib/clang/*/include/stdbool.h \
      >/dev/null 2>&1 || packages+=("libclang-common-$major-dev")
    return
  fi
  if ! usable_libclang && [ "$become_root" = yes ] && command -v apt-get >/dev/null 2>&1; then
    # A fresh image has no lists of packages, and then nothing looks installable.
    "${run[@]}" apt-get update -qq >&2 || true
    usable_libclang || true
  fi
  packages+=("libclang1-${libclang:-14}" "libclang-common-${libclang:-14}-dev")
}

# Debian 12 has 14; other releases have their own.
usable_libclang() {
  for libclang in 14 15 16 17 18 19 20 21 13; do
    installable "libclang1-$libclang" && return 0
  done
  libclang=
  return 1
}

need_libclang

if ! command -v cargo >/dev/null 2>&1 && [ ! -x "${CARGO_HOME:-${HOME:-}/.cargo}/bin/cargo" ]; then
  echo "missing: Rust. Install rustup (https://rustup.rs); rust-toolchain.toml then picks the compiler." >&2
  exit 1
fi

[ "${#packages[@]}" = 0 ] && exit 0

install="apt-get install --no-install-recommends -y ${packages[*]}"
if ! command -v apt-get >/dev/null 2>&1; then
  echo "missing: ${packages[*]} (names of Debian packages); install what your system calls them" >&2
  exit 1
elif [ "$become_root" = no ]; then
  echo "missing: ${packages[*]}. As root:" >&2
  echo "  apt-get update && $install" >&2
  exit 1
fi
echo "installing ${packages[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
if ! "${run[@]}" $install >&2; then
  "${run[@]}" apt-get update >&2
  "${run[@]}" $install >&2
fi
