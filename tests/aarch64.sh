#!/usr/bin/env bash
# Runs tests for 64-bit ARM, under qemu's emulation where the machine is another one: tests/aarch64.sh [CARGO TEST'S ARGUMENTS...]
# Without arguments: the kernels' tests, for each arm of NEON, and the oracles.
#
# Needs a C compiler and a standard library of Rust for the target: `rustup target add aarch64-unknown-linux-gnu`, or the packages of Debian 12 (rustc-web,
# libstd-rust-web-dev:arm64, gcc-aarch64-linux-gnu, qemu-user-static), whose compiler is /usr/bin/rustc. Builds all dependencies once more, into target/aarch64-unknown-linux-gnu.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu

has_target() { ls "$("$1" --print target-libdir --target $target)"/libstd-* >/dev/null 2>&1; }
for compiler in "${RUSTC:-rustc}" /usr/bin/rustc; do
    if command -v "$compiler" >/dev/null && has_target "$compiler"; then
        export RUSTC=$compiler
        break
    fi
done
has_target "${RUSTC:-rustc}" || { echo "no standard library of Rust for $target" >&2; exit 1; }
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
if [[ $(uname -m) != aarch64 ]]; then
    # Every instruction that qemu knows: i8mm and dotprod, too.
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -cpu max"
fi

run() { cargo test --release --target $target "$@"; }
if (( $# )); then
    run "$@"
else
    run -p mistral-core --lib -- kernels quant
    run -p mistral-core --test oracles
fi
