#!/usr/bin/env bash
# The compiler for tests/fuzz.sh: rustc.sh RUSTC ARGUMENT...
# libFuzzer sees our own code and what parses for us, and the sanitizer all: each step that is counted takes time, and every counter is looked at after each input.
# The sanitizer does not see the engine of the grammars' expressions, which has no unsafe code, nor the curves and digests, which have a little (moves in constant time, big integers, the
# processor's instructions for SHA): with it an input of `signature` takes twice as long.
set -euo pipefail
parsers='--crate-name (mistral|mistral_core|fuzz|calls|minijinja|minijinja_contrib|serde|serde_core|serde_json|safetensors|llguidance|derivre|toktrie|fancy_regex|regex|regex_automata|regex_syntax|base64|der|spki|pkcs8|sec1) '
unseen='--crate-name (derivre|crypto_bigint|ctutils|cmov|ecdsa|elliptic_curve|p256|p384|p521|prime|rfc6979|sha2|hmac|digest|subtle)'
arguments=()
for argument in "$@"; do
    case $argument in
        -Cpasses=sancov-module | -Cllvm-args=-sanitizer-coverage-*) [[ " $* " =~ $parsers ]] || continue ;;
        -Zsanitizer=*) [[ ! " $* " =~ $unseen ]] || continue ;;
    esac
    arguments+=("$argument")
done
[[ ! " $* " =~ $unseen ]] || arguments+=(-Copt-level=3)
exec "${arguments[@]}"
