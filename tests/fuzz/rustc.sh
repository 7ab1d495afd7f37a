#!/usr/bin/env bash
# The compiler for tests/fuzz.sh: rustc.sh RUSTC ARGUMENT...
# Arithmetic has no paths that an input could find, and takes most of the time where each step is counted: of these crates the sanitizer sees everything and libFuzzer nothing.
# The sanitizer does not see the curves either (safe code, as the standard library, which it sees as little): with it an input of `signature` takes twice as long.
set -euo pipefail
arithmetic='--crate-name (burn|ndarray|gemm|macerator|matrixmultiply|num_|half|libm|rand|rayon)'
curves='--crate-name (crypto_bigint|ctutils|cmov|ecdsa|elliptic_curve|p256|p384|p521|prime|rfc6979|sha2|hmac|digest|subtle)'
arguments=()
for argument in "$@"; do
    case $argument in
        -Cpasses=sancov-module | -Cllvm-args=-sanitizer-coverage-*) [[ ! " $* " =~ $arithmetic|$curves ]] || continue ;;
        -Zsanitizer=*) [[ ! " $* " =~ $curves ]] || continue ;;
    esac
    arguments+=("$argument")
done
[[ ! " $* " =~ $curves ]] || arguments+=(-Copt-level=3)
exec "${arguments[@]}"
