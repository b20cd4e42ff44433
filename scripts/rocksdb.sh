#!/bin/sh
# Builds RocksDB once per machine and links it at .rocksdb for cargo.
#
# The C++ of the pinned librocksdb-sys crate is compiled as eight large units into one static
# archive, cached outside the checkout under a key of versions, flags and compiler; every profile
# and every clone then links that archive (cargo would otherwise rebuild it per profile: about
# half an hour of processor time each).
#
#   TRILOG_CACHE   where the archive is kept      (default: ~/.cache/trilog)
#   ROCKSDB_CXX    the compiler to use            (default: clang++ if there is one, else g++)
#   ROCKSDB_JOBS   compilers at once              (default: one per core; 1-2 GB of memory each)
set -eu
cd "$(dirname "$0")/.."

cxx=${ROCKSDB_CXX:-$(command -v clang++ || command -v clang++-14 || echo g++)}
units=8

# CRC-32C is chosen when RocksDB is compiled, so the target must name the instruction.
case $(uname -m) in
    x86_64) machine="-march=x86-64-v2 -mpclmul" ;;
    aarch64) machine="-march=armv8-a+crc+aes+crypto" ;;
    *) machine="" ;;
esac
flags="-O2 -w -fPIC -ffunction-sections -fdata-sections -std=c++20 -include cstdint $machine"
for define in NDEBUG LZ4 HAVE_ALIGNED_NEW HAVE_UINT128_EXTENSION OS_LINUX \
    ROCKSDB_PLATFORM_POSIX ROCKSDB_LIB_IO_POSIX ROCKSDB_SCHED_GETCPU_PRESENT \
    ROCKSDB_AUXV_GETAUXVAL_PRESENT ROCKSDB_FALLOCATE_PRESENT ROCKSDB_RANGESYNC_PRESENT; do
    flags="$flags -D$define"
done

key=$({ grep -A1 -E '"(librocksdb|lz4)-sys"' Cargo.lock; echo "$flags"; "$cxx" --version; } |
    sha256sum | cut -c1-12)
cache=${TRILOG_CACHE:-$HOME/.cache/trilog}
dest=$cache/rocksdb-$key

build() {
    echo "building RocksDB once for this machine (about 4 minutes on two cores)" >&2
    metadata=$(mktemp)
    cargo metadata --locked --format-version 1 >"$metadata"
    crate_dir() {
        grep -o "\"manifest_path\":\"[^\"]*/$1-[0-9][^\"]*" "$metadata" |
            head -1 | cut -d'"' -f4 | xargs dirname
    }
    rocks=$(crate_dir librocksdb-sys)
    lz4=$(crate_dir lz4-sys)
    rm "$metadata"

    mkdir -p "$cache"
    work=$(mktemp -d "$dest.XXXX")
    trap 'rm -rf "$work"' EXIT
    grep '[a-z]' "$rocks/rocksdb_lib_sources.txt" | grep -v build_version |
        awk -v dir="$work" -v units="$units" '
            { source[NR] = $1 }
            END { for (i = 1; i <= NR; i++)
                printf "#include \"%s\"\n", source[i] > (dir "/u" int((i - 1) * units / NR) ".cc") }'
    cp "$rocks/build_version.cc" "$work/version.cc"
    # The flags are words on purpose: each is one argument.
    # shellcheck disable=SC2086
    printf '%s\n' "$work"/*.cc | xargs -P "${ROCKSDB_JOBS:-$(nproc)}" -I{} \
        "$cxx" $flags -I"$rocks/rocksdb/include" -I"$rocks/rocksdb" -I"$rocks" \
        -I"$lz4/liblz4/lib" -c {} -o {}.o
    ar crs "$work/librocksdb.a" "$work"/*.o
    rm "$work"/*.o "$work"/*.cc
    # Another build may have finished first; its archive is as good.
    mv -T "$work" "$dest" 2>/dev/null || [ -f "$dest/librocksdb.a" ]
}

[ -f "$dest/librocksdb.a" ] || build
ln -sfn "$dest" .rocksdb
