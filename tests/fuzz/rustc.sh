#!/usr/bin/env bash
# The compiler for tests/fuzz.sh: rustc.sh RUSTC ARGUMENT...
# Arithmetic has no paths that an input could find, and takes most of the time where each step is counted: of these crates the sanitizer sees everything and libFuzzer nothing.
set -euo pipefail
arithmetic='--crate-name (burn|ndarray|gemm|macerator|matrixmultiply|num_|half|libm|rand|rayon|crypto_bigint|ecdsa|elliptic_curve|p256|p384|p521|prime|rfc6979|sha2|hmac|digest)'
arguments=("$@")
if [[ " $* " =~ $arithmetic ]]; then
    arguments=()
    for argument in "$@"; do
        [[ $argument == -Cpasses=sancov-module || $argument == -Cllvm-args=-sanitizer-coverage-* ]] || arguments+=("$argument")
    done
fi
exec "${arguments[@]}"
