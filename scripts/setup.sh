#!/bin/sh
# Makes sure that what the build needs is there: a Rust toolchain (rustup fetches the pinned one),
# a C++ compiler and libclang for RocksDB, make. As root it installs what is missing; otherwise it
# prints the lines to run. Does nothing, quickly, where nothing is missing.
set -eu

have() { command -v "$1" >/dev/null 2>&1; }

# bindgen loads libclang at run time, from where the package puts it.
have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    for library in /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* \
        /usr/lib64/libclang*.so* /usr/lib/libclang*.so* /usr/local/lib/libclang*.so*; do
        [ -e "$library" ] && return 0
    done
    return 1
}

packages=""
need() { packages="$packages $1"; }

have cc || need gcc
have g++ || need g++
have clang++ || have clang++-14 || need clang
have_libclang || need libclang-dev
have make || need make
have git || need git
cargo_home=${CARGO_HOME:-$HOME/.cargo}
rust=yes
have cargo || [ -x "$cargo_home/bin/cargo" ] || {
    rust=no
    have curl || need "curl ca-certificates"
}

apt_line="apt-get update && apt-get install -y --no-install-recommends$packages"
# The toolchain itself is pinned in rust-toolchain.toml and fetched on first use.
rust_line="curl --proto =https --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none"

[ -z "$packages" ] && [ "$rust" = yes ] && exit 0

if [ -n "$packages" ]; then
    if [ "$(id -u)" = 0 ] && have apt-get; then
        echo "installing:$packages" >&2
        export DEBIAN_FRONTEND=noninteractive
        sh -c "$apt_line" >/dev/null </dev/null
    else
        echo "These packages are missing:$packages" >&2
        if have apt-get; then
            echo "Install them with:  sudo sh -c '$apt_line'" >&2
        else
            echo "Those are their Debian names; install what your system calls them." >&2
        fi
    fi
fi
if [ "$rust" = no ]; then
    if [ "$(id -u)" = 0 ]; then
        echo "installing rustup" >&2
        sh -c "$rust_line" </dev/null
    else
        echo "Rust is missing. Install it with:  $rust_line" >&2
    fi
fi

# What was only printed still has to be done.
[ "$(id -u)" = 0 ] || exit 1
if [ -n "$packages" ] && ! have apt-get; then exit 1; fi
